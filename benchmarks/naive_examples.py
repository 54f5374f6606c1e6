"""The peer: retrieval examples by a per-record Beam pipeline.

As Beam's own examples are written: records are dicts, GroupByKey collects a
user's records, Python loops make the examples, one `tf.train.Example` each.
The examples are those of the job: what defines them (stable hash of the draw,
vocabularies, knots) is the same, written here for one record at a time.
"""

import bisect
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import tensorflow as tf
import xxhash

from beam_jobs.runners import pipeline_options
from benchmarks.contest import run_contestant
from benchmarks.given import PARTS, USER_COLUMNS, Given

# Letters and digits make words (the job knows combining marks as well).
_WORD = re.compile(r"[^\W_]+")
_MASK = (1 << 64) - 1
_BELOW_ONE = 1 - 2**-24

Record = dict[str, Any]
Keyed = tuple[str, tuple[str, Record]]


def write_examples(given: Given, output: Path) -> None:
    """Writes `<part>-*.tfrecord`."""
    log = given.log
    with beam.Pipeline(options=pipeline_options()) as pipeline:
        records = [
            pipeline
            | f"Files/{table}/{part}" >> beam.Create(log.files(table, part))
            | f"Read/{table}/{part}" >> beam.io.ReadAllFromParquet()
            | f"Key/{table}/{part}" >> beam.Map(by_user, table, part)
            for table, parts in (
                ("watches", PARTS),
                ("searches", PARTS),
                ("users", ("all",)),
            )
            for part in parts
        ]
        examples = (
            records
            | beam.Flatten()
            | beam.GroupByKey()
            | beam.ParDo(MakeExamples(given)).with_outputs(*PARTS)
        )
        for part in PARTS:
            _ = examples[part] | f"Write/{part}" >> beam.io.WriteToTFRecord(
                str(output / part), file_name_suffix=".tfrecord"
            )


def by_user(record: Record, table: str, part: str) -> Keyed:
    """Keys a record by its user."""
    record["part"] = part
    return record["user_id"], (table, record)


class MakeExamples(beam.DoFn):
    """From a user's records to serialised examples, tagged by part."""

    def __init__(self, given: Given) -> None:
        self._given = given

    def setup(self) -> None:
        given = self._given
        self._bounds = given.log.bounds
        self._config = given.config.retrieval_examples
        self._seed = given.config.seed
        self._videos = given.vocabulary("video")
        self._tokens = given.vocabulary("token")
        self._users = {c: given.vocabulary(c) for c in USER_COLUMNS}
        knots, levels = given.age_knots()
        self._knots, self._levels = knots.tolist(), levels.tolist()

    def process(
        self, grouped: tuple[str, Iterable[tuple[str, Record]]]
    ) -> Iterator[beam.pvalue.TaggedOutput]:
        user_id, records = grouped
        tables: dict[str, list[Record]] = {
            "watches": [],
            "searches": [],
            "users": [],
        }
        for table, record in records:
            tables[table].append(record)
        watches = sorted(tables["watches"], key=_watch_order)
        searches = sorted(
            tables["searches"], key=lambda s: (s["event_time_us"], s["query"])
        )
        user = self._user_features(tables["users"])
        context = _Context(watches, searches)
        labels = self._labels(user_id, watches)
        for watch in labels:
            example = self._query(user_id, user, context, watch)
            example["label"] = _ints([self._videos[watch["video_id"]]])
            example["example_weight"] = _floats([self._weight(len(labels))])
            if self._config.example_age:
                example["example_age"] = _floats([self._age(watch)])
            yield _tagged("train", example)
        held_out = [
            w for w in watches if w["completed"] and w["part"] == "valid"
        ]
        if held_out:
            example = self._query(user_id, user, context, held_out[0])
            ids = [self._videos.get(w["video_id"], 0) for w in held_out]
            example["labels"] = _ints(ids)
            seen = {
                self._videos.get(w["video_id"], 0)
                for w in context.watches_before(held_out[0]["event_time_us"])
            }
            example["seen"] = _ints(sorted(seen - {0}))
            yield _tagged("valid", example)

    def _labels(self, user_id: str, watches: list[Record]) -> list[Record]:
        """At most N completed watches, those of the smallest hashes."""
        end_us = self._bounds.train_end_us
        found = [
            (self._draw(user_id, watch), watch)
            for watch in watches
            if watch["part"] == "train"
            and watch["completed"]
            and watch["event_time_us"] + _spent_us(watch) <= end_us
            and watch["video_id"] in self._videos
        ]
        found.sort(key=lambda pair: pair[0])
        return [watch for _, watch in found[: self._config.examples_per_user]]

    def _draw(self, user_id: str, watch: Record) -> int:
        return mix(
            self._seed,
            xxhash.xxh3_64_intdigest(user_id.encode()),
            xxhash.xxh3_64_intdigest(watch["video_id"].encode()),
            watch["event_time_us"],
        )

    def _weight(self, emitted: int) -> float:
        config = self._config
        if not config.equal_user_weights or not config.examples_per_user:
            return 1.0
        return config.examples_per_user / emitted

    def _age(self, watch: Record) -> float:
        end_us = self._bounds.train_end_us
        window_us = end_us - self._bounds.log_start_us
        return float((end_us - watch["event_time_us"]) / window_us)

    def _query(
        self,
        user_id: str,
        user: dict[str, tf.train.Feature],
        context: "_Context",
        watch: Record,
    ) -> dict[str, tf.train.Feature]:
        """What was known of the user just before a watch."""
        config, time_us = self._config, watch["event_time_us"]
        history = context.watches_before(time_us)[-config.history_length :]
        tokens: list[int] = []
        searches = context.searches_before(time_us)[-config.searches :]
        for search in reversed(searches):
            tokens += [
                self._tokens.get(t, 0) for t in tokenize(search["query"])
            ]
        return {
            **user,
            "user_id": _bytes(user_id.encode()),
            "event_time_us": _ints([time_us]),
            "watch_history": _ints(
                [self._videos.get(w["video_id"], 0) for w in reversed(history)]
            ),
            "search_tokens": _ints(tokens[: config.search_tokens]),
        }

    def _user_features(
        self, users: list[Record]
    ) -> dict[str, tf.train.Feature]:
        user = users[0] if users else {}
        features = {}
        for column, ids in self._users.items():
            value = user.get(column)
            if isinstance(value, bool):
                value = str(value).lower()
            features[f"user_{column}"] = _ints([ids.get(value or "", 0)])
        features["user_age"] = _floats(self._normalized(user.get("age")))
        return features

    def _normalized(self, value: float | None) -> list[float]:
        """Quantile, its square, its root, and whether it is missing."""
        if value is None or math.isnan(value):
            return [0.0, 0.0, 0.0, 1.0]
        right = bisect.bisect_right(self._knots, value)
        x = 0.0
        if right:
            left = right - 1
            low, (below, above) = self._knots[left], self._levels[left]
            if value == low:
                x = below
            elif right < len(self._knots):
                share = (value - low) / (self._knots[right] - low)
                x = above + share * (self._levels[right][0] - above)
            else:
                x = 1.0
        x = min(x, _BELOW_ONE)
        return [x, x * x, math.sqrt(x), 0.0]


class _Context:
    """A user's history in order, cut by bisection."""

    def __init__(self, watches: list[Record], searches: list[Record]) -> None:
        self._watches, self._searches = watches, searches
        self._watch_times = [w["event_time_us"] for w in watches]
        self._search_times = [s["event_time_us"] for s in searches]

    def watches_before(self, time_us: int) -> list[Record]:
        end = bisect.bisect_left(self._watch_times, time_us)
        return self._watches[:end]

    def searches_before(self, time_us: int) -> list[Record]:
        end = bisect.bisect_left(self._search_times, time_us)
        return self._searches[:end]


def tokenize(query: str) -> list[str]:
    """Lower-case words, then pairs of neighbours."""
    words = _WORD.findall(query.lower())
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]


def mix(seed: int, *keys: int) -> int:
    """`schemas.hashing.mix` of one row."""
    state = seed
    for key in keys:
        state = _finalise(((state ^ key) + 0x9E3779B97F4A7C15) & _MASK)
    return _finalise(state)


def _finalise(state: int) -> int:
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def _watch_order(watch: Record) -> tuple[Any, ...]:
    columns = ("event_time_us", "video_id", "watch_time_s", "completed")
    return (*(watch[c] for c in columns), watch["source"])


def _spent_us(watch: Record) -> int:
    return round((watch["watch_time_s"] or 0.0) * 1e6)


def _ints(values: list[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _floats(values: list[float]) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _tagged(
    part: str, features: dict[str, tf.train.Feature]
) -> beam.pvalue.TaggedOutput:
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return beam.pvalue.TaggedOutput(part, example.SerializeToString())


if __name__ == "__main__":
    run_contestant(write_examples)
