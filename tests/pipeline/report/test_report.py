"""The report of a small work directory: what it says, and what it is."""

import datetime
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.cli import main
from pipeline.report.data import days_of
from pipeline.report.work_folder import WorkFolder
from pipeline.report.write import write_report
from tests.pipeline.serve.browser import Browser, chromium

HOSTILE = "<script>window.hacked = 1</script>"
# Of a metric's name, whose parts end at a point.
HOSTILE_NAME = "<script>hacked=1</script>"
SECTIONS = (
    *("overview", "card", "data", "vocabularies", "features", "training"),
    *("retrieval", "index", "ranking", "samples", "configuration"),
    "artifacts",
)


class Page(HTMLParser):
    """A page's texts and table rows by section, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.tags = Counter[str]()
        self._section, self._in_cell = "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        if tag == "section":
            self._section = dict(attributes)["id"]
        if tag == "tr":
            self.rows.setdefault(self._section, []).append([])
        if tag in ("td", "th"):
            self.rows[self._section][-1].append("")
        self._in_cell = tag in ("td", "th")

    def handle_endtag(self, tag):
        self._in_cell = False

    def handle_data(self, text):
        before = self.texts.get(self._section, "")
        self.texts[self._section] = before + text
        if self._in_cell:
            self.rows[self._section][-1][-1] += text

    def row(self, section: str, *start: str) -> list[str]:
        """What follows these cells in the only such row."""
        (found,) = (
            row[len(start) :]
            for row in self.rows[section]
            if row[: len(start)] == list(start)
        )
        return found


@pytest.fixture(scope="module")
def page(work: Path) -> Page:
    return Page((work / "report.html").read_text())


def newest(work: Path, stage: str) -> Path:
    return sorted((work / stage).iterdir())[-1]


def test_a_run_leaves_its_report(page: Page) -> None:
    assert set(SECTIONS) <= page.texts.keys()
    assert page.tags["script"] == page.tags["img"] == 0
    assert page.tags["svg"] > 30


def test_events_per_day_are_those_of_the_log(work: Path) -> None:
    table = pa.concat_tables(
        pq.read_table(path)
        for path in newest(work, "events").glob("watches-*.parquet")
    )
    expected = Counter(
        datetime.datetime.fromtimestamp(us / 1e6, datetime.UTC).date()
        for us in table["event_time_us"].to_pylist()
    )
    by_day, counted, files = days_of(WorkFolder(str(work)), "watches")
    assert by_day == expected and list(by_day) == sorted(expected)
    assert counted == files == 3


def test_numbers_are_those_of_the_artifacts(work: Path, page: Page) -> None:
    metrics = json.loads((work / "metrics.json").read_text())
    good = f"{metrics['events.watches.good']:,.0f}"
    assert page.row("data", "watches") == [good, good, "0", "0"]
    rate = page.row("retrieval", "hit_rate_at_100")
    assert rate[0] == f"{metrics['retrieval.hit_rate_at_100']:.4f}"
    popular = metrics["baselines.popularity.hit_rate_at_100"]
    assert f"{popular:.4f}" in rate
    low, high = (metrics[f"ranking.auc_click_{e}"] for e in ("low", "high"))
    interval, auc, *_ = page.row("ranking", "auc_click")
    assert interval == f"{low:.4f} to {high:.4f}"
    assert auc == f"{metrics['ranking.auc_click']:.4f}"
    manifest = json.loads((newest(work, "index") / "manifest.json").read_text())
    name, key, *_ = page.row("artifacts", "index")
    assert name == newest(work, "index").name
    assert key == manifest["key"][:12]
    config = yaml.safe_load((work / "config.yaml").read_text())
    assert (
        f"num_users: {config['simulator']['num_users']}"
        in (page.texts["configuration"])
    )


def test_the_vocabularies_and_their_tails(work: Path, page: Page) -> None:
    folder = newest(work, "vocabularies")
    terms = (folder / "video.txt").read_text().split("\n")[:-1]
    counts = list(map(int, (folder / "video.counts.txt").read_text().split()))
    commonest, size, total, first, once = page.row("vocabularies", "video")
    assert commonest.startswith(f"{terms[0]} ({counts[0]:,})")
    assert (size, total) == (f"{len(terms):,}", f"{sum(counts):,}")
    assert first == f"{sum(counts[: len(counts) // 100]) / sum(counts):.1%}"
    assert once == f"{counts.count(1) / len(counts):.1%}"


def test_the_card_counts_what_cannot_be_recommended(
    work: Path, page: Page
) -> None:
    manifest = json.loads(
        (newest(work, "retrieval_holdout") / "manifest.json").read_text()
    )
    counts = manifest["counts"]
    share = counts["test_labels_out_of_vocabulary"] / counts["test_labels"]
    said = page.texts["card"]
    assert f"{share:.1%} of the test's watches are of such" in said
    assert "a simulated platform" in said and "Intended use" in said


def test_calibration_has_both_of_its_sides(work: Path, page: Page) -> None:
    metrics = json.loads((work / "metrics.json").read_text())
    start = "ranking.by_duration.1_to_5_minutes."
    (row,) = (
        r
        for r in page.rows["ranking"]
        if r[:2] == ["duration", "1 to 5 minutes"]
    )
    expected = metrics[f"{start}mean_expected_watch_time_s"]
    observed = metrics[f"{start}mean_watch_time_s"]
    assert metrics[f"{start}calibration"] == pytest.approx(expected / observed)
    assert f"{expected:.3f}" in row and f"{observed:.3f}" in row


@pytest.mark.parametrize(
    ("kept", "missing"),
    [
        ((), {"data", "training", "retrieval", "index", "samples"}),
        (("events",), {"vocabularies", "features", "training", "samples"}),
        (("evaluation",), {"data", "training", "index", "samples"}),
        (
            ("events", "split", "vocabularies", "transform"),
            {"training", "retrieval", "index", "ranking"},
        ),
    ],
)
def test_what_is_missing_is_said(
    work: Path, tmp_path: Path, kept: tuple[str, ...], missing: set[str]
) -> None:
    part = tmp_path / "part"
    part.mkdir()
    for stage in kept:
        (part / stage).symlink_to(work / stage)
    found = Page(Path(write_report(str(part))).read_text())
    for section in missing:
        said = found.texts[section]
        assert re.search(r"\b(no|not|nothing)\b", said.lower()), section
    assert ("svg" in found.tags) == bool(kept)


def test_wrong_use_is_told_in_a_line(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = str(tmp_path / "absent")
    for arguments, said in (
        (["--workdir", absent], "There is no work directory"),
        (["--workdir", str(work), "--against", absent], "no work directory"),
        (
            ["--workdir", str(work), "--against", str(work)],
            "must name another work directory",
        ),
        (
            ["--workdir", str(work), "--output", str(tmp_path / "a.pdf")],
            "must end with .html",
        ),
    ):
        assert main(["report", *arguments]) == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("watchnext: ") and said in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_runs_side_by_side(work: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for stage in work.iterdir():
        if stage.is_dir() and stage.name != "evaluation":
            (other / stage.name).symlink_to(stage)
    config = yaml.safe_load((work / "config.yaml").read_text())
    config["ranking"]["epochs"] = 7
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(work / "evaluation", other / "evaluation")
    path = newest(other, "evaluation") / "metrics.json"
    metrics = json.loads(path.read_text())
    rate = metrics["retrieval.hit_rate_at_100"]
    metrics["retrieval.hit_rate_at_100"] = rate + 0.125
    path.write_text(json.dumps(metrics))
    output = str(tmp_path / "both.html")
    found = Page(Path(write_report(str(work), output, str(other))).read_text())
    (row,) = (
        r
        for r in found.rows["retrieval"]
        if r[0] == "hit_rate_at_100" and len(r) == 4 and r[3] == "−0.1250"
    )
    assert row[1:3] == [f"{rate:.4f}", f"{rate + 0.125:.4f}"]
    assert found.row("configuration", "ranking.epochs") == ["1", "7"]
    # Both have the same models: all rows of each list.
    assert found.texts["samples"].count("8 of 8 videos are in both") == 3
    assert found.row("artifacts", "index", "yes") == []


def test_curves_of_an_index_that_has_some(work: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(work / "index", part / "index")
    path = newest(part, "index") / "index.json"
    point = {"leaves": 1, "rescored": 150, "recall": 0.5}
    description = json.loads(path.read_text()) | {
        "scann_curve": [
            point | {"bytes_per_query": 1000},
            point | {"recall": 0.9, "bytes_per_query": 4000},
        ],
        "stock_curve": [
            {"searched": n, "rows": 100 * n, "recall": 1 - 0.5 / n}
            for n in (1, 2, 4)
        ],
    }
    path.write_text(json.dumps(description))
    found = Page(Path(write_report(str(part))).read_text())
    said = found.texts["index"]
    assert "ScaNN: recall by bytes read" in said
    assert "The SavedModels' search: recall by rows read" in said


@pytest.fixture(scope="module")
def hostile(work: Path, tmp_path_factory) -> Path:
    """A report in whose log a user, the videos and a term are scripts."""
    folder = tmp_path_factory.mktemp("hostile") / "work"
    shutil.copytree(work, folder, ignore=shutil.ignore_patterns("training"))
    events, split = newest(folder, "events"), newest(folder, "split")
    test = pa.concat_tables(
        pq.read_table(p) for p in sorted(split.glob("test/watches-*.parquet"))
    )
    counts = Counter(test["user_id"].to_pylist())
    busiest = min(counts, key=lambda user: (-counts[user], user))
    for path in [*events.glob("*.parquet"), *split.rglob("*.parquet")]:
        table = pq.read_table(path)
        for name in table.column_names:
            values = table[name].to_pylist()
            if name == "user_id":
                values = [HOSTILE if v == busiest else v for v in values]
            elif name == "title":
                values = [HOSTILE for _ in values]
            else:
                continue
            at = table.column_names.index(name)
            field = table.schema.field(name)
            column = pa.array(values, field.type)
            table = table.set_column(at, field, column)
        pq.write_table(table, path)
    dead = next(events.glob("dead_letters-*.parquet"))
    schema = pq.read_schema(dead)
    record = ["watches", "no_user", "log.csv", 3, HOSTILE]
    pq.write_table(pa.table([[v] for v in record], schema=schema), dead)
    manifest = json.loads((events / "manifest.json").read_text())
    manifest["counts"] |= {"watches.bad.no_user": 1, "watches.bad": 1}
    (events / "manifest.json").write_text(json.dumps(manifest))
    terms = newest(folder, "vocabularies") / "surface.txt"
    lines = terms.read_text().split("\n")
    terms.write_text("\n".join([HOSTILE, *lines[1:]]))
    metrics = newest(folder, "evaluation") / "metrics.json"
    slices = json.loads(metrics.read_text())
    slices[f"ranking.by_surface.{HOSTILE_NAME}.auc_click"] = 0.5
    metrics.write_text(json.dumps(slices))
    return Path(write_report(str(folder)))


def test_ids_that_are_markup_are_shown_as_text(hostile: Path) -> None:
    found = Page(hostile.read_text())
    assert found.tags["script"] == 0
    assert f"User {HOSTILE}" in found.texts["samples"]
    assert found.texts["samples"].count(HOSTILE) > 8
    assert HOSTILE in found.texts["vocabularies"]
    assert ["watches", "no user", "1"] in found.rows["data"]
    assert found.row("data", "watches", "no user", "log.csv:3") == [HOSTILE]
    # In the plot and in the table.
    assert found.texts["ranking"].count(HOSTILE_NAME) >= 2


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="no chromium on the path")
def test_in_a_browser_on_a_phone_and_on_a_desk(
    hostile: Path, tmp_path: Path
) -> None:
    assert hostile.stat().st_size < 8e6
    browser = Browser(chromium(), tmp_path)
    try:
        for width in (390, 1400):
            browser.look(width, 900)
            browser.open(hostile.as_uri())
            browser.wait("document.readyState === 'complete'")
            browser.wait("document.querySelectorAll('svg').length > 30")
            for page in (False, True):
                browser.run(
                    "document.querySelectorAll('details')"
                    f".forEach(d => d.open = {str(page).lower()})"
                )
                scrolls = "document.documentElement.scrollWidth"
                assert browser.run(scrolls) == width
            loaded = "performance.getEntriesByType('resource').map(r => r.name)"
            assert browser.run(loaded) == []
            assert browser.run("typeof window.hacked") == "undefined"
            # A plot is as wide as its box lets it be, and high enough to read.
            box = browser.run(
                "(b => [b.width, b.height])"
                "(document.querySelector('svg').getBoundingClientRect())"
            )
            assert 300 <= box[0] <= 560 and box[1] >= 150
        assert browser.problems == []
    finally:
        browser.close()
