"""New versions while clients ask, and versions that must not be served."""

import shutil
import signal
import threading
import time

import numpy as np
import pytest

from benchmarks.server_process import ServerProcess
from benchmarks.version_swap import load, warm_up_requests
from models.keras_setup import tf
from pipeline.cli import main
from pipeline.serve import grpc_services
from pipeline.serve.served_models import (
    NotServedError,
    ServedModels,
    State,
    one_line,
)
from schemas.errors import ArtifactError, UsageError
from tests.pipeline.serve.conftest import FOUND, publish_retrieval
from tests.pipeline.serve.rest_client import predict

BIAS = 1000.0


@pytest.fixture
def work(made, tmp_path):
    """A copy to write to."""
    return shutil.copytree(made, tmp_path / "work")


@pytest.fixture
def inputs(loaded):
    """A request of the stand-in for retrieval: three watches."""
    signature = loaded.retrieval.signatures["serving_default"]
    arrays = {}
    for name, spec in signature.structured_input_signature[1].items():
        absent = b"" if spec.dtype == tf.string else 0
        shape = [1] * spec.shape.rank
        dtype = object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype
        arrays[name] = np.full(shape, absent, dtype)
    arrays["watch_history_video_id"] = np.array([[b"a", b"b", b"c"]], object)
    return arrays


def test_the_newest_serves(work, inputs):
    models = ServedModels(f"{work}/serving", lambda _: None)
    publish_retrieval(work, 2, BIAS)
    publish_retrieval(work, 10, 2 * BIAS)
    before = models.get("retrieval")
    models.reload()
    after = models.get("retrieval")
    # 10 comes after 2, and nothing is lost for those that began before.
    assert (before.number, after.number) == (1, 10)
    assert after.predict(inputs)["scores"][0, 0] == 2 * BIAS + 30
    assert before.predict(inputs)["scores"][0, 0] == 30
    states = {n: s for n, (s, _) in models.states("retrieval").items()}
    assert states == {10: State.AVAILABLE, 1: State.END}
    with pytest.raises(NotServedError, match="version 1 is not being served"):
        models.get("retrieval", 1)
    # Withdrawn: the one before serves again.
    shutil.rmtree(work / "serving/retrieval/10")
    models.reload()
    assert models.get("retrieval").number == 2


def test_folders_that_are_no_versions_are_left_alone(work):
    models = ServedModels(f"{work}/serving", lambda _: None)
    folder = work / "serving/retrieval"
    shutil.copytree(folder / "1", folder / "2.partial")
    shutil.copytree(folder / "1", folder / "3")
    (folder / "3/saved_model.pb").rename(folder / "3/later")
    models.reload()
    assert models.get("retrieval").number == 1
    (folder / "3/later").rename(folder / "3/saved_model.pb")
    models.reload()
    assert models.get("retrieval").number == 3


@pytest.mark.parametrize("damage", ["graph", "variables", "warm-up"])
def test_a_broken_version_is_refused_and_the_old_one_stays(
    work, inputs, damage
):
    said = []
    models = ServedModels(f"{work}/serving", said.append)
    folder = work / "serving/retrieval"
    shutil.copytree(folder / "1", folder / "2.partial")
    broken = {
        "graph": "saved_model.pb",
        "variables": "variables/variables.index",
        "warm-up": "assets.extra/tf_serving_warmup_requests",
    }[damage]
    (folder / "2.partial" / broken).write_bytes(b"nonsense" * 9)
    (folder / "2.partial").rename(folder / "2")
    models.reload()
    assert models.get("retrieval").predict(inputs)["scores"][0, 0] == 30
    state, why = models.states("retrieval")[2]
    assert state is State.END
    assert "retrieval/2 cannot be served" in why
    assert said[-1] == why
    # It is said once, not each second; a later version is taken up.
    models.reload()
    assert said.count(why) == 1
    publish_retrieval(work, 3, BIAS)
    models.reload()
    assert models.get("retrieval").number == 3


def test_a_folder_out_of_reach_is_said_and_looked_at_again(work, monkeypatch):
    said, stop, looks = [], threading.Event(), []
    models = ServedModels(f"{work}/serving", said.append)

    def reload():
        looks.append(1)
        if len(looks) == 3:
            stop.set()
        raise (
            OSError("gone"),
            tf.errors.NotFoundError(None, None, "gone"),
        )[len(looks) % 2]

    monkeypatch.setattr(models, "reload", reload)
    models.watch(0.01, stop)
    assert len(looks) == 3
    assert said[-3:] == [f"{work}/serving is unreadable: gone"] * 3


def test_nothing_to_serve(work, tmp_path):
    with pytest.raises(ArtifactError, match="Run `watchnext export`"):
        ServedModels(f"{tmp_path}/nowhere", lambda _: None)
    (work / "serving/ranking/1/saved_model.pb").write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match="ranking/1 cannot be served"):
        ServedModels(f"{work}/serving", lambda _: None)


def test_tensorflow_says_its_reason_in_one_line():
    said = (
        "Graph execution error:\n\nDetected at node S defined at (most recent "
        "call last):\n<stack traces unavailable>\n"
        "{{function_node __inference_f_9}} pos 1 out of range.\n\t [[{{node"
    )
    assert one_line(ValueError(said)) == "pos 1 out of range"
    assert one_line(ValueError()) == "ValueError"


def swapped(work, seconds):
    """Loads a server with requests, and a new version of retrieval."""
    # The warm-up request watched the five of `FOUND`: 50, by version's bias.
    versions = {50.0: 1, BIAS + 50.0: 2}
    seen = set()

    def is_right(model, outputs):
        numbers = [int(v[1:]) for v in FOUND]
        if model == "ranking":
            return outputs["score"][0, : len(FOUND)].tolist() == numbers
        if model == "recommender":
            best = sorted(numbers, reverse=True)[:2]
            return outputs["score"][0].tolist() == best
        first = float(outputs["scores"][0, 0])
        seen.add(versions.get(first))
        return first in versions

    with ServerProcess(work) as server:

        def publish():
            publish_retrieval(work, 2, BIAS)
            end = time.monotonic() + 120
            while 2 not in seen:
                assert time.monotonic() < end
                time.sleep(0.1)

        requests = warm_up_requests(work / "serving")
        measured = load(server, requests, seconds, publish, is_right)
        assert server.is_running
    return measured, seen


@pytest.mark.parametrize(
    "seconds", [4.0, pytest.param(60.0, marks=pytest.mark.slow)]
)
def test_no_request_fails_while_versions_change(work, seconds):
    measured, seen = swapped(work, seconds)
    assert measured["failed_requests"] == 0, measured["failures"]
    assert measured["requests"] > 10 * seconds
    assert seen == {1, 2}
    assert set(measured["answered_by"]) == {
        "REST",
        "gRPC, version 1",
        "gRPC, version 2",
    }


@pytest.mark.parametrize(
    "by",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
)
def test_requests_that_have_begun_are_answered_at_the_end(made, row, by):
    with ServerProcess(made) as server:
        answers = []

        def ask():
            answers.append(predict(server, {"instances": [row] * 256}))

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        time.sleep(0.3)
        assert server.stop(by) == 0
        for client in clients:
            client.join()
    assert [status for status, _ in answers] == [200] * 4
    assert server.said[-1] == "stopping"


def test_a_taken_port_is_said(server, made, capsys):
    port = server.rest_port
    command = ["serve", f"--workdir={made}", f"--port={port}"]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"watchnext: 127.0.0.1:{port} is taken")
    address = f"127.0.0.1:{server.grpc_port}"
    with pytest.raises(UsageError, match=f"{address} is taken .*--grpc-port"):
        grpc_services.start(None, address)
