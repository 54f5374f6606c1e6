"""The sections of a run's configuration, validated and frozen.

A stage is a function of its own section and its inputs, so each section's
content is part of that stage's fingerprint. Where and how a stage runs
(runner, workers, strategy, paths) is not configuration: see the command
line. `pipeline/config.py` reads YAML into `Config`.
"""

import datetime
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from schemas.model_config import RankingConfig, RetrievalConfig
from schemas.section import Positive, Section, Share, Units
from schemas.simulator_config import SimulatorConfig

BaselineName = Literal[
    "popularity", "recent_popularity", "co_watch", "implicit_als", "ease"
]
RankingBaselineName = Literal["popularity", "logistic_regression", "lightgbm"]
GeneratorName = Literal["co_watch", "topics", "popular", "context", "sequence"]


class SourceConfig(Section):
    """Where the events come from."""

    kind: Literal["simulated", "mapped"] = "simulated"
    # Path or shipped name of a mapping (kind `mapped`).
    mapping: str | None = None


class SplitConfig(Section):
    """The intervals of training, validation and test, fixed once.

    `time`: whole days at the end of the log. `last_watch`: each user's last
    watch is the test, the one before it validation; not safe in time, for
    comparison with published numbers only.
    """

    protocol: Literal["time", "last_watch"] = "time"
    test_days: Positive = 1
    valid_days: Positive = 1
    # First day of the test; default: the last `test_days` days of the log.
    test_start: datetime.date | None = None
    # Days begin at midnight of this zone (KuaiRand's days are UTC+8).
    utc_offset_hours: Annotated[float, Field(ge=-12, le=14)] = 0.0


class BeamConfig(Section):
    """What bounds the memory and the bytes of the Beam jobs."""

    # Files a table; null: by the number of events, some 260,000 each.
    num_shards: Positive | None = None
    # Rows of one table kept per user, the most recent ones; the rest counted.
    max_events_per_user: Positive = 100_000
    max_bad_share: Share = 0.01


class VocabulariesConfig(Section):
    """Largest sizes of the ID spaces; ties break by term."""

    max_size: dict[str, Positive] = Field(
        default_factory=lambda: {
            "video": 1_000_000,
            "channel": 500_000,
            "token": 1_000_000,
        }
    )
    default_max_size: Positive = 100_000
    min_count: Positive = 1


class NormalizationConfig(Section):
    """Quantile normalisation (paper, section 4.1)."""

    num_quantiles: Annotated[int, Field(ge=2, le=500)] = 200
    sample_size: Annotated[int, Field(ge=1000)] = 2**20


class RetrievalExamplesConfig(Section):
    """Next-watch examples (paper, sections 3.3 and 3.4)."""

    # `next_watch`: the context ends before the label. `held_out_watch`: the
    # context is the rest of the user's training watches and searches, those
    # after the label too; for comparison (paper, figure 5), not for serving.
    label: Literal["next_watch", "held_out_watch"] = "next_watch"
    # N: how many labels a user may contribute; null takes all of them.
    examples_per_user: Positive | None = 20
    # Take every so many of a user's watches, back from the latest: where each
    # moment of the history is learnt, examples overlap.
    label_stride: Positive = 1
    # Weigh a user with fewer labels by N / emitted: users count equally.
    equal_user_weights: bool = True
    history_length: Positive = 50
    searches: Positive = 20
    search_tokens: Positive = 50
    max_list: Positive = 8
    example_age: bool = True


class RankingExamplesConfig(Section):
    """One example a request: its impressions (paper, section 4)."""

    # Longer requests are continued in a further example of equal context.
    max_candidates: Positive = 10
    max_list: Positive = 4
    lagged_statistics: bool = True


class IndexConfig(Section):
    """The approximate index over candidate embeddings."""

    # The k of every recall below.
    neighbors: Positive = 100
    # Below this recall against exact search the index is not published.
    min_recall: Share = 0.95
    # What the cheapest setting is chosen by: of ScaNN, and of the search of
    # stock operations in the SavedModels, on half of the queries. The other
    # half must pass the gate.
    scann_recall: Share = 0.983
    stock_recall: Share = 0.96
    num_queries: Annotated[int, Field(ge=2)] = 1000
    # With fewer videos, both score all of them.
    exact_below: Positive = 20_000
    # From so many on, both search a partition; ScaNN scores all by hashes
    # below it, the SavedModels exactly.
    partition_from: Positive = 100_000
    # Leaves are cut into pieces of so many rows: small ones lie closer
    # together, but there are more of them to be compared with.
    rows_per_piece: Positive = 64
    # Of the rows in the SavedModels. `int8`: scored in a quarter of the bytes
    # and the best again exactly, with 1.25 times the memory. `bfloat16`: in
    # half of them, with 1.5 times the memory; faster only where the processor
    # multiplies bfloat16.
    storage: Literal["float32", "bfloat16", "int8"] = "float32"


class GeneratorConfig(Section):
    """A candidate generator beside the tower ("What to Watch Next", 3)."""

    # `co_watch`: watched by others soon after the query video; `topics`:
    # watched most of the query video's topics; `popular`: watched most in the
    # user's region; `context`: the tower's best for a user whose last watch
    # is the query video, nothing without one; `sequence`: the encoder's part
    # of the query embedding alone (`retrieval.sequence` with `place: beside`).
    # For lists, the user's last watch stands in for a query video.
    name: GeneratorName
    # It offers its best ones that the user has not watched.
    candidates: Positive
    # `topics` and `popular` count the last training days.
    recent_days: Positive = 7
    # Its like among the log's candidate sources, for the ranking feature.
    logged_as: str | None = None


class ServingConfig(Section):
    """What the SavedModels return."""

    # To be ranked. The generators' come first, the tower's best fill up.
    candidates: Positive = 100
    top_k: Positive = 20
    generators: tuple[GeneratorConfig, ...] = ()
    # Of so many videos of a channel the others come last.
    max_per_channel: Positive | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "ServingConfig":
        names = [generator.name for generator in self.generators]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"`generators` has {', '.join(twice)} twice")
        offered = sum(g.candidates for g in self.generators)
        if offered >= self.candidates:
            raise ValueError(
                f"`generators` offer {offered} of {self.candidates} "
                "`candidates`: the tower must have room for its own"
            )
        return self


class PublishingConfig(Section):
    """What an export must show on the validation part to be published."""

    # Of the retrieval's hit rate: the share of the published version's that a
    # new one may lose. 0.1: of 0.40, down to 0.36.
    max_loss_of_hit_rate: Share = 0.1
    # Of the ranking's `weighted_per_user_loss`: the share of the published
    # version's that a new one may be higher by.
    max_rise_of_ranking_loss: Annotated[float, Field(ge=0)] = 0.1
    # Mean expected watch time over mean watch time, all impressions.
    min_calibration: Annotated[float, Field(ge=0)] = 0.9
    max_calibration: Annotated[float, Field(ge=0)] = 1.1
    # Requests of so many users, from the validation part, are asked.
    users: Positive = 1000
    # Share of them that may be answered by no video, or by scores all equal.
    max_bad_answers: Share = 0.01


class EvaluationConfig(Section):
    """The held-out measurements."""

    top_k: Units = (10, 50, 100)
    # Measured beside the model; `ease` where the videos are few enough.
    baselines: tuple[BaselineName, ...] = get_args(BaselineName)
    recent_days: Positive = 3
    # Also measure what the published index finds, as serving does.
    through_index: bool = True
    # Also train by full softmax, an oracle printed beside.
    full_softmax_oracle: bool = False
    # Also train a click-only ranking model, printed beside.
    click_model: bool = True
    # Beside the ranking model; all but `popularity` take minutes, and learn
    # from at most so many impressions, of whole requests.
    ranking_baselines: tuple[RankingBaselineName, ...] = ("popularity",)
    ranking_baseline_impressions: Positive = 300_000
    # Resamples of the users behind each 95 % interval of ranking; 0: none.
    bootstrap_resamples: Annotated[int, Field(ge=0, le=10_000)] = 200


class Config(Section):
    """A whole run."""

    name: str = "watchnext"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    source: SourceConfig = SourceConfig()
    simulator: SimulatorConfig = SimulatorConfig()
    split: SplitConfig = SplitConfig()
    beam: BeamConfig = BeamConfig()
    vocabularies: VocabulariesConfig = VocabulariesConfig()
    normalization: NormalizationConfig = NormalizationConfig()
    retrieval_examples: RetrievalExamplesConfig = RetrievalExamplesConfig()
    ranking_examples: RankingExamplesConfig = RankingExamplesConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    index: IndexConfig = IndexConfig()
    ranking: RankingConfig = RankingConfig()
    serving: ServingConfig = ServingConfig()
    publishing: PublishingConfig = PublishingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
