"""Recommendations out of the exported SavedModels."""

from typing import Annotated

import typer

from pipeline.commands.app import BEAM, app, epilog, open_run
from pipeline.commands.options import (
    AsOfOption,
    ConfigOption,
    SetOption,
    WorkdirOption,
)
from schemas.errors import UsageError


@app.command(
    context_settings=BEAM, epilog=epilog("recommend --all-users", True)
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
    prepared = open_run(config, workdir, overrides, context)
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
    prepared = open_run(config, workdir, overrides)
    from pipeline.serve.server import serve as serve_models

    serve_models(prepared, port, grpc_port)
