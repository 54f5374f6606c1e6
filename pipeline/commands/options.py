"""The options that commands have in common, each declared once."""

import enum
from typing import Annotated

import typer

ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="A YAML file, or a shipped name: demo, "
        "paper, movielens-1m, movielens-1m-best, kuairand.",
    ),
]
WorkdirOption = Annotated[
    str, typer.Option("--workdir", help="Folder of the stages' results.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.field=value; may be repeated."),
]
InputOption = Annotated[
    str | None,
    typer.Option(
        "--input",
        help="Folder of the outside logs, in place of the mapping's own root.",
    ),
]
LastDaysOption = Annotated[
    int | None,
    typer.Option(
        "--last-days",
        min=1,
        help="The last N training days alone, for a refresh; the same N for "
        "`prepare` and `train retrieval`. See docs/incremental-days.md.",
    ),
]
WorkersOption = Annotated[
    int,
    typer.Option(
        "--num-workers",
        min=1,
        help="Local worker processes; on a cluster leave it and set TF_CONFIG.",
    ),
]


class Model(enum.StrEnum):
    """What can be trained."""

    retrieval = "retrieval"
    ranking = "ranking"


class Strategy(enum.StrEnum):
    """How training is distributed."""

    auto = "auto"
    one_device = "one_device"
    mirrored = "mirrored"
    multi_worker = "multi_worker"
    tpu = "tpu"


StrategyOption = Annotated[
    Strategy,
    typer.Option(
        "--strategy",
        help="auto: TF_CONFIG's workers, else all GPUs, else the CPU.",
    ),
]
TpuOption = Annotated[
    str | None, typer.Option("--tpu", help="TPU name or address.")
]
StartTimeoutOption = Annotated[
    float,
    typer.Option(
        "--start-timeout-s",
        min=1,
        help="How long to wait for the other workers of TF_CONFIG.",
    ),
]
AsOfOption = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        metavar="TIME",
        help="Recommend as at this moment (YYYY-MM-DD or "
        "YYYY-MM-DDTHH:MM:SS, UTC); default is right after the log's end.",
    ),
]
