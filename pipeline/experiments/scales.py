"""How large the logs and the models of the experiments are.

The paper's models (`configs/paper.yaml`) on a log of some hundred thousand
watches in place of some hundred billion. So all widths of candidate generation
are a quarter of the paper's; hidden units are not dropped and tables learn by
Adam, since the steps are few; and the example age goes in as hat functions, one
a day, since a few thousand steps do not bend a curve of one number.
"""

import dataclasses

CONFIG = "paper"


@dataclasses.dataclass(frozen=True)
class Scale:
    """A size of all experiments.

    Attributes:
      name: of the folder with its results.
      seeds: the default ones.
      overrides: `section.field=value`, on top of `CONFIG`.
    """

    name: str
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]

    @property
    def quick(self) -> bool:
        return self.name == "quick"


_BOTH = (
    "retrieval_examples.examples_per_user=60",
    "retrieval_examples.equal_user_weights=false",
    "retrieval.embedding_dim=64",
    "retrieval.hidden_units=[256, 128]",
    "retrieval.dropout=0.0",
    "retrieval.table_optimizer=lazy_adam",
    "retrieval.table_learning_rate=0.003",
    "retrieval.example_age_hats=28",
    "ranking.tasks=[]",
    # Some thousand steps, as the position's bias needs.
    "ranking.batch_size=128",
)
FULL = Scale(
    "full",
    (1, 2, 3),
    (
        *_BOTH,
        "simulator.num_users=8000",
        "simulator.num_videos=1500",
        "simulator.num_channels=200",
        "simulator.requests_per_user_day=0.4",
        "retrieval.num_negatives=500",
    ),
)
QUICK = Scale(
    "quick",
    (1,),
    (
        *_BOTH,
        "simulator.num_users=1700",
        "simulator.num_videos=800",
        "simulator.num_channels=120",
        "simulator.num_days=24",
        "simulator.requests_per_user_day=0.4",
        "beam.num_shards=4",
        "retrieval.num_negatives=200",
        "retrieval.epochs=5",
        "ranking.epochs=2",
    ),
)
SCALES = {scale.name: scale for scale in (FULL, QUICK)}
