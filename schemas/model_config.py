"""The sections of the two models, `retrieval` and `ranking`.

As all sections, see `schemas/config.py`, which has the others.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.section import Dropout, Positive, Section, Share, Units

Pooling = Literal["mean", "sum", "max"]
Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]


class SequenceConfig(Section):
    """Self-attention over the last watches, part of the query tower."""

    # Watches it looks back, at most `retrieval_examples.history_length`.
    length: Positive = 50
    layers: Positive = 2
    # Each has embedding_dim / heads dimensions.
    heads: Positive = 2
    dropout: Dropout = 0.2
    # Learn the next watch of every moment of the history, not of the last
    # alone: some 50 labels an example.
    every_moment: bool = True
    # `input`: its output is one more input of the tower. `beside`: encoder
    # and tower, with embeddings of their own, each learn the next watch; a
    # video's score is the sum of both, still one dot product.
    place: Literal["input", "beside"] = "input"


class TowerConfig(Section):
    """A further tower; what is null is as in the section `retrieval`."""

    embedding_dim: Positive | None = None
    recency_bags: Units | None = None
    hidden_units: Units | None = None
    dropout: Dropout | None = None


class RetrievalConfig(Section):
    """The candidate generation model (paper, section 3)."""

    embedding_dim: Positive = 64
    # Dimensions of the small spaces (region, device, ...) and of tokens.
    token_dim: Positive = 32
    categorical_dim: Positive = 8
    # Bags over the last n watches, all of one table; the paper: [50].
    recency_bags: Units = (50, 5, 1)
    pooling: Pooling = "mean"
    # Query features of the log that the model does not read, such as
    # `search_tokens` or `user_age`; or `example_age`.
    left_out: tuple[str, ...] = ()
    # The example age goes in as one number (paper, section 3.3); with n > 1
    # as n hat functions over the window, such as one a day: one number gives
    # smooth curves only, and a new video's popularity is not smooth.
    example_age_hats: Positive = 1
    # A sequence encoder beside the bags, or instead of them.
    sequence: SequenceConfig | None = None
    # ReLU layers before the query embedding; the paper: halving widths, and
    # none at depth 0.
    hidden_units: Units = (256,)
    # `relu`: the last layer is rectified, as in the paper.
    output_activation: Literal["relu", "linear"] = "linear"
    dropout: Dropout = 0.5
    # Towers beside this one, each with embeddings of its own and learning the
    # next watch for itself; a video's score is the sum of all of theirs: an
    # ensemble in one dot product. `[{}]` is one more, alike but for its seed.
    more_towers: tuple[TowerConfig, ...] = ()
    # See `ranking.precision`; here of the tower's layers.
    precision: Precision = "float32"
    # `sampled`: drawn once for the batch. `list_wise`: drawn for each example,
    # `num_negatives` of its own. `in_batch`: the other labels of the global
    # batch. `mixed`: those, and `num_negatives` drawn for the batch.
    negatives: Literal["sampled", "list_wise", "in_batch", "mixed"] = "sampled"
    num_negatives: Positive = 1000
    # `unigram`: by the counts of the labels in the training examples.
    sampler: Literal["log_uniform", "unigram", "uniform"] = "log_uniform"
    logq_correction: bool = True
    # Null: the score is u.v + b. A number: u.v / temperature of vectors of
    # length 1, such as 0.05.
    temperature: Annotated[float, Field(gt=0)] | None = None
    table_optimizer: Literal["rowwise_adagrad", "lazy_adam"] = "rowwise_adagrad"
    table_learning_rate: Annotated[float, Field(gt=0)] = 0.1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    # Both rates after a warm start, as a share: the optimisers begin anew,
    # and Adagrad's first step of a row is as long as the rate, whatever the
    # gradient. At full rates a day's examples undo what the weights knew.
    warm_start_rate_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    # Of both rates, after a linear rise: constant, or half a cosine wave
    # down to 0 at the end of the last epoch.
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    # Global: shared by all workers.
    batch_size: Positive = 512
    # Equal parts that the files are cut into, each with a part of every
    # batch; a multiple of the workers (GPUs, TPU cores), for any of which
    # the batches are the same.
    lanes: Positive = 8
    epochs: Positive = 6
    # The validation metric that chooses the epoch, higher is better.
    selection_metric: str = "hit_rate_at_50"
    # Stop after so many epochs without a better one.
    patience: Positive = 2
    # Then so many epochs on training and validation together, at
    # `warm_start_rate_share` of the rates: the model that is served knows the
    # newest watches too.
    refit_epochs: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: Positive = 1000

    @property
    def towers(self) -> tuple["RetrievalConfig", ...]:
        """The section as each of the towers reads it."""
        given = (t.model_dump(exclude_none=True) for t in self.more_towers)
        return (self, *(self.model_copy(update=fields) for fields in given))

    @model_validator(mode="after")
    def _fits_together(self) -> "RetrievalConfig":
        if not self.recency_bags and self.sequence is None:
            raise ValueError(
                "no `recency_bags` and no `sequence`: the model would not see "
                "the watch history"
            )
        heads = self.sequence.heads if self.sequence else 1
        if self.embedding_dim % heads:
            raise ValueError(
                f"`embedding_dim` ({self.embedding_dim}) must be a multiple "
                f"of `sequence.heads` ({heads})"
            )
        inside = self.sequence is not None and self.sequence.place == "input"
        if self.more_towers and inside:
            raise ValueError(
                "`more_towers` needs `sequence.place: beside`: an encoder "
                "that is an input serves one tower"
            )
        every_moment = self.sequence is not None and self.sequence.every_moment
        if every_moment and self.negatives in ("in_batch", "mixed"):
            # A batch's labels would be the histories', with padding among
            # them, and no longer as if drawn by their counts.
            raise ValueError(
                f"`negatives: {self.negatives}` needs `sequence.every_moment: "
                "false`, or use sampled or list_wise negatives"
            )
        return self


class ExpertsConfig(Section):
    """A mixture of experts, gated by each task (2019, section 4.2)."""

    number: Positive = 4
    # ReLU layers of each expert, on top of the shared `ranking.hidden_units`.
    units: Annotated[Units, Field(min_length=1)] = (64,)
    # In training an expert is put out of use with this probability, for each
    # request and task on its own; the others' weights are made to sum up to 1
    # again (2019, section 5: without it some gates use one expert alone).
    gate_dropout: Dropout = 0.1
    # Bring each expert's output to mean 0 and variance 1 before it is mixed.
    normalize: bool = False


class RankingConfig(Section):
    """The ranking model (paper, section 4)."""

    # `expected_watch_time`: e^z = E[T] on every impression. `paper`: clicked
    # impressions weighted by T, unclicked by 1; e^z = E[T clicked]/(1 - P).
    objective: Literal["expected_watch_time", "paper"] = "expected_watch_time"
    # Tasks trained beside watch time, on the same shared layers: binary labels
    # of the log, and `rating`.
    tasks: tuple[str, ...] = ("clicked",)
    # Shared ReLU layers; none is a logistic regression on the inputs.
    hidden_units: Units = (256, 128)
    # Null: the heads read the shared layers, all tasks the same.
    experts: ExpertsConfig | None = None
    max_embedding_dim: Positive = 32
    # Also read the square and the root of each normalised continuous value
    # (paper, section 4.1).
    powers: bool = True
    # Of units, after each layer.
    dropout: Dropout = 0.0
    # In training, of the embedding of each feature with more than 100 terms,
    # as a whole: where a term has few examples the network must not learn it
    # by heart. With few examples in all, 0.8.
    embedding_dropout: Dropout = 0.0
    # Of the ReLU layers in training; weights, heads, losses and all that is
    # evaluated or served are float32. For TPUs and GPUs; on a CPU it may be
    # slower, whatever instructions it has.
    precision: Precision = "float32"
    # The wide part (Cheng et al. 2016): crosses of categorical features, such
    # as [[user_device, surface]], each with weights of its own in the logits.
    wide: tuple[tuple[str, ...], ...] = ()
    # Most rows of a cross's table; beyond it combinations share rows.
    wide_buckets: Positive = 2**18
    # Learn the click's position bias in a shallow tower (2019, section 4.3).
    position_tower: bool = True
    position_dropout: Share = 0.1
    # Watch time in these units during training: a common factor of all
    # weights, so e^z stays in seconds after multiplication.
    watch_time_unit_s: Annotated[float, Field(gt=0)] = 60.0
    task_weights: dict[str, float] = Field(default_factory=dict)
    # Final score = product of prediction^weight (2019, section 4.2).
    score_weights: dict[str, float] = Field(
        default_factory=lambda: {"expected_watch_time_s": 1.0}
    )
    table_optimizer: Literal["rowwise_adagrad", "lazy_adam"] = "lazy_adam"
    table_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    # Of both rates, after a linear rise: constant, or half a cosine wave
    # down to 0 at the end of the last epoch.
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    # Requests, global.
    batch_size: Positive = 512
    # See `retrieval.lanes`.
    lanes: Positive = 8
    epochs: Positive = 3
    # The epoch with the lowest validation loss is kept.
    patience: Positive = 1
    checkpoint_every: Positive = 1000
