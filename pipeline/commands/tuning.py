"""The search over a model's configuration."""

from typing import Annotated

import typer

from pipeline.commands.app import app, open_run
from pipeline.commands.options import (
    ConfigOption,
    Model,
    SetOption,
    WorkdirOption,
)

PruneOption = Annotated[
    bool,
    typer.Option(
        "--prune/--no-prune",
        help="End trials that do worse than the others did by that epoch.",
    ),
]


@app.command(
    epilog="Local: `watchnext tune ranking --workdir work/demo --trials 20`.   "
    "Cluster: the same in a shared folder, on the machine with most cores."
)
def tune(
    model: Annotated[Model, typer.Argument(help="Which model.")],
    workdir: WorkdirOption,
    trials: Annotated[
        int,
        typer.Option(
            "--trials",
            min=1,
            help="Of the whole search, those of earlier runs among them.",
        ),
    ],
    config: ConfigOption = None,
    overrides: SetOption = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Trials at a time.")
    ] = 1,
    space: Annotated[
        str | None,
        typer.Option(
            "--space",
            help="A YAML file of fields and their ranges or choices; default "
            "is configs/tuning/<model>.yaml.",
        ),
    ] = None,
    prune: PruneOption = True,
) -> None:
    """Search a model's best configuration by its validation metric."""
    run = open_run(config, workdir, overrides)
    from pipeline.tuning import tune as search

    search(run, model.value, space, trials=trials, jobs=jobs, prune=prune)


@app.command(hidden=True)
def tune_trial(
    model: Annotated[Model, typer.Argument()],
    workdir: WorkdirOption,
    config: ConfigOption,
    study: Annotated[str, typer.Option("--study")],
    number: Annotated[int, typer.Option("--number", min=0)],
    prune: PruneOption = True,
) -> None:
    """Run one trial; `tune` starts it."""
    run = open_run(config, workdir, ())
    from pipeline.tuning_trial import run_trial

    run_trial(run, model.value, study, number, prune=prune)
