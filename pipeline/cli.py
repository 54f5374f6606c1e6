"""The command line: `watchnext <command>`.

Every command is a thin shell round a function of `pipeline/stages.py`; heavy
imports happen inside the commands, so that `--help` answers at once.
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import click
import typer

from pipeline.cli_options import (
    AsOfOption,
    ConfigOption,
    InputOption,
    LastDaysOption,
    Model,
    SetOption,
    StartTimeoutOption,
    Strategy,
    StrategyOption,
    TpuOption,
    WorkdirOption,
    WorkersOption,
)
from schemas.errors import UsageError, WatchnextError

if TYPE_CHECKING:
    from pipeline.run import Run

_BEAM = {"allow_extra_args": True, "ignore_unknown_options": True}
_EPILOG = (
    "Local: `watchnext {0} --config demo --workdir work/demo`.   "
    "Cluster: `watchnext {0} --config gs://bucket/run.yaml "
    "--workdir gs://bucket/work{1}`."
)
_DATAFLOW = (
    " --runner=DataflowRunner --project=P --region=R"
    " --temp_location=gs://bucket/tmp"
)

app = typer.Typer(
    name="watchnext",
    help="The two-stage video recommender of the YouTube papers: raw logs "
    "in, a served recommender out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _run(
    config: str | None,
    workdir: str,
    overrides: Sequence[str] | None,
    context: typer.Context | None = None,
) -> "Run":
    # First of all, so that what TensorFlow says when imported is caught.
    from pipeline.console import import_tensorflow_quietly

    import_tensorflow_quietly()
    from pipeline.config import load_config
    from pipeline.run import Run, saved_config
    from schemas.artifacts import ArtifactStore

    # A work directory remembers its configuration.
    loaded = load_config(config or saved_config(workdir), overrides or ())
    flags = tuple(context.args) if context else ()
    return Run(loaded, ArtifactStore(workdir), flags)


def _epilog(command: str, beam: bool = False) -> str:
    return _EPILOG.format(command, _DATAFLOW if beam else "")


@app.command(context_settings=_BEAM, epilog=_epilog("simulate", True))
def simulate(
    context: typer.Context,
    workdir: WorkdirOption,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Write the simulated platform's logs as events."""
    run = _run(config, workdir, overrides, context)
    from pipeline import event_stage

    event_stage.simulate(run)


@app.command(
    context_settings=_BEAM,
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
    run = _run(config, workdir, overrides, context)
    from pipeline import event_stage

    event_stage.ingest(run, mapping, input_dir)


@app.command(context_settings=_BEAM, epilog=_epilog("prepare", True))
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
    run = _run(config, workdir, overrides, context)
    from pipeline import incremental, stages

    if since is None:
        stages.prepare(run, last_days=last_days)
    elif last_days is not None:
        raise UsageError("Give --since or --last-days, not both.")
    else:
        incremental.prepare_since(run, incremental.parse_day(since))


@app.command(epilog=_epilog("train retrieval"))
def train(
    model: Annotated[Model, typer.Argument(help="Which model.")],
    workdir: WorkdirOption,
    config: ConfigOption = None,
    overrides: SetOption = None,
    num_workers: WorkersOption = 1,
    strategy: StrategyOption = Strategy.auto,
    tpu: TpuOption = None,
    warm_start_from: Annotated[
        str | None,
        typer.Option(
            "--warm-start-from",
            metavar="ARTIFACT",
            help="Begin with the weights of this trained retrieval model: a "
            "version's folder. Vocabularies may differ.",
        ),
    ] = None,
    last_days: LastDaysOption = None,
    start_timeout_s: StartTimeoutOption = 600.0,
) -> None:
    """Train a model: `retrieval` by sampled softmax, or `ranking`."""
    if model is Model.ranking and (warm_start_from or last_days):
        raise UsageError(
            "--warm-start-from and --last-days are for `train retrieval`; the "
            "ranking model is trained from nothing, on all training days."
        )
    run = _run(config, workdir, overrides).building(f"{model.value}_model")
    from pipeline.model_stages import ModelStages
    from pipeline.model_training import Workers
    from pipeline.refresh import Refresh, open_retrieval_model

    earlier = open_retrieval_model(warm_start_from) if warm_start_from else None
    workers = Workers(num_workers, strategy.value, tpu, start_timeout_s)
    stages = ModelStages(run, workers)
    if model is Model.retrieval:
        stages.retrieval_model(Refresh(earlier, last_days))
    else:
        stages.ranking_model()


@app.command(epilog=_epilog("index"))
def index(
    workdir: WorkdirOption,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Build the ScaNN index, measure its recall; list other candidates."""
    run = _run(config, workdir, overrides).building("index", "candidate_lists")
    from pipeline.model_stages import ModelStages

    stages = ModelStages(run)
    stages.index()
    stages.candidate_lists()


@app.command(epilog=_epilog("export"))
def export(
    workdir: WorkdirOption,
    config: ConfigOption = None,
    overrides: SetOption = None,
    onnx: Annotated[
        bool,
        typer.Option("--onnx", help="Also both networks as ONNX, and drawn."),
    ] = False,
) -> None:
    """Write the SavedModels for TF Serving; publish them if the gates pass."""
    run = _run(config, workdir, overrides).building("export", "onnx")
    from pipeline.model_stages import ModelStages
    from pipeline.push import push

    stages = ModelStages(run)
    if onnx:
        from pipeline.onnx_stage import write_onnx

        write_onnx(stages)
    push(stages)


@app.command(epilog=_epilog("evaluate"))
def evaluate(
    workdir: WorkdirOption,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Measure both models on the test interval, beside the baselines."""
    from pipeline.console import print_metrics

    run = _run(config, workdir, overrides).building("evaluation")
    from pipeline.model_stages import ModelStages

    print_metrics(ModelStages(run).evaluation().metrics)


@app.command(context_settings=_BEAM, epilog=_epilog("run", True))
def run(
    context: typer.Context,
    workdir: WorkdirOption,
    config: ConfigOption = None,
    overrides: SetOption = None,
    input_dir: InputOption = None,
) -> None:
    """Run every stage that is not there yet, from logs to evaluation."""
    prepared = _run(config, workdir, overrides, context)
    from pipeline.line import run_all

    run_all(prepared, input_dir)


@app.command(context_settings=_BEAM)
def demo(
    context: typer.Context,
    workdir: WorkdirOption = "work/demo",
    overrides: SetOption = None,
) -> None:
    """Simulate a platform, train and export both models, recommend.

    About 10 minutes on 2 cores; a second run resumes what a first one left.
    """
    prepared = _run("demo", workdir, overrides, context)
    from pipeline.line import demo as play

    play(prepared)


@app.command(
    context_settings=_BEAM, epilog=_epilog("recommend --all-users", True)
)
def recommend(
    context: typer.Context,
    workdir: WorkdirOption,
    user: Annotated[
        str | None, typer.Option("--user", help="Print this user_id's list.")
    ] = None,
    all_users: Annotated[
        bool,
        typer.Option(
            "--all-users",
            help="Write every user's list to Parquet, by a Beam job that goes "
            "on where a killed one ended. See docs/batch.md.",
        ),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            help="Folder for the Parquet files of --all-users, in place of "
            "the work directory.",
        ),
    ] = None,
    as_of: AsOfOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Recommend by the exported SavedModels, to one user or to all."""
    if not all_users and (output or context.args):
        option = "--output" if output else context.args[0]
        raise UsageError(f"There is no option {option} without --all-users.")
    if (user is None) != all_users:
        raise UsageError("Give --user ID or --all-users, one of the two.")
    prepared = _run(config, workdir, overrides, context)
    from pipeline.all_users import parse_moment, recommend_to_all
    from pipeline.line import recommend as list_for

    as_of_us = None if as_of is None else parse_moment(as_of)
    if user is None:
        recommend_to_all(prepared, output, as_of_us)
    else:
        list_for(prepared, user, as_of_us)


@app.command()
def serve(
    workdir: WorkdirOption,
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, help="REST and the page."),
    ] = 8501,
    grpc_port: Annotated[
        int, typer.Option("--grpc-port", min=0, max=65535, help="gRPC.")
    ] = 8500,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Serve the published SavedModels on this machine, with a page.

    A development server that speaks TensorFlow Serving's REST and gRPC
    predict API on 127.0.0.1; it is not TensorFlow Serving. New versions are
    taken up as they are published. Port 0 is any free one.
    """
    prepared = _run(config, workdir, overrides)
    from pipeline.serve.server import serve as serve_models

    serve_models(prepared, port, grpc_port)


@app.command()
def doctor() -> None:
    """Say what this machine has: versions, accelerators, runners."""
    from pipeline.doctor import run_doctor

    raise typer.Exit(run_doctor())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code (0, 1 or 2)."""
    # Said before any heavy import; C++ reads it once.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Beam logs a worker's error with its stack trace, then raises it: said
    # once, by us, in one line, it is enough.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    try:
        code = app(args=argv, prog_name="watchnext", standalone_mode=False)
        return int(code or 0)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show(sys.stderr)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return _fail(WatchnextError("Interrupted; a second run resumes."))
    except WatchnextError as error:
        return _fail(error)


def _fail(error: WatchnextError) -> int:
    # One line, whatever the message carried.
    print(f"watchnext: {' '.join(str(error).split())}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
