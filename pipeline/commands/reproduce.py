"""The papers' experiments."""

from typing import Annotated

import typer

from pipeline.commands.app import app
from pipeline.commands.options import SetOption, WorkdirOption
from schemas.errors import UsageError


@app.command(
    epilog="All: `watchnext reproduce`.   One, on one seed: `watchnext "
    "reproduce --only figure_4 --seeds 1,2`.   Local only: the cells run as "
    "processes of this machine."
)
def reproduce(
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Small logs, one seed: does it run?"),
    ] = False,
    workdir: WorkdirOption = "work/reproduce",
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="EXPERIMENT",
            help="Of these alone; may be repeated. See docs/reproduce.md.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds", metavar="1,2,3", help="In place of the scale's own."
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Processes at once; the cores."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", metavar="FILE", help="The page, an HTML file."
        ),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Run the papers' experiments on simulated logs; write one HTML page.

    Under 3 hours on 2 cores with 3 seeds; a second run resumes.
    """
    from pipeline.console import import_tensorflow_quietly

    import_tensorflow_quietly()
    from pipeline.experiments.reproduce import reproduce as run

    run(
        quick=quick,
        workdir=workdir,
        only=only or (),
        seeds=_numbers(seeds or ""),
        jobs=jobs,
        output=output,
        overrides=overrides or (),
    )


def _numbers(text: str) -> list[int]:
    """Whole numbers apart by commas or spaces."""
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise UsageError(
            f"--seeds {text!r}: expected whole numbers, such as 1,2,3."
        ) from None
