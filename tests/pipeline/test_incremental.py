"""Days by the command line: ingested one by one, against all at once."""

import datetime
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from beam_jobs.sources.simulated import simulate
from pipeline.cli import main
from schemas.artifacts import Artifact, ArtifactStore
from schemas.events import TIMED_TABLES
from schemas.simulator_config import SimulatorConfig

FIRST = datetime.date(2024, 1, 1)
DAY_US = 86_400_000_000
START_US = (FIRST - datetime.date(1970, 1, 1)).days * DAY_US
# The last two days are validation and test of the run over all days.
NUM_DAYS, TRAINING_DAYS = 6, 4
CONFIG = """
name: days
source: {kind: mapped, mapping: MAPPING}
beam: {num_shards: 2}
retrieval_examples: {history_length: 10, search_tokens: 12,
                     examples_per_user: 5}
"""
UNITS = {
    "event_time_us": "us",
    "upload_time_us": "us",
    "watch_time_s": "s",
    "duration_s": "s",
}


def day(number: int) -> datetime.date:
    return FIRST + datetime.timedelta(days=number)


class Platform:
    """A simulated platform's logs, in a folder a day and in one of all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = SimulatorConfig(
            num_users=120,
            num_videos=200,
            num_channels=20,
            num_topics=6,
            num_days=NUM_DAYS,
            start_date=FIRST,
            requests_per_user_day=0.8,
        )
        self.tables = simulate(config, seed=3).tables
        mapping = {
            "name": "days",
            "tables": {
                table: {
                    "file": f"{table}.parquet",
                    "columns": {
                        name: {"column": name}
                        | ({"unit": UNITS[name]} if name in UNITS else {})
                        for name in rows.column_names
                    },
                }
                for table, rows in self.tables.items()
            },
        }
        path = folder / "mapping.yaml"
        path.write_text(yaml.safe_dump(mapping))
        self.config = folder / "days.yaml"
        self.config.write_text(CONFIG.replace("MAPPING", str(path)))
        self.log("all", 0, NUM_DAYS)
        for number in range(NUM_DAYS):
            self.log(str(day(number)), number, number + 1)

    def log(self, name: str, first: int, end: int) -> None:
        """Writes the events of the days first .. end - 1 as an outside log."""
        (self.folder / name).mkdir()
        for table, rows in self.tables.items():
            if table in TIMED_TABLES:
                number = rows.column("event_time_us").to_numpy() - START_US
                number //= DAY_US
                keep = (number >= first) & (number < end)
                rows = rows.filter(pa.array(keep))
            pq.write_table(rows, self.folder / name / f"{table}.parquet")

    def run(self, work: Path, *arguments: str) -> int:
        options = ["--config", str(self.config), "--workdir", str(work)]
        return main([*arguments, *options])

    def ingest(self, work: Path, name: str) -> None:
        mapping = str(self.folder / "mapping.yaml")
        arguments = ["--mapping", mapping, "--input", str(self.folder / name)]
        assert self.run(work, "ingest", *arguments) == 0


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Platform:
    return Platform(tmp_path_factory.mktemp("platform"))


def newest(work: Path, stage: str) -> Artifact:
    return ArtifactStore(str(work)).versions(stage)[-1]


def hashes(artifact: Artifact, prefix: str = "") -> dict[str, str]:
    files = artifact.manifest["files"]
    return {n: files[n]["sha256"] for n in artifact.names(prefix)}


@pytest.mark.slow
def test_days_one_by_one_give_the_bytes_of_a_run_over_all(
    platform: Platform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, daily = tmp_path / "whole", tmp_path / "daily"
    platform.ingest(whole, "all")
    assert platform.run(whole, "prepare") == 0
    assert platform.run(whole, "prepare", "--since", str(FIRST)) == 0
    at_once = newest(whole, "daily_examples")

    for number in range(NUM_DAYS):
        platform.ingest(daily, str(day(number)))
        since = ("prepare", "--since", str(day(number)))
        if number == TRAINING_DAYS - 1:
            # From here on there are vocabularies and a transform.
            said = capsys.readouterr().out
            assert said.count("ids and examples follow when") == number
            for stage in ("vocabularies", "transform"):
                (whole / stage).rename(daily / stage)
        assert platform.run(daily, *since) == 0
        version = newest(daily, "daily_examples")
        assert hashes(version, f"{day(number)}/") == hashes(
            at_once, f"{day(number)}/"
        )
        if number == TRAINING_DAYS - 1:
            window = newest(daily, "window_examples")
            direct = newest(whole, "retrieval_examples")
            assert hashes(window, "train-") == hashes(direct, "train-") != {}
            assert window.counts["train_examples"] > 100
            window = newest(daily, "window_ranking_examples")
            direct = newest(whole, "ranking_examples")
            assert hashes(window, "train-") == hashes(direct, "train-") != {}
            for name in ("train_candidates", "train_requests"):
                assert window.counts[name] == direct.counts[name] > 100
    assert hashes(version, "state/") == hashes(at_once, "state/") != {}
    versions = ArtifactStore(str(daily)).versions("daily_examples")
    parents = [v.manifest["inputs"]["parent"] for v in versions]
    assert parents == ["none", *(v.key for v in versions[:-1])]
    # A second run finds what the first one wrote.
    assert platform.run(daily, *since) == 0
    for stage, number in (
        ("daily_examples", NUM_DAYS),
        ("window_examples", 3),
        ("window_ranking_examples", 3),
    ):
        assert len(ArtifactStore(str(daily)).versions(stage)) == number
    # Without its first day a window begins with the second.
    shutil.rmtree(versions[0].path)
    assert platform.run(daily, *since) == 0
    window = newest(daily, "window_examples").manifest["config"]["window"]
    assert window == f"{day(1)} to {day(NUM_DAYS)}, UTC+0"


def _fails(
    platform: Platform,
    work: Path,
    capsys: pytest.CaptureFixture[str],
    since: str,
) -> str:
    """What `prepare --since` says when it is not to be."""
    capsys.readouterr()
    assert platform.run(work, "prepare", "--since", since) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and said.startswith("watchnext: ")
    return said


def test_a_bad_day_or_no_events_exit_with_2(
    platform: Platform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _fails(platform, tmp_path / "w", capsys, "5.1.2026")
    assert "'5.1.2026' is no date; expected YYYY-MM-DD" in said
    said = _fails(platform, tmp_path / "w", capsys, "2026-01-05")
    assert "no completed 'events'" in said
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_a_day_that_no_state_leads_to_is_refused(
    platform: Platform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ArtifactStore(str(tmp_path))
    platform.ingest(tmp_path, str(day(1)))
    said = _fails(platform, tmp_path, capsys, str(day(2)))
    assert "events end on 2024-01-02, before --since 2024-01-03" in said
    platform.ingest(tmp_path, "all")
    said = _fails(platform, tmp_path, capsys, str(day(1)))
    assert "begin on 2024-01-01, before --since 2024-01-02" in said
    assert "`watchnext prepare --since 2024-01-01 --workdir" in said
    assert store.versions("daily_examples") == []

    platform.ingest(tmp_path, str(day(0)))
    assert platform.run(tmp_path, "prepare", "--since", str(FIRST)) == 0
    # The second day was forgotten.
    platform.ingest(tmp_path, str(day(2)))
    said = _fails(platform, tmp_path, capsys, str(day(2)))
    assert "the days there are 2024-01-01 to 2024-01-01" in said
    assert "`watchnext prepare --since 2024-01-02 --workdir" in said
    assert len(store.versions("daily_examples")) == 1

    # A clock that is wrong by decades would make decades of empty days.
    log = tmp_path / "log"
    shutil.copytree(platform.folder / str(day(1)), log)
    rows = pq.read_table(log / "searches.parquet")
    times = rows.column("event_time_us").to_numpy().copy()
    times[0] += 20_000 * DAY_US
    place = rows.column_names.index("event_time_us")
    rows = rows.set_column(place, "event_time_us", pa.array(times))
    pq.write_table(rows, log / "searches.parquet")
    platform.ingest(tmp_path, str(log))
    capsys.readouterr()
    assert platform.run(tmp_path, "prepare", "--since", str(day(1))) == 1
    assert "an event of a wrong clock?" in capsys.readouterr().err
