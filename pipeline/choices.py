"""What an argument of the command line may be, where it is one of a few."""

import enum


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
