"""A refresh by the command line: what it takes, what it refuses."""

import datetime
import json
from pathlib import Path

import pytest

from beam_jobs.example_files import read_examples
from models.retrieval import RetrievalModel
from pipeline.cli import main
from pipeline.refresh import gentler, last_days_since_us
from schemas.artifacts import Artifact, ArtifactStore
from schemas.errors import UsageError
from schemas.examples import ExampleKey
from schemas.model_config import RetrievalConfig
from schemas.split import DAY_US, SplitBounds

BOUNDS = SplitBounds("time", 100, 3 * DAY_US, 4 * DAY_US, 0.0)


def test_the_last_days_are_counted_from_the_end_of_training() -> None:
    assert last_days_since_us(BOUNDS, 1) == 2 * DAY_US
    assert last_days_since_us(BOUNDS, 2) == DAY_US
    # The log begins just after the third day does.
    with pytest.raises(UsageError, match=r"--last-days 3 is all .* 3\.0 days"):
        last_days_since_us(BOUNDS, 3)
    per_user = SplitBounds("last_watch", 0, 5, 9, 0.0)
    with pytest.raises(UsageError, match="protocol time; with last_watch"):
        last_days_since_us(per_user, 1)


def test_a_warm_start_is_gentler() -> None:
    section = RetrievalConfig(
        table_learning_rate=0.5, learning_rate=0.25, warm_start_rate_share=0.5
    )
    assert gentler(section) == section.model_copy(
        update={"table_learning_rate": 0.25, "learning_rate": 0.125}
    )


def _refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2
) -> str:
    capsys.readouterr()
    assert main(arguments) == code
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and said.startswith("watchnext: ")
    return said


def test_what_is_no_retrieval_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = ["--workdir", str(tmp_path / "w")]
    warm = ["train", "retrieval", *work, "--warm-start-from"]
    said = _refused([*warm, str(tmp_path / "nowhere")], capsys)
    assert (
        f"{tmp_path}/nowhere is no completed version of retrieval_mod" in said
    )
    assert "such as WORKDIR/retrieval_model/2026" in said

    store = ArtifactStore(str(tmp_path / "old"))
    for stage in ("retrieval_model", "index"):
        with store.write(stage, {}, 1, {}) as writer:
            Path(writer.file("a.txt")).write_text("x")
    (version,), (index,) = map(store.versions, ("retrieval_model", "index"))
    # A folder above it: the message names the version.
    for folder in ("old", "old/retrieval_model", "old/retrieval_model/"):
        said = _refused([*warm, str(tmp_path / folder)], capsys)
        assert f"expected its folder, such as {version.path}." in said
    said = _refused([*warm, index.path], capsys)
    assert "is a version of index; expected one of retrieval_model" in said
    Path(version.file("a.txt")).write_text("y")
    assert "corrupt" in _refused([*warm, version.path], capsys, code=1)
    said = _refused(
        ["train", "ranking", *work, "--warm-start-from", version.path], capsys
    )
    assert "are for `train retrieval`" in said
    said = _refused(
        ["prepare", *work, "--since", "2026-01-05", "--last-days", "1"], capsys
    )
    assert "--since or --last-days, not both" in said
    assert not (tmp_path / "w").exists()


CONFIG = """
name: refresh
simulator: {num_users: 200, num_videos: 300, num_channels: 30, num_topics: 8,
            num_days: 9, requests_per_user_day: 0.4, start_date: 2024-01-01}
beam: {num_shards: 2}
retrieval_examples: {history_length: 10, search_tokens: 12,
                     examples_per_user: 5}
retrieval: {embedding_dim: 8, token_dim: 4, hidden_units: [16],
            num_negatives: 50, batch_size: 32, epochs: 2}
evaluation: {click_model: false}
"""
# Days 8 and 9 of the log are validation and test of the refreshed model,
# days 7 and 8 of the earlier one; day 7 is the new one.
NEW_DAY = datetime.date(2024, 1, 7)


def _versions(work: Path, stage: str) -> list[Artifact]:
    return ArtifactStore(str(work)).versions(stage)


@pytest.mark.slow
def test_a_day_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, path = tmp_path / "work", tmp_path / "refresh.yaml"
    path.write_text(CONFIG)

    def run(*arguments: str, config: Path | None = None) -> int:
        chosen = ["--config", str(config)] if config else []
        return main([*arguments, "--workdir", str(work), *chosen])

    earlier = ("--set", "split.test_start=2024-01-08")
    assert run("simulate", config=path) == 0
    assert run("prepare", *earlier, config=path) == 0
    assert run("train", "retrieval") == 0
    (old,) = _versions(work, "retrieval_model")

    warm = ("train", "retrieval", "--warm-start-from", old.path)
    assert run("prepare", config=path) == 0
    said = _refused([*warm, "--workdir", str(work), "--last-days", "1"], capsys)
    assert "`watchnext prepare --last-days N" in said
    assert run("prepare", "--last-days", "1") == 0
    (recent,) = _versions(work, "recent_examples")
    keys = [ExampleKey("event_time_us", "int64", ())]
    rows = read_examples(recent.files("train-"), keys)
    times = [int(row["event_time_us"]) for row in rows]
    days = {
        datetime.datetime.fromtimestamp(t / 1e6, datetime.UTC).date()
        for t in times
    }
    assert days == {NEW_DAY}
    assert len(times) == recent.counts["train_examples"] > 50

    other = ["--set", "retrieval.token_dim=6", "--num-workers", "2"]
    said = _refused([*warm, "--workdir", str(work), *other], capsys, code=1)
    assert "its retrieval.token_dim is 4, here it is 6" in said

    assert run(*warm, "--last-days", "1", config=path) == 0
    new = _versions(work, "retrieval_model")[-1]
    assert new.manifest["inputs"]["earlier_model"] == old.fingerprint()
    assert run(*warm, "--last-days", "1") == 0
    assert len(_versions(work, "retrieval_model")) == 2
    videos = [
        RetrievalModel.load(v.path).candidates()[0].shape[0] for v in (old, new)
    ]
    assert videos[0] < videos[1]
    # What follows goes on with it.
    assert run("index") == 0
    (index,) = _versions(work, "index")
    assert index.manifest["inputs"]["retrieval_model"] == new.fingerprint()
    # As two processes: the same examples, the same first weights.
    two = tmp_path / "two"
    work.rename(two)
    for stage in ("training", new.path.removeprefix(f"{work}/")):
        (two / stage).rename(tmp_path / stage.rsplit("/", 1)[-1])
    moved = old.path.replace(str(work), str(two))
    command = ["train", "retrieval", "--workdir", str(two)]
    options = ["--warm-start-from", moved, "--last-days", "1"]
    assert main([*command, *options, "--num-workers", "2"]) == 0
    again = _versions(two, "retrieval_model")[-1]
    assert again.key == new.key
    history = [
        json.loads((Path(v) / "history.json").read_text())
        for v in (again.path, tmp_path / new.path.rsplit("/", 1)[-1])
    ]
    for one, other in zip(*history, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
