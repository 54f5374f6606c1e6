"""One process of `retrieval_step.py`; what it measures is its first argument.

The step is the product's own, `models.training_step`, on the model of the
paper's size; only the stock optimiser of `stock_adam` is not ours.
"""

import argparse
import itertools
import json
import resource
import time
from collections.abc import Callable, Sequence

import numpy as np

from models.keras_setup import tf
from pipeline.experiments.step_bench import (
    BAG,
    BATCH,
    DIM,
    HIDDEN,
    NEGATIVES,
    StepBench,
)

_FLOAT_BYTES = 4


class Roofline:
    """What no such step can do without.

    Products: of each layer forward, and for the gradients of its weights and
    of its input; the logits of the negatives likewise. Bytes: rows of the
    bags, labels and negatives are read and written once to be used, and to be
    updated read, written and their gradients read once; at the rate at which
    rows drawn at random from the same table are gathered.
    """

    def __init__(self, table: tf.Variable) -> None:
        sizes = (DIM, *HIDDEN, DIM)
        shapes = [*itertools.pairwise(sizes), (DIM, NEGATIVES)]
        data = [
            (
                tf.random.normal([BATCH, n]),
                tf.random.normal([n, m]),
                tf.random.normal([BATCH, m]),
            )
            for n, m in shapes
        ]

        def products() -> list[tf.Tensor]:
            return [
                product
                for x, w, g in data
                for product in (
                    tf.matmul(x, w),
                    tf.matmul(x, g, transpose_a=True),
                    tf.matmul(g, w, transpose_b=True),
                )
            ]

        self._products = tf.function(products)
        self._gather = tf.function(lambda ids: tf.gather(table, ids))
        self._rows = BATCH * BAG + BATCH + NEGATIVES
        self._classes = int(table.shape[0]) - 1
        self._rng = np.random.default_rng(1)
        self._products()
        self.gather_seconds()

    def product_seconds(self) -> float:
        """Time of the matrix products."""
        return _timed(self._products)

    def gather_seconds(self) -> float:
        """Time of gathering as many rows as a step does."""
        ids = self._rng.integers(1, self._classes + 1, size=self._rows)
        rows = tf.constant(ids)
        return _timed(lambda: self._gather(rows))

    def gb_per_s(self, gather_s: float) -> float:
        """Bytes read and written by a gather, per second."""
        return 2 * self._rows * DIM * _FLOAT_BYTES / gather_s / 1e9

    @staticmethod
    def seconds(product_s: float, gather_s: float) -> float:
        # 2 moves of each row to use it, 3 to update it: 5/2 of a gather.
        return product_s + 2.5 * gather_s


def turns(classes: Sequence[int], optimizer: str, rounds: int) -> dict:
    """Steps at several sizes and the roofline of the last, taking turns."""
    benches = {n: StepBench(n, optimizer) for n in classes}
    largest = benches[classes[-1]]
    roofline = Roofline(largest.model.embeddings.tables["video"])
    measured: dict[str, Callable[[], float]] = {
        f"step_{n}": bench.seconds for n, bench in benches.items()
    }
    measured["products"] = roofline.product_seconds
    measured["gather"] = roofline.gather_seconds
    times: dict[str, list[float]] = {name: [] for name in measured}
    cpu: dict[str, float] = dict.fromkeys(measured, 0.0)
    for _ in range(rounds):
        for name, measure in measured.items():
            started = time.process_time()
            times[name].append(measure())
            cpu[name] += (time.process_time() - started) / rounds
    seconds = {name: float(np.median(t)) for name, t in times.items()}
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "roofline_s": roofline.seconds(seconds["products"], seconds["gather"]),
        "roofline_cpu_s": roofline.seconds(cpu["products"], cpu["gather"]),
        "gather_gb_per_s": roofline.gb_per_s(seconds["gather"]),
    }


def stock_adam(classes: Sequence[int], _: str, rounds: int) -> dict:
    """Steps of the same model with tf_keras's own Adam on the tables."""
    bench = StepBench(classes[-1], "stock_adam")
    started = time.process_time()
    times = [bench.seconds() for _ in range(rounds)]
    cpu = (time.process_time() - started) / rounds
    return {"seconds": float(np.median(times)), "cpu_seconds": cpu}


def memory(classes: Sequence[int], optimizer: str, rounds: int) -> dict:
    """Peak memory of building and training, above that of a tiny model."""
    StepBench(100, optimizer)
    before = _peak_bytes()
    bench = StepBench(classes[-1], optimizer)
    for _ in range(rounds):
        bench.seconds()
    return {
        "before_bytes": before,
        "peak_bytes": _peak_bytes(),
        "state_bytes": bench.state_bytes(),
    }


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    tf.nest.map_structure(lambda tensor: tensor.shape, work())
    return time.perf_counter() - started


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


MEASURES = {f.__name__: f for f in (turns, stock_adam, memory)}


def main() -> None:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--classes", type=int, nargs="+", required=True)
    parser.add_argument("--optimizer", default="rowwise_adagrad")
    parser.add_argument("--rounds", type=int, required=True)
    args = parser.parse_args()
    measure = MEASURES[args.measure]
    print(json.dumps(measure(args.classes, args.optimizer, args.rounds)))


if __name__ == "__main__":
    main()
