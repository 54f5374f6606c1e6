"""Measures retrieval on held-out cases: the model, its index, its baselines.

Wiring of the evaluation stage: which files each side reads. All are measured
by the same code, one after the other, so that memory is that of one.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from models.baselines import (
    Popularity,
    Scorer,
    read_watches,
    recent_popularity,
)
from models.retrieval_evaluation import (
    ExactRanker,
    IndexRanker,
    ModelScorer,
    Ranker,
    RetrievalModelLike,
    evaluate,
)
from pipeline.console import say
from pipeline.stages import DataStages
from pipeline.video_columns import video_column
from schemas.artifacts import Artifact
from schemas.config import BaselineName, EvaluationConfig
from schemas.vocabularies import read_vocabulary


class RetrievalMeasures:
    """The metrics of everything that retrieves, by their shared names.

    Args:
      data: the data stages of the run.
      cases: gives the batches of the held-out cases, anew at each call.
    """

    def __init__(
        self,
        data: DataStages,
        cases: Callable[[], Iterable[Mapping[str, Any]]],
    ) -> None:
        self._data, self._cases = data, cases
        self._videos = read_vocabulary(data.vocabularies().path, "video")
        self._uploads = video_column(data, self._videos, "upload_time_us")

    @property
    def _config(self) -> EvaluationConfig:
        return self._data.run.config.evaluation

    def of_baselines(self) -> dict[str, float]:
        """`baselines.<name>.*`, of those that the configuration names."""
        values: dict[str, float] = {}
        for name, build in self._baselines().items():
            scorer = build()
            values |= self._measure(f"baselines.{name}", ExactRanker(scorer))
        return values

    def of_model(
        self, model: RetrievalModelLike, prefix: str = "retrieval"
    ) -> dict[str, float]:
        """`<prefix>.*`, by exact search."""
        return self._measure(prefix, ExactRanker(ModelScorer(model)))

    def of_index(
        self, model: RetrievalModelLike, index: Artifact
    ) -> dict[str, float]:
        """`retrieval.through_index.*`, by the search that is served."""
        from models.index import load_stock

        k = max(self._config.top_k)
        ranker = IndexRanker(model, load_stock(index.path, k), k)
        return self._measure("retrieval.through_index", ranker)

    def _measure(self, name: str, ranker: Ranker) -> dict[str, float]:
        say(f"  measuring {name}")
        return evaluate(
            ranker,
            self._cases(),
            self._config.top_k,
            f"{name}.",
            sliced=True,
            upload_time_us=self._uploads,
        )

    def _baselines(self) -> dict[BaselineName, Callable[[], Scorer]]:
        """What builds each baseline that is asked for and has room."""
        from models.co_watch import CoWatch
        from models.linear_baselines import (
            EASE_MOST_VIDEOS,
            Ease,
            ImplicitAls,
        )

        config, size = self._data.run.config, self._videos.size
        # The same days as the model: a refit adds those of validation.
        parts, bounds = self._data.learnt_parts, self._data.bounds
        if "valid" in parts:
            bounds = bounds.with_validation()
        files = [f for part in parts for f in self._data.part(part)["watches"]]
        watches = read_watches(sorted(files), self._videos)
        known: dict[BaselineName, Callable[[], Scorer]] = {
            "popularity": lambda: Popularity(self._videos.counts),
            "recent_popularity": lambda: recent_popularity(
                watches,
                size,
                bounds.train_end_us,
                self._config.recent_days,
            ),
            "co_watch": functools.partial(CoWatch, watches, size),
            "implicit_als": lambda: ImplicitAls(watches, size, config.seed),
            "ease": functools.partial(Ease, watches, size),
        }
        chosen = {name: known[name] for name in self._config.baselines}
        if "ease" in chosen and size > EASE_MOST_VIDEOS:
            say(
                f"  baselines.ease is left out: it inverts a dense {size:,} x "
                f"{size:,} matrix, at most {EASE_MOST_VIDEOS:,} are taken"
            )
            del chosen["ease"]
        return chosen
