"""Logs to events, events to training examples."""

from typing import Annotated

import typer

from pipeline.commands.app import BEAM, app, epilog, open_run
from pipeline.commands.options import (
    ConfigOption,
    InputOption,
    LastDaysOption,
    SetOption,
    WorkdirOption,
)
from schemas.errors import UsageError


@app.command(context_settings=BEAM, epilog=epilog("simulate", True))
def simulate(
    context: typer.Context,
    workdir: WorkdirOption,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Write the simulated platform's logs as events."""
    run = open_run(config, workdir, overrides, context)
    from pipeline import event_stage

    event_stage.simulate(run)


@app.command(
    context_settings=BEAM,
    epilog="Local: `watchnext ingest --mapping kuairand --input DIR --workdir "
    "work/kuairand`.   Cluster: the same with gs:// paths and Beam flags.",
)
def ingest(
    context: typer.Context,
    workdir: WorkdirOption,
    mapping: Annotated[
        str | None,
        typer.Option("--mapping", help="A YAML mapping, or a shipped name."),
    ] = None,
    input_dir: InputOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Turn your own Parquet, CSV or JSON Lines logs into events."""
    run = open_run(config, workdir, overrides, context)
    from pipeline import event_stage

    event_stage.ingest(run, mapping, input_dir)


@app.command(context_settings=BEAM, epilog=epilog("prepare", True))
def prepare(
    context: typer.Context,
    workdir: WorkdirOption,
    config: ConfigOption = None,
    overrides: SetOption = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="YYYY-MM-DD",
            help="Only the days from this one on: their examples, from the "
            "newest events and the state that the days before left. See "
            "docs/incremental-days.md.",
        ),
    ] = None,
    last_days: LastDaysOption = None,
) -> None:
    """Split the events; build vocabularies, transform graph and examples."""
    run = open_run(config, workdir, overrides, context)
    from pipeline import incremental, stages

    if since is None:
        stages.prepare(run, last_days=last_days)
    elif last_days is not None:
        raise UsageError("Give --since or --last-days, not both.")
    else:
        incremental.prepare_since(run, incremental.parse_day(since))
