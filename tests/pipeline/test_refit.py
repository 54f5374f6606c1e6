"""The refit: after the epoch is chosen, validation is learnt from as well."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.example_files import read_examples
from models.retrieval import RetrievalModel
from pipeline.cli import main
from pipeline.run import PREPARED
from schemas.artifacts import Artifact, ArtifactStore
from schemas.examples import ExampleKey
from schemas.split import DAY_US, SplitBounds

CONFIG = """
simulator: {num_users: 150, num_videos: 200, num_channels: 30, num_topics: 8,
            num_days: 6, requests_per_user_day: 0.5}
beam: {num_shards: 2}
retrieval_examples: {history_length: 10, search_tokens: 12,
                     examples_per_user: 40}
retrieval: {embedding_dim: 8, token_dim: 4, hidden_units: [16],
            num_negatives: 50, batch_size: 32, epochs: 2}
"""
KEYS = [
    ExampleKey("event_time_us", "int64", ()),
    ExampleKey("label", "int64", ()),
    ExampleKey("example_age", "float32", ()),
]


@pytest.mark.slow
def test_a_refit_learns_from_validation_too(tmp_path: Path) -> None:
    work, path = tmp_path / "work", tmp_path / "refit.yaml"
    path.write_text(CONFIG)
    refit = ("--set", "retrieval.refit_epochs=3")

    def run(*arguments: str, work: Path = work) -> None:
        options = ["--workdir", str(work), "--config", str(path)]
        assert main([*arguments, *options]) == 0

    def newest(stage: str) -> Artifact:
        return ArtifactStore(str(work)).versions(stage)[-1]

    run("simulate")
    run("prepare")
    assert not (work / "refit_examples").exists()
    run("train", "retrieval")
    chosen = newest("retrieval_model")
    run("prepare", *refit)
    run("train", "retrieval", *refit)
    model = newest("retrieval_model")
    examples = newest("refit_examples")
    assert model.manifest["inputs"]["refit_examples"] == examples.fingerprint(
        "train-"
    )

    # Its labels: those of training, and the validation day's.
    bounds = SplitBounds.read(newest("split").file("split.json"))
    trained, both = (
        _rows(version) for version in (newest("retrieval_examples"), examples)
    )
    times = both[:, 0]
    assert times.max() < bounds.valid_end_us
    # A watch over midnight ended in no part, and then in the longer one.
    new = both[times >= bounds.train_end_us - DAY_US // 24]
    assert len(new) > 100
    assert len(both) >= len(trained) + np.sum(times >= bounds.train_end_us)
    # Its youngest are 0 old: the window ends with validation.
    window = bounds.valid_end_us - bounds.log_start_us
    ages = (bounds.valid_end_us - times) / window
    np.testing.assert_allclose(both[:, 2], ages, atol=1e-5)

    # The same epochs first, then three more, and other weights.
    first, then = (
        json.loads(Path(version.file("history.json")).read_text())
        for version in (chosen, model)
    )
    assert then[:2] == first and len(then) == 5
    assert [sorted(epoch) for epoch in then[2:]] == 3 * [["train_loss"]]
    assert model.counts["best_epoch"] == chosen.counts["best_epoch"]
    before, after = (
        np.asarray(RetrievalModel.load(version.path).candidates()[0])
        for version in (chosen, model)
    )
    assert np.abs(after - before).max() > 1e-3

    # Two workers go on from the same weights, on the same batches.
    two = tmp_path / "two"
    for stage in {*PREPARED, "events"} & {p.name for p in work.iterdir()}:
        shutil.copytree(work / stage, two / stage)
    run("train", "retrieval", *refit, "--num-workers", "2", work=two)
    (both,) = ArtifactStore(str(two)).versions("retrieval_model")
    found = json.loads(Path(both.file("history.json")).read_text())
    for epoch, other in zip(then, found, strict=True):
        assert epoch["train_loss"] == pytest.approx(
            other["train_loss"], rel=1e-5
        )


def _rows(version: Artifact) -> np.ndarray:
    """Time, label and age of each training example, float64 [n, 3]."""
    rows = read_examples(version.files("train-"), KEYS)
    return np.array(
        [[float(row[key.name]) for key in KEYS] for row in rows], np.float64
    )
