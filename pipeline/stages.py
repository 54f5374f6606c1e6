"""The data stages: split, vocabularies, transform graph, examples.

Wiring only: which part of which input each stage reads, and hence what its
fingerprint follows from. Training stages never read the test part.
"""

from collections.abc import Callable, Mapping, Sequence

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.runners import pipeline_options
from beam_jobs.watch_rows import PartName
from pipeline.console import say
from pipeline.refresh import last_days_since_us
from pipeline.run import PREPARED, Run
from schemas.artifacts import Artifact, ArtifactWriter
from schemas.errors import UsageError
from schemas.events import ENTITY_KEYS, TIMED_TABLES, EventSchema
from schemas.examples import ranking_observations
from schemas.features import FeatureSet, feature_set
from schemas.split import BOUNDS_FILE, SplitBounds
from schemas.vocabularies import read_vocabulary

_COUNTS = ".counts.txt"
# Both decide on the features, whatever the stage writes.
_EXAMPLES = ("retrieval_examples", "ranking_examples")
# Examples of a part may look back to the parts before it.
_PARTS: tuple[PartName, ...] = ("train", "valid", "test")


def prepare(
    run: Run, events: Artifact | None = None, last_days: int | None = None
) -> None:
    """Builds whatever of the data stages is not there yet.

    Args:
      run: the run.
      events: to start from; default is the newest of the work directory.
      last_days: also write `recent_examples`, of so many training days.
    """
    data = DataStages(run.building(*PREPARED, "recent_examples"), events)
    data.retrieval_examples()
    if run.config.retrieval.refit_epochs:
        data.refit_examples(last_days)
    data.retrieval_holdout()
    if data.schema.has("impressions"):
        data.ranking_examples()
        data.ranking_holdout()
    else:
        say("The log has no impressions: no ranking examples.")
    if last_days is not None:
        data.recent_examples(last_days)


class DataStages:
    """The data stages of a run, each found or, if allowed, built."""

    def __init__(self, run: Run, events: Artifact | None = None) -> None:
        self.run = run
        self.events = events or run.store.latest("events", "simulate")
        with FileSystems.open(self.events.file("schema.json")) as stream:
            self.schema = EventSchema.from_json(stream.read().decode())
        self._found: dict[str, Artifact] = {}

    @property
    def features(self) -> FeatureSet:
        config = self.run.config
        return feature_set(
            self.schema, config.retrieval_examples, config.ranking_examples
        )

    @property
    def bounds(self) -> SplitBounds:
        return SplitBounds.read(self.split().file(BOUNDS_FILE))

    @property
    def learnt_parts(self) -> tuple[PartName, ...]:
        """What the retrieval model that is served has learnt from."""
        refit = self.run.config.retrieval.refit_epochs > 0
        return ("train", "valid") if refit else ("train",)

    @property
    def sizes(self) -> dict[str, int]:
        """Vocabulary size per ID space.

        Of the files: an engine's counters may lack a bundle, or count a retry.
        """
        vocabularies = self.vocabularies()
        spaces = [
            name.removesuffix(_COUNTS)
            for name in vocabularies.names()
            if name.endswith(_COUNTS)
        ]
        return {
            space: read_vocabulary(vocabularies.path, space).size
            for space in spaces
        }

    def entity_files(self, table: str) -> list[str]:
        """Files of `users` or `videos`; empty if the log has none."""
        return self.events.files(f"{table}-") if self.schema.has(table) else []

    def split(self) -> Artifact:
        """Divides the events into training, validation and test."""
        tables = [t for t in TIMED_TABLES if self.schema.has(t)]

        def write(writer: ArtifactWriter) -> None:
            from beam_jobs import split

            writer.counts |= split.run(
                {t: self.events.files(f"{t}-") for t in tables},
                self.schema,
                self.run.config.split,
                self.run.config.beam.num_shards,
                writer.path,
                self._options(),
            )

        prefixes = ["schema.json", *(f"{t}-" for t in tables)]
        inputs = {"events": self.events.fingerprint(*prefixes)}
        return self._stage("split", ["split", "beam"], inputs, write)

    def vocabularies(self) -> Artifact:
        """Counts the terms of each ID space on the training part."""

        def write(writer: ArtifactWriter) -> None:
            from beam_jobs import vocabularies

            writer.counts |= vocabularies.run(
                self.part("train"),
                self.entity_files("users"),
                self.entity_files("videos"),
                self.bounds,
                self.schema,
                self.features,
                self.run.config.vocabularies,
                self.run.config.beam,
                writer.path,
                self._options(),
            )

        sections = ["vocabularies", "beam", *_EXAMPLES]
        return self._stage(
            "vocabularies", sections, self._inputs("train"), write
        )

    def transform(self) -> Artifact:
        """Fits the transform graph on the training part."""
        config = self.run.config

        def write(writer: ArtifactWriter) -> None:
            from beam_jobs import transform

            files = self.part("train") | {
                t: self.entity_files(t) for t in ENTITY_KEYS
            }
            writer.counts |= transform.run(
                files=files,
                vocabulary_folder=self.vocabularies().path,
                output=writer.path,
                schema=self.schema,
                retrieval=config.retrieval_examples,
                ranking=config.ranking_examples,
                normalization=config.normalization,
                shards=config.beam,
                seed=config.seed,
                train_end_us=self.bounds.train_end_us,
                utc_offset_hours=config.split.utc_offset_hours,
                options=self._options(),
            )

        inputs = self._inputs("train") | {
            "vocabularies": self.vocabularies().fingerprint()
        }
        sections = ["normalization", "beam", *_EXAMPLES]
        return self._stage("transform", sections, inputs, write)

    def retrieval_examples(self) -> Artifact:
        """Writes next-watch examples and validation cases."""
        return self._retrieval("retrieval_examples", ("train", "valid"))

    def retrieval_holdout(self) -> Artifact:
        """Writes the test cases."""
        return self._retrieval("retrieval_holdout", ("test",))

    def recent_examples(self, last_days: int) -> Artifact:
        """Writes next-watch examples of the last training days alone."""
        since_us = last_days_since_us(self.bounds, last_days)
        return self._retrieval("recent_examples", ("train",), since_us)

    def refit_examples(self, last_days: int | None = None) -> Artifact:
        """Writes next-watch examples of training and validation together.

        Args:
          last_days: of the last training days and of validation alone.
        """
        since_us = None
        if last_days is not None:
            since_us = last_days_since_us(self.bounds, last_days)
        return self._retrieval("refit_examples", ("train",), since_us, "valid")

    def ranking_examples(self) -> Artifact:
        """Writes the requests of training and validation."""
        return self._ranking("ranking_examples", ("train", "valid"))

    def ranking_holdout(self) -> Artifact:
        """Writes the requests of the test."""
        return self._ranking("ranking_holdout", ("test",))

    @property
    def transform_graph(self) -> str:
        """Folder of the transform graph."""
        return str(FileSystems.join(self.transform().path, "transform_fn"))

    def _retrieval(
        self,
        stage: str,
        parts: Sequence[PartName],
        since_us: int | None = None,
        train_to: PartName = "train",
    ) -> Artifact:
        """A stage of examples; `train` is all parts up to `train_to`."""
        last = max(_PARTS.index(part) for part in (*parts, train_to))
        read = _PARTS[: last + 1]
        inputs = self._example_inputs(read)
        if since_us is not None:
            inputs["since_us"] = str(since_us)

        def write(writer: ArtifactWriter) -> None:
            from beam_jobs import retrieval_examples

            config = self.run.config
            files, bounds = (
                {part: self.part(part) for part in read},
                self.bounds,
            )
            if train_to == "valid":
                files = {"train": _joined(files["train"], files["valid"])}
                bounds = bounds.with_validation()
            writer.counts |= retrieval_examples.run(
                files,
                self.entity_files("users"),
                bounds,
                self.vocabularies().path,
                self.transform_graph,
                self.schema,
                config.retrieval_examples,
                config.ranking_examples,
                config.beam,
                config.seed,
                writer.path,
                self._options(),
                parts,
                since_us,
            )

        return self._stage(stage, ["beam", *_EXAMPLES], inputs, write)

    def _ranking(self, stage: str, parts: Sequence[PartName]) -> Artifact:
        if not self.schema.has("impressions"):
            raise UsageError(
                f"The events of {self.run.workdir} have no impressions, which "
                "the ranking model learns from. Map a table `impressions`, or "
                "use the retrieval model alone."
            )
        read = _PARTS[: _PARTS.index(parts[-1]) + 1]

        def write(writer: ArtifactWriter) -> None:
            from beam_jobs import ranking_examples

            config = self.run.config
            by_part = {part: self.part(part) for part in read}
            writer.counts |= ranking_examples.run(
                files={
                    table: {part: by_part[part][table] for part in read}
                    for table in by_part["train"]
                },
                users=self.entity_files("users"),
                videos=self.entity_files("videos"),
                transform_path=self.transform_graph,
                output=writer.path,
                parts=parts,
                schema=self.schema,
                retrieval=config.retrieval_examples,
                ranking=config.ranking_examples,
                shards=config.beam,
                utc_offset_hours=config.split.utc_offset_hours,
                options=self._options(),
            )

        # Names what the log says of impressions, which the examples carry.
        inputs = self._example_inputs(read) | {
            "observations": " ".join(ranking_observations(self.schema))
        }
        return self._stage(stage, ["beam", *_EXAMPLES], inputs, write)

    def _stage(
        self,
        name: str,
        sections: Sequence[str],
        inputs: Mapping[str, str],
        write: Callable[[ArtifactWriter], None],
    ) -> Artifact:
        if name not in self._found:
            chosen = {s: getattr(self.run.config, s) for s in sections}
            self._found[name] = self.run.stage(name, chosen, inputs, write)
        return self._found[name]

    def part(self, part: str) -> dict[str, list[str]]:
        """Timed table -> files of one part of the split."""
        return {
            table: self.split().files(f"{part}/{table}-")
            for table in TIMED_TABLES
            if self.schema.has(table)
        }

    def _inputs(self, *parts: str) -> dict[str, str]:
        entities = [f"{t}-" for t in ENTITY_KEYS if self.schema.has(t)]
        prefixes = [BOUNDS_FILE, *(f"{part}/" for part in parts)]
        return {
            "events": self.events.fingerprint("schema.json", *entities),
            "split": self.split().fingerprint(*prefixes),
        }

    def _example_inputs(self, parts: Sequence[str]) -> dict[str, str]:
        return self._inputs(*parts) | {
            "vocabularies": self.vocabularies().fingerprint(),
            "transform": self.transform().fingerprint(),
        }

    def _options(self) -> PipelineOptions:
        return pipeline_options(self.run.beam_flags)


def _joined(
    *parts: Mapping[str, Sequence[str]],
) -> dict[str, list[str]]:
    """Table -> the files of all parts."""
    return {t: [f for part in parts for f in part[t]] for t in parts[0]}
