"""The incremental stages: the examples of new days, and of all days so far.

Wiring only. A version of `daily_examples` follows from the newest events, from
the version whose state ends where its days begin (its parent), and from the
configuration; the chain of parents is a work directory's days so far.
"""

import dataclasses
import datetime
from collections.abc import Iterator, Sequence

from beam_jobs.runners import pipeline_options
from pipeline.console import say
from pipeline.run import DAILY, Run, Sections
from pipeline.stages import DataStages
from schemas.artifacts import Artifact, ArtifactWriter, digest, join
from schemas.buckets import bucket_of
from schemas.days import DAYS_FILE, DayRange
from schemas.errors import InputError, UsageError
from schemas.events import ENTITY_KEYS, TIMED_TABLES
from schemas.examples import ranking_observations
from schemas.requests import raw_inputs
from schemas.split import SplitBounds

NO_PARENT = "none"
# More days at once are an event with a wrong clock, not a log.
MAX_DAYS = 3660


def parse_day(text: str) -> datetime.date:
    """Reads the value of `--since`.

    Raises:
      UsageError: it is no date.
    """
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise UsageError(
            f"--since {text!r} is no date; expected YYYY-MM-DD, for example "
            "2026-01-05."
        ) from None


def prepare_since(run: Run, since: datetime.date) -> None:
    """Writes the examples of the days since a day, then those of all days."""
    stages = DayStages(run.building(*DAILY), since)
    stages.window_examples(stages.daily_examples())


@dataclasses.dataclass(frozen=True)
class Days:
    """A version of `daily_examples` and the days it has."""

    version: Artifact
    range: DayRange

    @classmethod
    def of(cls, version: Artifact) -> "Days":
        return cls(version, DayRange.read(version.file(DAYS_FILE)))

    @property
    def num_shards(self) -> int:
        """User shards: files per day and table; a chain keeps the number."""
        return bucket_of(self.version.names("state/watches-")[0])[1]


class DayStages:
    """The incremental stages of a run that adds the days since a day."""

    def __init__(self, run: Run, since: datetime.date) -> None:
        if run.config.retrieval_examples.label != "next_watch":
            raise UsageError(
                "`prepare --since` writes next watches; "
                "`retrieval_examples.label: held_out_watch` looks at all days "
                "at once. Leave out --since or set next_watch."
            )
        self._run, self._since = run, since
        self._data = DataStages(run)
        self._schema = self._data.schema
        self._options = pipeline_options(run.beam_flags)

    def daily_examples(self) -> Artifact:
        """Writes the new days' examples and the state after them.

        Raises:
          UsageError: no state ends where the days begin, or there is no
            event since then.
        """
        parent = self._parent()

        def write(writer: ArtifactWriter) -> None:
            from beam_jobs import daily_examples

            config, data = self._run.config, self._data
            timed = {
                t: data.events.files(f"{t}-")
                for t in TIMED_TABLES
                if self._schema.has(t)
            }
            wanted = parent.num_shards if parent else config.beam.num_shards
            shards = config.beam.model_copy(update={"num_shards": wanted})
            first, last = daily_examples.event_days(
                timed,
                self._schema,
                config.split.utc_offset_hours,
                writer.path,
                self._options,
            )
            writer.counts |= daily_examples.run(
                event_files=timed,
                users=data.entity_files("users"),
                videos=data.entity_files("videos"),
                schema=self._schema,
                days=self._new_days(parent, first, last),
                parent=parent.version.path if parent else None,
                retrieval=config.retrieval_examples,
                ranking=config.ranking_examples,
                shards=shards,
                seed=config.seed,
                output=writer.path,
                options=self._options,
            )

        prefixes = ["schema.json"] + [
            f"{t}-"
            for t in (*TIMED_TABLES, *ENTITY_KEYS)
            if self._schema.has(t)
        ]
        inputs = {
            "events": self._data.events.fingerprint(*prefixes),
            "parent": parent.version.key if parent else NO_PARENT,
        }
        sections = {"since": str(self._since), **self._sections()}
        return self._run.stage("daily_examples", sections, inputs, write)

    def window_examples(self, newest: Artifact) -> None:
        """Writes the training examples of all days of a chain.

        Without vocabularies and transform for the configuration it says so.

        Args:
          newest: the chain's last version of `daily_examples`.
        """
        fitted = self._fitted()
        if fitted is None:
            say(
                "window_examples: ids and examples follow when vocabularies "
                "and transform are there for this configuration and log; "
                f"`watchnext prepare --workdir {self._run.workdir}` makes them "
                "from the events of a window."
            )
            return
        chain = list(self._chain(Days.of(newest)))[::-1]
        self._window_retrieval(chain, *fitted)
        if self._schema.has("impressions"):
            self._window_ranking(chain, fitted[1])

    def _window_retrieval(
        self,
        chain: Sequence[Days],
        vocabularies: Artifact,
        transform: Artifact,
    ) -> Artifact:
        first, last = chain[0].range, chain[-1].range
        bounds = SplitBounds(
            "time",
            first.start_us,
            train_end_us=last.end_us,
            valid_end_us=last.end_us,
            utc_offset_hours=last.utc_offset_hours,
        )

        def write(writer: ArtifactWriter) -> None:
            from beam_jobs import window_examples

            config = self._run.config
            writer.counts |= window_examples.run(
                days=_folders(chain),
                bounds=bounds,
                vocabularies=vocabularies.path,
                transform=_graph(transform),
                schema=self._schema,
                retrieval=config.retrieval_examples,
                ranking=config.ranking_examples,
                num_shards=chain[-1].num_shards,
                output=writer.path,
                options=self._options,
            )

        inputs = {
            "days": _fingerprint(chain, "retrieval-"),
            "vocabularies": vocabularies.fingerprint(),
            "transform": transform.fingerprint(),
        }
        return self._run.stage(
            "window_examples", self._window(chain), inputs, write
        )

    def _window_ranking(
        self,
        chain: Sequence[Days],
        transform: Artifact,
    ) -> Artifact:
        def write(writer: ArtifactWriter) -> None:
            from beam_jobs import window_ranking

            config = self._run.config
            writer.counts |= window_ranking.run(
                days=_folders(chain),
                transform_path=_graph(transform),
                schema=self._schema,
                retrieval=config.retrieval_examples,
                ranking=config.ranking_examples,
                num_shards=chain[-1].num_shards,
                output=writer.path,
                options=self._options,
            )

        # The transform graph holds the vocabularies.
        inputs = {
            "days": _fingerprint(chain, "ranking-"),
            "transform": transform.fingerprint(),
        }
        return self._run.stage(
            "window_ranking_examples", self._window(chain), inputs, write
        )

    def _window(self, chain: Sequence[Days]) -> Sections:
        first, end = chain[0].range.first, chain[-1].range.end
        window = f"{first} to {end}, {self._local_time()}"
        return {"window": window, **self._examples_sections()}

    def _examples_sections(self) -> Sections:
        config = self._run.config
        return {
            "beam": config.beam,
            "retrieval_examples": config.retrieval_examples,
            "ranking_examples": config.ranking_examples,
        }

    def _sections(self) -> Sections:
        """What makes versions fit together in a chain."""
        config = self._run.config
        inputs = raw_inputs(
            self._schema, config.retrieval_examples, config.ranking_examples
        )
        request = [f"{i.name}:{i.dtype}{list(i.shape)}" for i in inputs]
        if self._schema.has("impressions"):
            request += ranking_observations(self._schema)
        return {
            "request": " ".join(request),
            "local_time": self._local_time(),
            "beam": config.beam,
        }

    def _local_time(self) -> str:
        return f"UTC{self._run.config.split.utc_offset_hours:+g}"

    def _versions(self) -> list[Days]:
        found = self._run.versions("daily_examples", self._sections())
        return [Days.of(version) for version in found]

    def _parent(self) -> Days | None:
        """The newest version whose state ends where the days begin.

        Raises:
          UsageError: there are days before, but none of them ends there.
        """
        there = self._versions()
        for days in reversed(there):
            if days.range.end == self._since:
                days.version.verify()
                return days
        before = [d.range for d in there if d.range.first < self._since]
        if before:
            listed = sorted({f"{d.first} to {_last(d)}" for d in before})
            newest = before[-1].end
            raise UsageError(
                f"No state ends at the beginning of {self._since}; the days "
                f"there are {', '.join(listed)}. Go on with `watchnext "
                f"prepare --since {newest} --workdir {self._run.workdir}` on "
                f"events that have {newest}."
            )
        return None

    def _new_days(
        self, parent: Days | None, first: datetime.date, last: datetime.date
    ) -> DayRange:
        """The days to write, of events of the days first .. last.

        Raises:
          UsageError: there is no event since the day, or events before it
            that no state holds.
          InputError: far too many days.
        """
        since = self._since
        if last < since:
            raise UsageError(
                f"The newest events end on {last}, before --since {since}; "
                f"`watchnext ingest` the logs of {since} first."
            )
        if parent is None and first < since:
            raise UsageError(
                f"The events begin on {first}, before --since {since}, and "
                "no earlier days are there for this configuration. Begin "
                f"with `watchnext prepare --since {first} --workdir "
                f"{self._run.workdir}`, or ingest the logs of {since} alone."
            )
        start = since if parent else first
        if first > start:
            say(f"daily_examples: no event from {start} until {first}.")
        if (last - start).days >= MAX_DAYS:
            raise InputError(
                f"The events go from {start} to {last}, more than {MAX_DAYS} "
                "days; an event of a wrong clock? Leave it out of the log."
            )
        return DayRange(
            start,
            last + datetime.timedelta(days=1),
            self._run.config.split.utc_offset_hours,
        )

    def _chain(self, newest: Days) -> Iterator[Days]:
        """A version and its parents, newest first, as far as they are kept."""
        by_key = {d.version.key: d for d in self._versions()}
        link: Days | None = newest
        while link is not None:
            yield link
            link = by_key.get(link.version.manifest["inputs"]["parent"])

    def _fitted(self) -> tuple[Artifact, Artifact] | None:
        """The newest vocabularies and transform for what the days have."""
        from beam_jobs.transform_graph import feature_names

        config, run = self._run.config, self._run
        shared = self._examples_sections()
        terms = {
            version.fingerprint(): version
            for version in run.versions(
                "vocabularies", {"vocabularies": config.vocabularies, **shared}
            )
        }
        wanted = {feature.name for feature in self._data.features}
        for transform in reversed(
            run.versions(
                "transform", {"normalization": config.normalization, **shared}
            )
        ):
            vocabularies = terms.get(
                transform.manifest["inputs"]["vocabularies"]
            )
            if vocabularies and feature_names(_graph(transform)) == wanted:
                vocabularies.verify()
                transform.verify()
                return vocabularies, transform
        return None


def _graph(transform: Artifact) -> str:
    return join(transform.path, "transform_fn")


def _folders(chain: Sequence[Days]) -> dict[str, str]:
    """Day -> folder; what will be read is verified."""
    for link in chain:
        link.version.verify()
    return {str(day): link.version.path for link in chain for day in link.range}


def _fingerprint(chain: Sequence[Days], prefix: str) -> str:
    return digest(
        [
            link.version.fingerprint(*(f"{day}/{prefix}" for day in link.range))
            for link in chain
        ]
    )


def _last(days: DayRange) -> datetime.date:
    return days.end - datetime.timedelta(days=1)
