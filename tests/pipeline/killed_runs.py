"""Runs of a small training that are sent signals: a program of the tests.

It is forked for each run, so that TensorFlow is imported once for all of
them. Reads a job as JSON from its argument, writes what happened to `out`.
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from models.inputs import max_lengths
from models.keras_setup import tf
from models.lanes import training_dataset
from models.retrieval import RetrievalModel
from pipeline.checkpoints import Checkpoints
from pipeline.distribution import (
    _free_addresses,
    current_task,
    make_strategy,
    worker_rows,
)
from pipeline.training import train
from schemas.errors import WatchnextError
from schemas.examples import retrieval_keys
from schemas.features import Feature, FeatureSet
from schemas.model_config import RetrievalConfig

VIDEOS = 40
FEATURES = FeatureSet((Feature("watch_history", "bag", "query", "video", 4),))
CONFIG = RetrievalConfig(
    lanes=6,  # For 1, 2 and 3 workers.
    embedding_dim=8,
    recency_bags=(4, 1),
    hidden_units=(16,),
    dropout=0.2,
    num_negatives=20,
    batch_size=30,  # Of 1, 2 and 3 workers alike.
    table_optimizer="lazy_adam",
    epochs=4,
    patience=4,
    selection_metric="hit_rate",
)


def killed_inside(point: str, step: int) -> None:
    """Makes this process kill itself inside the writing of a checkpoint."""

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    save, write = Checkpoints.save, tf.train.Checkpoint.write

    def torn(self: Any, path: str, *args: Any) -> Any:
        # Half of the data and no index, as TensorFlow's own first moments.
        write(self, path, *args)
        os.remove(f"{path}.index")
        data = Path(f"{path}.data-00000-of-00001")
        data.write_bytes(data.read_bytes()[:1000])
        die()

    def saving(self: Checkpoints, at: int, *args: Any) -> None:
        if at >= step:
            if point == "data":
                tf.train.Checkpoint.write = torn
            else:  # Weights without a manifest.
                tf.io.gfile.rename = die
        save(self, at, *args)

    Checkpoints.save = saving


def work(job: dict[str, Any], attempt: dict[str, Any], folder: Path) -> None:
    """One worker's process, from its strategy to the hash of its weights."""
    strategy = make_strategy()
    me = current_task()
    if attempt.get("inside") and me.is_chief:
        killed_inside(attempt["inside"], attempt["after"])
    changes = {"checkpoint_every": job["checkpoint_every"]}
    config = CONFIG.model_copy(update=changes)
    keys = retrieval_keys(FEATURES, "train", example_age=False)
    progress = folder / f"progress-{me.index}"
    per_epoch = 10

    def batches(epoch: int, skip: int) -> Any:
        source = training_dataset(
            job["files"],
            keys,
            config.batch_size,
            padded_lengths=max_lengths(FEATURES),
            seed=1,
            epoch=epoch,
            skip_batches=skip,
            rows=worker_rows(strategy),
            num_lanes=config.lanes,
        )
        for step, batch in enumerate(source, (epoch - 1) * per_epoch + skip):
            progress.write_text(str(step))
            yield batch
            time.sleep(job.get("step_s", 0.0))

    def evaluate(model: RetrievalModel) -> dict[str, float]:
        (folder / "evaluating").touch()
        time.sleep(attempt.get("evaluation_s", 0.0))
        history = {"watch_history": tf.constant([[3, -1, -1, -1]], tf.int64)}
        table, bias = model.candidates()
        scores = model.query_embedding(history) @ tf.transpose(table) + bias
        return {"hit_rate": float(scores[0, 0])}

    workdir = Path(job["out"]) / attempt.get("workdir", "work")
    result = train(
        lambda: RetrievalModel(
            FEATURES, {"video": VIDEOS}, config, 1, example_age=False
        ),
        batches,
        evaluate,
        metric="hit_rate",
        config=config,
        workdir=str(
            workdir / f"of-{me.index}" if job.get("apart") else workdir
        ),
        strategy=strategy,
    )
    digest = hashlib.sha256(repr(result.best_epoch).encode())
    for v in (*result.model.table_variables, *result.model.dense_variables):
        digest.update(np.asarray(strategy.experimental_local_results(v)[0]))
    # The last checkpoint has the optimisers' state as well.
    last = tf.train.load_checkpoint(str(workdir / "checkpoints" / "step-40"))
    for name in sorted(last.get_variable_to_shape_map()):
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH":
            digest.update(np.asarray(last.get_tensor(name)))
    (folder / f"hash-{me.index}").write_text(digest.hexdigest())


def start(
    job: dict[str, Any], attempt: dict[str, Any], folder: Path, index: int
) -> int:
    """Forks a worker; its output goes to a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with (folder / f"log-{index}").open("w", buffering=1) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            if job["workers"] > 1:
                cluster = {"worker": attempt["addresses"]}
                task = {"type": "worker", "index": index}
                value = {"cluster": cluster, "task": task}
                os.environ["TF_CONFIG"] = json.dumps(value)
            try:
                work(job, attempt, folder)
                code = 0
            except WatchnextError as error:  # As the command line does.
                print(f"watchnext: {error}", file=sys.stderr, flush=True)
                code = error.exit_code
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


def wait_for(path: Path, step: int, pids: dict[int, int]) -> None:
    """Until a worker is at a step, or one has ended."""
    while True:
        with contextlib.suppress(OSError, ValueError):
            if int(path.read_text()) >= step:
                return
        with contextlib.suppress(ChildProcessError):
            for pid in pids.values():
                if os.waitid(
                    os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
                ):
                    return
        time.sleep(0.001)


def run(job: dict[str, Any], attempt: dict[str, Any], folder: Path) -> Any:
    """All workers of one run, and what they are sent."""
    folder.mkdir(parents=True)
    attempt["addresses"] = _free_addresses(job["workers"])
    number = getattr(signal, attempt.get("signal") or "SIGKILL")
    started = range(job["workers"] - attempt.get("missing", 0))
    pids = {i: start(job, attempt, folder, i) for i in started}
    if attempt.get("signal"):
        wait_for(folder / "progress-0", attempt["after"], pids)
        while attempt.get("evaluation_s") and (
            not (folder / "evaluating").exists()
        ):
            time.sleep(0.01)
        time.sleep(attempt.get("delay_s", 0.0))
        for index in attempt["to"]:
            os.kill(pids[index], number)
    since, codes, seconds = time.monotonic(), {}, {}
    stopped = attempt["to"] if number == signal.SIGSTOP else []
    for index in [i for i in pids if i not in stopped]:
        status = os.waitpid(pids[index], 0)[1]
        codes[index] = os.waitstatus_to_exitcode(status)
        seconds[index] = time.monotonic() - since
    for index in stopped:
        os.kill(pids[index], signal.SIGKILL)
        os.waitpid(pids[index], 0)
    texts = {kind: {} for kind in ("log", "hash", "progress")}
    for kind, found in texts.items():
        for index in pids:
            path = folder / f"{kind}-{index}"
            found[index] = path.read_text() if path.exists() else ""
    return {"codes": codes, "seconds": seconds, **texts}


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    root = Path(task["out"])
    results = [
        run(task, attempt, root / f"run-{i}")
        for i, attempt in enumerate(task["attempts"])
    ]
    (root / "results.json").write_text(json.dumps(results))
