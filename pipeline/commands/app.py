"""The application that the commands register with, and how each begins."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pipeline.run import Run

BEAM = {"allow_extra_args": True, "ignore_unknown_options": True}
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


def open_run(
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


def epilog(command: str, beam: bool = False) -> str:
    return _EPILOG.format(command, _DATAFLOW if beam else "")
