"""`recommend --all-users` by the command line, on a small export."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs.recommendation_model import SavedModel
from beam_jobs.recommendations import shard_requests
from beam_jobs.stored_requests import from_table
from beam_jobs.user_requests import end_of_log_us, request_columns
from beam_jobs.user_shards import read_shards
from pipeline.all_users import parse_moment
from pipeline.cli import main
from pipeline.config import load_config
from pipeline.model_stages import ModelStages
from pipeline.recommend import (
    Recommendation,
    described,
    request_of_user,
)
from pipeline.run import Run
from schemas.artifacts import Artifact, ArtifactStore
from schemas.errors import UsageError
from schemas.requests import RawInput

CHECKOUT = Path(__file__).resolve().parents[2]
# In a process of its own: it is killed when it would give the second shard's
# file its name.
KILLED = """
import os, signal, sys
from apache_beam.io.filesystems import FileSystems
from pipeline.cli import main

rename, files = FileSystems.rename, []

def rename_or_die(old, new):
    files.extend(p for p in new if p.endswith(".parquet"))
    if len(files) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(old, new)

FileSystems.rename = rename_or_die
sys.exit(main(sys.argv[1:]))
"""


@dataclasses.dataclass(frozen=True)
class Export:
    """What both ways to recommend are given."""

    stages: ModelStages
    files: dict[str, list[str]]
    inputs: tuple[RawInput, ...]
    recommender: SavedModel

    @property
    def end_us(self) -> int:
        return end_of_log_us(self.files)

    def one_by_one(self, user: str, as_of_us: int) -> list[Recommendation]:
        """What `recommend --user` prints."""
        schema, inputs = self.stages.data.schema, self.stages.raw_inputs
        request = request_of_user(user, self.files, schema, inputs, as_of_us)
        videos = pa.concat_tables(map(pq.read_table, self.files["videos"]))
        return described(self.recommender(request), request, videos)


@pytest.fixture(scope="module")
def export(work: Path) -> Export:
    config = load_config(str(work / "config.yaml"), [])
    stages = ModelStages(Run(config, ArtifactStore(str(work))))
    schema, events = stages.data.schema, stages.data.events
    files = {t: events.files(f"{t}-") for t in schema.columns}
    inputs = tuple(i for i in stages.raw_inputs if i.axis != "candidate")
    folder = stages.export().path
    model = SavedModel(f"{folder}/recommender/1")
    return Export(stages, files, inputs, model)


@pytest.fixture(scope="module")
def written(
    work: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Artifact]:
    """The output folder of an uninterrupted run, and its version."""
    output = tmp_path_factory.mktemp("lists")
    assert main(_command(work, output)) == 0
    (version,) = ArtifactStore(str(output)).versions("recommendations")
    return output, version


def _command(work: Path, output: Path, *flags: str) -> list[str]:
    common = ["--workdir", str(work), "--output", str(output)]
    return ["recommend", "--all-users", *common, *flags]


def _rows(version: Artifact) -> dict[str, dict[str, list]]:
    files = version.files("recommendations-")
    rows = pa.concat_tables(map(pq.read_table, files)).to_pylist()
    return {row["user_id"]: row for row in rows}


def _assert_same_list(row: dict[str, list], ranked: list[Recommendation]):
    """Equal videos, but for neighbours whose scores are equal in float32."""
    scores = [r.score for r in ranked]
    np.testing.assert_allclose(row["scores"], scores, rtol=1e-4)
    assert len(row["video_ids"]) == len(ranked) == 5
    if min(np.diff(sorted(scores))) > 1e-3:
        assert row["video_ids"] == [r.video_id for r in ranked]
        for name in ("expected_watch_time_s", "clicked"):
            expected = [r.predictions[name] for r in ranked]
            np.testing.assert_allclose(row[name], expected, rtol=1e-4)
        assert row["candidate_sources"] == [r.source for r in ranked]
        expected = [r.retrieval_score for r in ranked]
        np.testing.assert_allclose(
            row["retrieval_scores"], expected, rtol=1e-3, atol=1e-4
        )


def test_every_user_has_the_list_that_the_command_prints(
    export: Export, written: tuple[Path, Artifact]
) -> None:
    rows = _rows(written[1])
    users = pa.concat_tables(map(pq.read_table, export.files["users"]))
    watches = pa.concat_tables(map(pq.read_table, export.files["watches"]))
    known, watched = (set(t["user_id"].to_pylist()) for t in (users, watches))
    assert set(rows) == known | watched
    assert len(rows) == 250
    assert written[1].counts == {
        "users": 250,
        "users_without_history": len(known - watched),
    }
    new, old = sorted(known - watched), sorted(watched)
    assert new
    for user in (*new[:2], *old[:3], old[-1]):
        _assert_same_list(rows[user], export.one_by_one(user, export.end_us))


def test_requests_are_those_of_one_user_at_a_time(export: Export) -> None:
    """Every tensor, at the end of the log and in its middle."""
    data = export.stages.data
    columns = request_columns(data.schema, export.inputs)
    (shard,) = read_shards(
        0,
        sources={t: {"all": export.files[t]} for t in columns},
        schemas={
            t: pa.schema([f for f in data.schema.arrow(t) if f.name in own])
            for t, own in columns.items()
        },
        num_shards=len(export.files["users"]),
        cap=10_000,
    )
    watches = pa.concat_tables(map(pq.read_table, export.files["watches"]))
    middle_us = int(np.median(watches["event_time_us"].to_numpy()))
    for time_us in (export.end_us, middle_us):
        stored = shard_requests(shard, export.inputs, time_us)
        batch = from_table(stored.rows, export.inputs)
        filled = set()
        for number in range(0, len(stored), 9):
            user = stored.user_ids[number].as_py()
            one = request_of_user(
                user, export.files, data.schema, export.inputs, time_us
            )
            assert one["request_time_us"] == [time_us]
            for name, value in batch.items():
                np.testing.assert_array_equal(value[number], one[name][0])
                if np.any(value[number] != value.dtype.type()):
                    filled.add(name)
        assert {"surface", "watch_history_video_id", "search_query"} <= filled


def test_a_moment_of_the_past(
    export: Export, work: Path, tmp_path: Path
) -> None:
    """A user's list then is another one, by both commands alike."""
    watches = pa.concat_tables(map(pq.read_table, export.files["watches"]))
    middle_us = int(np.median(watches["event_time_us"].to_numpy()))
    middle_us -= middle_us % 1_000_000
    text = str(np.datetime64(middle_us, "us"))
    assert main(_command(work, tmp_path, "--as-of", text)) == 0
    (version,) = ArtifactStore(str(tmp_path)).versions("recommendations")
    rows = _rows(version)
    file = version.files("recommendations-")[0]
    said = pq.read_schema(file).metadata
    assert said[b"watchnext.as_of_us"] == str(middle_us).encode()
    user = watches["user_id"][0].as_py()
    then = export.one_by_one(user, middle_us)
    _assert_same_list(rows[user], then)
    now = export.one_by_one(user, export.end_us)
    assert [r.score for r in then] != [r.score for r in now]


def test_a_second_run_finds_the_lists(
    work: Path,
    written: tuple[Path, Artifact],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, version = written
    assert main(_command(work, output)) == 0
    said = capsys.readouterr().out
    assert f"recommendations: there already, {version.path}" in said
    assert f"{version.path}/recommendations-*.parquet" in said


@pytest.mark.slow
def test_a_killed_run_goes_on_with_what_is_left(
    work: Path,
    written: tuple[Path, Artifact],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGKILL, then the same command: the same files, two of three done."""
    command = _command(work, tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *command],
        cwd=CHECKOUT,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    store = ArtifactStore(str(tmp_path))
    assert store.versions("recommendations") == []
    (folder,) = (tmp_path / "recommendations").iterdir()
    (kept,) = folder.glob("recommendations-*.parquet")
    assert len(list(folder.glob("tmp-*"))) == 1
    kept_at, kept_rows = kept.stat().st_mtime_ns, pq.read_table(kept).num_rows

    assert main(command) == 0
    (version,) = store.versions("recommendations")
    assert version.manifest == written[1].manifest
    assert Path(version.path, kept.name).stat().st_mtime_ns == kept_at
    names = {p.name for p in Path(version.path).iterdir()}
    assert names == {p.name for p in Path(written[1].path).iterdir()}
    run = json.loads(Path(version.path, "run.json").read_text())
    assert (run["computed_shards"], run["shards"]) == (2, 3)
    assert run["computed_users"] == 250 - kept_rows
    said = capsys.readouterr().out
    assert f"recommendations: {250 - kept_rows} requests answered" in said
    assert "1 of 3 shards were there already" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --user ID or --all-users"),
        (["--user", "u", "--all-users"], "Give --user ID or --all-users"),
        (["--user", "u", "--output", "x"], "no option --output without"),
        (
            ["--user", "u", "--runner=PrismRunner"],
            "no option --runner=PrismRunner",
        ),
        (["--all-users", "--as-of", "noon"], "--as-of 'noon' is no time"),
        (["--all-users"], "no completed"),
    ],
)
def test_wrong_use_exits_with_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = tmp_path / "work"
    assert main(["recommend", "--workdir", str(workdir), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not workdir.exists()


def test_moments() -> None:
    # 2024-01-05 is day 19,727 of Unix time: 54 years of 365 days, 13 leap
    # days, 4 days.
    day_us = 19_727 * 86_400_000_000
    assert parse_moment("2024-01-05") == day_us
    assert parse_moment("2024-01-05T01:00:00.000002") == day_us + 3_600_000_002
    assert parse_moment("2024-01-05T01:00:00+01:00") == day_us
    with pytest.raises(UsageError, match="expected YYYY-MM-DD or"):
        parse_moment("5 January")
