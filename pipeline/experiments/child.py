"""One process of a reproduction: prepares the data of a seed, or measures.

    python -m pipeline.experiments.child prepare --seed 1 ...
    python -m pipeline.experiments.child measure figure_4 with_age --seed 1 ...

Started by `pipeline.experiments.crew`; its output is the job's log.
"""

import argparse
import sys
from collections.abc import Sequence

from schemas.errors import WatchnextError


def main(argv: Sequence[str] | None = None) -> int:
    """Does one job; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=("prepare", "measure"))
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args(argv)
    # What takes seconds to import, after what may be wrong with the words.
    from pipeline.console import import_tensorflow_quietly

    import_tensorflow_quietly()
    from pipeline.experiments.catalogue import EXPERIMENTS
    from pipeline.experiments.experiment import Cell
    from pipeline.experiments.plan import Plan
    from pipeline.experiments.scales import SCALES

    plan = Plan(SCALES[args.scale], args.workdir, tuple(args.set))
    try:
        if args.job == "prepare":
            experiments = [EXPERIMENTS[name] for name in args.names]
            plan.prepare(plan.cells(experiments, [args.seed]))
        else:
            experiment, setting = args.names
            plan.measure(Cell(experiment, setting, args.seed))
    except WatchnextError as error:
        print(f"watchnext: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
