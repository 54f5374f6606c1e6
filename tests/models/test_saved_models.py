"""SavedModels on disk: versions, warm-up requests, the command line tool."""

import os
import subprocess
import sys

import pytest

from models.keras_setup import tf
from models.lagged_table import COLUMNS
from models.saved_models import WARM_UP_FILE
from models.serving import export_retrieval
from schemas.errors import ArtifactError


@pytest.mark.slow
def test_the_command_line_tool_shows_and_runs_it(exported, world):
    tool = os.path.join(os.path.dirname(sys.executable), "saved_model_cli")
    shown = subprocess.run(
        [tool, "show", "--dir", exported.ranking, "--all"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert "expected_watch_time_s" in shown.stdout
    assert "serialized_examples" in shown.stdout
    for name in COLUMNS:  # A client is not asked for what it cannot know.
        assert name not in shown.stdout
    run = subprocess.run(
        [
            *(tool, "run", "--dir", exported.retrieval),
            *("--tag_set", "serve", "--signature_def", "serialized_examples"),
            "--input_examples",
            "examples=[{'request_time_us': [1600000000000000], "
            "'watch_history_video_id': [b'v1']}]",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "Result for output key video_ids" in run.stdout


@pytest.mark.parametrize("model", ["retrieval", "ranking", "recommender"])
def test_warm_up_requests_are_answered(exported, model):
    from tensorflow_serving.apis import prediction_log_pb2

    folder = getattr(exported, model)
    records = list(tf.data.TFRecordDataset(os.path.join(folder, WARM_UP_FILE)))
    signatures = tf.saved_model.load(folder).signatures
    called = []
    for record in records:
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        assert request.model_spec.name == model
        called.append(request.model_spec.signature_name)
        answer = signatures[called[-1]](
            **{
                n: tf.constant(tf.make_ndarray(p))
                for n, p in request.inputs.items()
            }
        )
        assert all(len(values) == 1 for values in answer.values())
    assert sorted(called) == sorted(signatures)


def test_versions_are_numbers_and_never_replaced(exported, world):
    folder = os.path.dirname(exported.retrieval)
    assert os.listdir(folder) == ["3"]
    arguments = (
        world.retrieval,
        world.transform,
        world.inputs,
        world.video_ids,
        folder,
    )
    with pytest.raises(ArtifactError, match="there already"):
        export_retrieval(*arguments, 3, top_k=world.top_k)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        export_retrieval(*arguments, 0, top_k=world.top_k)


def test_a_failed_export_leaves_no_version(world, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(tf.io, "TFRecordWriter", fail)
    with pytest.raises(OSError, match="disk full"):
        export_retrieval(
            world.retrieval,
            world.transform,
            world.inputs,
            world.video_ids,
            str(tmp_path),
            1,
            top_k=world.top_k,
        )
    assert os.listdir(tmp_path) == []
