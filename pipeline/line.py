"""The whole line: from logs to recommendations in one command."""

from beam_jobs.events import read_tables
from models.serving import RECOMMENDER, RETRIEVAL
from pipeline.console import print_metrics
from pipeline.event_stage import make_events
from pipeline.model_stages import ModelStages
from pipeline.publishing import models_of
from pipeline.push import push
from pipeline.recommend import busiest_users, print_table, request_of_user
from pipeline.recommend import recommend as ranked
from pipeline.report.write import keep_report
from pipeline.run import LEARNT, Run
from pipeline.stages import prepare
from schemas.artifacts import join

DEMO_USERS, DEMO_ROWS = 3, 8


def run_all(run: Run, input_dir: str | None = None) -> None:
    """Builds every stage that is not there, prints and reports it."""
    _build(run, input_dir)
    keep_report(run.workdir)


def demo(run: Run) -> None:
    """The whole line on simulated logs, then three users' lists."""
    stages = _build(run)
    watches = read_tables(
        stages.data.split().files("test/watches-"),
        stages.data.schema.arrow("watches"),
    )
    # Of the last day, the test.
    for user in busiest_users(watches, DEMO_USERS):
        _print_list(stages, user, DEMO_ROWS)
    keep_report(run.workdir)


def _build(run: Run, input_dir: str | None = None) -> ModelStages:
    events = make_events(run, input_dir)
    prepare(run, events)
    stages = ModelStages(run.building(*LEARNT), events=events)
    stages.retrieval_model()
    stages.index()
    stages.candidate_lists()
    if stages.has_ranking:
        stages.ranking_model()
    push(stages)
    print_metrics(stages.evaluation().metrics)
    return stages


def recommend(run: Run, user: str, as_of_us: int | None = None) -> None:
    """Prints the ranked list of one user of the log."""
    top_k = run.config.serving.top_k
    _print_list(ModelStages(run), user, top_k, as_of_us)


def _print_list(
    stages: ModelStages, user: str, top_k: int, as_of_us: int | None = None
) -> None:
    data = stages.data
    files = {t: data.events.files(f"{t}-") for t in data.schema.columns}
    request = request_of_user(
        user, files, data.schema, stages.raw_inputs, as_of_us
    )
    # What was exported, whether it passed the gates or not.
    export = stages.export()
    models = {m: join(export.path, m, "1") for m in models_of(export)}
    videos = read_tables(files["videos"], data.schema.arrow("videos"))
    rows = ranked(
        models.get(RECOMMENDER, models[RETRIEVAL]),
        request,
        videos,
        top_k,
    )
    print_table(f"Recommended to user {user}", rows)
