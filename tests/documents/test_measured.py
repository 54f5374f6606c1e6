"""Tables of figures in the documents are what was measured."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import measured


@pytest.mark.parametrize("path", measured.PAGES, ids=lambda path: path.name)
def test_tables_are_those_that_were_measured(path: Path) -> None:
    page = path.read_text()
    assert measured.fill(page) == page


def test_every_measurement_is_shown_and_known() -> None:
    pages = "".join(path.read_text() for path in measured.PAGES)
    shown = re.findall(r"<!-- measured: (\w+) -->", pages)
    kept = [path.stem for path in measured.FOLDER.glob("*.json")]
    assert sorted(shown) == sorted(kept)
    assert set(kept) <= set(measured.KINDS)


def test_a_number_set_by_hand_is_found(tmp_path: Path) -> None:
    name = "movielens"
    text = (measured.FOLDER / f"{name}.json").read_text()
    content = json.loads(text)
    next(iter(content["rows"].values()))[0] += 0.001
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="changed after it was measured"):
        measured.rendered(name, tmp_path)


def test_trees_are_ours_less_the_difference() -> None:
    # The error is best of one objective, the calibration of another.
    trees = {"watch_time_mae_s": 4.0, "calibration": 0.5}
    others = {"watch_time_mae_s": 6.0, "calibration": 1.25}
    rest = {"lightgbm.watch_time": others, "lightgbm.click": {"auc_click": 0.7}}
    ours = {"watch_time_mae_s": 2.0, "calibration": 1.0}
    names = ("auc_click", "auc_long_view", "watch_time_xauc")
    printed = {
        "runs": [
            {
                "seed": 3,
                "ours": ours,
                "lightgbm.watch_time_tweedie": trees,
                **rest,
            },
            {
                "seed": 5,
                "ours": {**ours, "watch_time_mae_s": 3.0},
                "lightgbm.watch_time_tweedie": {
                    **trees,
                    "watch_time_mae_s": 5.0,
                },
                **rest,
            },
        ],
        "machine": {},
    }
    for i, name in enumerate((*names, "weighted_per_user_loss")):
        printed[name] = 0.5 + i / 10
        printed[f"{name}_minus_lightgbm"] = 0.125
    rows = measured.kuairand(printed)["rows"]
    assert rows["auc_click"] == [0.5, 0.375]
    assert rows["watch_time_mae_s"] == [2.5, 4.5]
    assert rows["calibration"] == [1.0, 1.25]


def test_a_table_is_rendered_from_what_the_benchmark_printed(
    tmp_path: Path,
) -> None:
    metrics = ("hit_rate_at_10_seen_removed", "hit_rate_at_50")
    metrics += ("hit_rate_at_100",)
    names = ("co_watch", "ease", "implicit_als", "popularity")
    printed = {
        f"bags.baselines.{name}.{metric}": 0.01 * i
        for i, name in enumerate(names)
        for metric in metrics
    } | {f"bags.retrieval.{metric}": 0.3125 for metric in metrics}
    printed |= {
        "bags": [{"seed": 1}, {"seed": 2}],
        "bags.retrieval.hit_rate_at_10_seen_removed.spread": 0.0042,
        "bags.training_cpu_s": 630.0,
        "machine": {"cores": 2},
    }
    content = measured.movielens(printed)
    content["fingerprint"] = measured.fingerprint(content)
    (tmp_path / "movielens.json").write_text(json.dumps(content))
    before = "a\n<!-- measured: movielens -->\nold\n<!-- end -->\nb\n"
    page = measured.fill(before, tmp_path)
    assert page.startswith("a\n<!-- measured: movielens -->\n\n| metric | bags")
    assert (
        "| `hit_rate_at_50` | 0.312 | 0.000 | 0.010 | 0.020 | 0.030 |" in page
    )
    assert "(Bags: seeds 1, 2, 0.004 apart in the first row" in page
    assert f"run {content['fingerprint']}" in page.replace("\n", " ")
    assert page.endswith("<!-- end -->\nb\n") and "old" not in page


def test_parts_of_one_section_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other, none = (tmp_path / name for name in ("one", "other", "none"))
    one.write_text('{"runs": [1], "machine": {}}\n')
    other.write_text('seed 2\n{"runs": [2], "machine": {}}\nbye\n')
    none.write_text("stopped\n")
    for paths, said in (
        ([one, other], "has 'runs' again"),
        ([none], "no line with a JSON object"),
    ):
        with pytest.raises(SystemExit):
            measured.main(["kuairand", *map(str, paths)])
        assert said in capsys.readouterr().err
