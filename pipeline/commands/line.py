"""All stages in one command."""

import typer

from pipeline.commands.app import BEAM, app, epilog, open_run
from pipeline.commands.options import (
    ConfigOption,
    InputOption,
    SetOption,
    WorkdirOption,
)


@app.command(context_settings=BEAM, epilog=epilog("run", True))
def run(
    context: typer.Context,
    workdir: WorkdirOption,
    config: ConfigOption = None,
    overrides: SetOption = None,
    input_dir: InputOption = None,
) -> None:
    """Run every stage that is not there yet, from logs to evaluation."""
    prepared = open_run(config, workdir, overrides, context)
    from pipeline.line import run_all

    run_all(prepared, input_dir)


@app.command(context_settings=BEAM)
def demo(
    context: typer.Context,
    workdir: WorkdirOption = "work/demo",
    overrides: SetOption = None,
) -> None:
    """Simulate a platform, train and export both models, recommend.

    About 10 minutes on 2 cores; a second run resumes what a first one left.
    """
    prepared = open_run("demo", workdir, overrides, context)
    from pipeline.line import demo as play

    play(prepared)
