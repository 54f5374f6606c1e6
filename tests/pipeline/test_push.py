"""What is refused at the gates, and that what is published goes on serving."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from beam_jobs.transform_graph import TransformGraph
from models.keras_setup import tf
from models.ranking import RankingModel
from models.retrieval import RetrievalModel
from models.retrieval_evaluation import ExactRanker, ModelScorer, evaluate
from pipeline import push
from pipeline.cli import main
from pipeline.config import load_config
from pipeline.model_stages import ModelStages
from pipeline.model_training import Trainer, Workers
from pipeline.publishing import published, record_of
from pipeline.run import Run
from pipeline.validation_requests import Cases, ValidationRequests
from schemas.artifacts import ArtifactStore


def _stages(work: Path, *overrides: str) -> ModelStages:
    config = load_config(str(work / "config.yaml"), overrides)
    return ModelStages(Run(config, ArtifactStore(str(work))))


def _serving(work: Path) -> dict[str, str]:
    """Name -> sha256 of everything that a server sees."""
    return {
        str(path.relative_to(work)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted((work / "serving").rglob("*"))
        if path.is_file()
    }


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def older(work: Path, tmp_path: Path) -> Path:
    """The same, but what is published counts as that of another export."""
    copy = tmp_path / "work"
    shutil.copytree(work, copy)
    for key in copy.glob("serving/*/1/assets.extra/watchnext_export"):
        key.write_text("another")
    return copy


def test_what_is_published_tells_what_it_showed(work: Path) -> None:
    parts = _stages(work).parts()
    for model in ("retrieval", "ranking", "recommender"):
        folder = published(str(work), model)
        assert folder == f"{work}/serving/{model}/1"
        record = record_of(folder)
        assert all(gate["passed"] for gate in record["gates"])
        for name, part in parts.items():
            assert record["parts"][name] == part.fingerprint()


def test_a_refused_push_touches_nothing(
    older: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _serving(older)
    command = ["export", "--workdir", str(older)]
    closed = [
        *("--set", "publishing.min_calibration=5"),
        *("--set", "publishing.max_calibration=6"),
    ]
    assert main([*command, *closed]) == 1
    said = _said(capsys)
    assert said.startswith("watchnext: Not published, 1 of 16 gates are closed")
    # By hand: of all impressions, what the best epoch's history says.
    (history,) = older.glob("ranking_model/*/history.json")
    calibration = json.loads(history.read_text())[0]["calibration"]
    assert f"ranking.calibration is {calibration:.4f}, must be between" in said
    assert _serving(older) == before


@pytest.mark.slow
def test_the_version_that_serves_is_asked_the_same(
    older: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _serving(older)
    assert main(["export", "--workdir", str(older)]) == 0
    assert "gates: 16 of 16 measured, all passed" in capsys.readouterr().out
    assert {n: d for n, d in _serving(older).items() if n in before} == before
    gates = {
        gate["name"]: gate
        for gate in record_of(f"{older}/serving/ranking/2")["gates"]
    }
    # It is a copy of the same models: 1.1 times the same loss.
    loss = gates["ranking.weighted_per_user_loss"]
    assert loss["bound"] == f"at most {1.1 * loss['measured']:.4f}"
    hits = gates["retrieval.hit_rate"]
    assert hits["bound"] == f"at least {0.9 * hits['measured']:.4f}"


def test_requests_of_validation_are_those_that_training_measures(
    work: Path,
) -> None:
    """Hit rate by raw requests and SavedModel = by stored examples and model.

    The SavedModel leaves out the watches of the request, at most ten; so does
    the removal of what was seen, of users who have watched less than ten.
    """
    stages = _stages(work)
    cases = ValidationRequests(stages.data, 1000).cases
    examples = stages.data.retrieval_examples()
    assert len(cases.watched) == examples.counts["valid_examples"]
    found = push._ask(
        "retrieval", published(str(work), "retrieval"), cases.requests
    )
    trainer = Trainer(stages.run, stages.data, Workers())
    model = RetrievalModel.load(stages.retrieval_model().path)
    batches = trainer.retrieval_batches(examples, "valid")
    few_seen = 0
    for batch in batches.unbatch().batch(1):
        time_us = int(batch["event_time_us"][0])
        rows = np.flatnonzero(cases.requests["request_time_us"] == time_us)
        history = cases.requests["watch_history_video_id"][rows]
        if len(rows) != 1 or np.all(history != b""):
            continue
        few_seen += 1
        expected = evaluate(ExactRanker(ModelScorer(model)), [batch], (30,))
        case = Cases({}, cases.watched[rows])
        hit = push.hit_rate({"video_ids": found["video_ids"][rows]}, case)
        assert hit == expected["hit_rate_at_30_seen_removed"]
    assert few_seen >= 10


def _with_weights(
    work: Path, stage: str, model: RetrievalModel | RankingModel
) -> None:
    """Puts other weights in the place of a trained model's, as a new version.

    With the same key: a stage finds the newest.
    """
    store = ArtifactStore(str(work))
    trained = store.versions(stage)[-1].manifest
    with store.write(
        stage, trained["config"], trained["seed"], trained["inputs"]
    ) as writer:
        model.save(writer.path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "closed"),
    [
        (np.nan, ("ranking.not_finite", "ranking.calibration")),
        # e^5 minutes for every video: neither calibrated nor an order.
        (5.0, ("ranking.constant_scores", "ranking.calibration")),
    ],
)
def test_a_broken_ranking_model_is_refused(
    older: Path,
    capsys: pytest.CaptureFixture[str],
    head: float,
    closed: tuple[str, ...],
) -> None:
    model = RankingModel.load(_stages(older).ranking_model().path)
    model.head.kernel.assign(tf.zeros_like(model.head.kernel))
    model.head.bias.assign(tf.fill(model.head.bias.shape, head))
    _with_weights(older, "ranking_model", model)
    before = _serving(older)
    assert main(["export", "--workdir", str(older)]) == 1
    said = _said(capsys)
    for gate in (*closed, closed[0].replace("ranking", "recommender")):
        assert f"{gate} is" in said
    assert _serving(older) == before


@pytest.mark.slow
def test_a_worse_retrieval_model_is_refused(
    older: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that has learnt nothing, and the index that belongs to it."""
    still = [
        *("--set", "retrieval.learning_rate=1e-12"),
        *("--set", "retrieval.table_learning_rate=1e-12"),
        *("--workdir", str(older)),
    ]
    assert main(["train", "retrieval", *still]) == 0
    assert main(["index", *still]) == 0
    before = _serving(older)
    assert main(["export", *still]) == 1
    assert "retrieval.hit_rate is 0." in _said(capsys)
    assert _serving(older) == before


@pytest.mark.slow
def test_onnx_answers_what_the_transform_graph_gives(older: Path) -> None:
    """The next watches' requests, raw: graph, then onnxruntime."""
    assert main(["export", "--onnx", "--workdir", str(older)]) == 0
    (onnx,) = ArtifactStore(str(older)).versions("onnx")
    drawn = [f"{m}.{k}" for m in _NETWORKS for k in ("onnx", "png", "svg")]
    assert onnx.names() == drawn
    stages = _stages(older)
    cases = ValidationRequests(stages.data, 1000).cases
    session = onnxruntime.InferenceSession(onnx.file("query_tower.onnx"))
    names = [i.name for i in session.get_inputs()]
    graph = TransformGraph(stages.data.transform_graph, names)
    (found,) = session.run(None, graph(cases.requests))
    saved = tf.saved_model.load(published(str(older), "retrieval"))
    signature = saved.signatures["query_embedding"]
    wanted = signature.structured_input_signature[1]
    expected = signature(
        **{
            n: tf.constant(cases.requests[n], t.dtype)
            for n, t in wanted.items()
        }
    )["query_embedding"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


_NETWORKS = ("query_tower", "ranking")
_SWAPPED = (
    "vocabularies",
    "transform",
    "retrieval_model",
    "ranking_model",
    "index",
)


@pytest.mark.slow
def test_folders_of_other_runs_are_refused(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user copies one stage's folder of another run: 20 wrong, 5 right."""
    runs = [work]
    for seed in range(2, 6):
        runs.append(tmp_path / f"run{seed}")
        options = [
            *("--config", str(work / "config.yaml")),
            *("--workdir", str(runs[-1]), "--set", f"seed={seed}"),
        ]
        steps = ("simulate", "prepare", "train retrieval", "index")
        for command in (*steps, "train ranking"):
            assert main([*command.split(), *options]) == 0
    codes: dict[int, list[int]] = {0: [], 1: []}
    for part in _SWAPPED:
        for number, run in enumerate(runs):
            mixed = tmp_path / "mixed"
            shutil.copytree(work, mixed)
            shutil.rmtree(mixed / part)
            shutil.copytree(run / part, mixed / part)
            before = _serving(mixed)
            code = main(["export", "--workdir", str(mixed)])
            assert _serving(mixed) == before
            if number:
                assert f"no completed {part!r}" in _said(capsys)
            codes[min(number, 1)].append(code)
            shutil.rmtree(mixed)
    assert codes == {0: [0] * 5, 1: [2] * 20}
