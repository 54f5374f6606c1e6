"""Which processes train together: the cluster of TF_CONFIG.

TF_CONFIG describes it as everywhere in TensorFlow:

    {"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
     "task": {"type": "worker", "index": 0}}

Each process is started with the same command and its own task.
"""

import dataclasses
import json
import os

from schemas.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Worker:
    """A process of the cluster, as TensorFlow calls it and where it is."""

    job: str
    number: int
    address: str


@dataclasses.dataclass(frozen=True)
class Task:
    """This process's place in the cluster.

    `workers` are all of its processes, a chief first; empty where a single
    one runs without TF_CONFIG.
    """

    num_workers: int = 1
    index: int = 0
    workers: tuple[Worker, ...] = dataclasses.field(default=(), compare=False)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes; the first worker does."""
        return self.index == 0

    def name(self, index: int) -> str:
        """How a worker is named to people, as in 'worker 1 (10.0.0.2:2222)'."""
        return f"worker {index} ({self.workers[index].address})"


def current_task() -> Task:
    """Reads TF_CONFIG; a single chief where it is not set.

    Raises:
      UsageError: TF_CONFIG is malformed; says what is wrong with it.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return Task()
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"TF_CONFIG is not JSON: {error}.") from error
    if not isinstance(value, dict) or not value.get("cluster"):
        return Task()  # A task without a cluster is a single process.
    cluster, task = value["cluster"], value.get("task", {})
    others = sorted(set(cluster) - {"chief", "worker"})
    if others:
        raise UsageError(
            "TF_CONFIG's cluster may have 'chief' and 'worker', received "
            f"{', '.join(others)} as well. Parameter servers and evaluators "
            "are not used here."
        )
    chiefs, workers = cluster.get("chief", []), cluster.get("worker", [])
    addresses = [*chiefs, *workers]
    if len(chiefs) > 1 or len(set(addresses)) < len(addresses):
        raise UsageError(
            "TF_CONFIG needs at most one chief and an address of its own for "
            f"each process, received {addresses}."
        )
    kind, index = task.get("type"), task.get("index")
    group = {"chief": chiefs, "worker": workers}.get(kind, [])
    if not isinstance(index, int) or not 0 <= index < len(group):
        raise UsageError(
            f"TF_CONFIG's task {task} is not in its cluster of "
            f"{len(chiefs)} chief(s) and {len(workers)} worker(s): expected "
            "'type' chief or worker, and an 'index' from 0."
        )
    before = len(chiefs) if kind == "worker" else 0
    named = [
        *(Worker("chief", i, address) for i, address in enumerate(chiefs)),
        *(Worker("worker", i, address) for i, address in enumerate(workers)),
    ]
    return Task(len(addresses), before + index, tuple(named))
