"""Training, index, export, evaluation, report."""

from typing import Annotated

import typer

from pipeline.commands.app import app, epilog, open_run
from pipeline.commands.options import (
    ConfigOption,
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
from schemas.errors import UsageError


@app.command(epilog=epilog("train retrieval"))
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
    profile_steps: Annotated[
        str | None,
        typer.Option(
            "--profile-steps",
            metavar="A:B",
            help="Record the steps A to B for TensorBoard's profiler. See "
            "docs/training.md.",
        ),
    ] = None,
) -> None:
    """Train a model: `retrieval` by sampled softmax, or `ranking`."""
    if model is Model.ranking and (warm_start_from or last_days):
        raise UsageError(
            "--warm-start-from and --last-days are for `train retrieval`; the "
            "ranking model is trained from nothing, on all training days."
        )
    run = open_run(config, workdir, overrides).building(f"{model.value}_model")
    from pipeline.model_stages import ModelStages
    from pipeline.model_training import Workers
    from pipeline.refresh import Refresh, open_retrieval_model
    from pipeline.tensorboard_logs import ProfileSteps

    profile = ProfileSteps.parse(profile_steps) if profile_steps else None
    earlier = open_retrieval_model(warm_start_from) if warm_start_from else None
    workers = Workers(
        num_workers, strategy.value, tpu, start_timeout_s, profile
    )
    stages = ModelStages(run, workers)
    if model is Model.retrieval:
        stages.retrieval_model(Refresh(earlier, last_days))
    else:
        stages.ranking_model()


@app.command(epilog=epilog("index"))
def index(
    workdir: WorkdirOption,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Build the ScaNN index, measure its recall; list other candidates."""
    run = open_run(config, workdir, overrides).building(
        "index", "candidate_lists"
    )
    from pipeline.model_stages import ModelStages

    stages = ModelStages(run)
    stages.index()
    stages.candidate_lists()


@app.command(epilog=epilog("export"))
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
    run = open_run(config, workdir, overrides).building("export", "onnx")
    from pipeline.model_stages import ModelStages
    from pipeline.push import push

    stages = ModelStages(run)
    if onnx:
        from pipeline.onnx_stage import write_onnx

        write_onnx(stages)
    push(stages)


@app.command(epilog=epilog("evaluate"))
def evaluate(
    workdir: WorkdirOption,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Measure both models on the test interval, beside the baselines."""
    from pipeline.console import print_metrics

    run = open_run(config, workdir, overrides).building("evaluation")
    from pipeline.model_stages import ModelStages

    print_metrics(ModelStages(run).evaluation().metrics)


@app.command(
    epilog="Local: `watchnext report --workdir work/demo`.   Cluster: "
    "`watchnext report --workdir gs://bucket/work --output report.html`."
)
def report(
    workdir: WorkdirOption,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", help="The file; default is report.html in --workdir."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="WORKDIR",
            help="Another run's work directory, shown side by side.",
        ),
    ] = None,
) -> None:
    """Write one HTML page of all there is: data, training, metrics, lists."""
    from pipeline.console import import_tensorflow_quietly, say

    import_tensorflow_quietly()
    from pipeline.report.write import write_report

    say(f"report: {write_report(workdir, output, against)}")
