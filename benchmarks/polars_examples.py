"""The peer: retrieval examples by a polars script.

What a skilled user writes who has the whole log on one machine: joins and
windows over all rows at once, NumPy where a gather says it best, tfx-bsl's
encoder (as `beam_jobs.example_files` wraps it) for the TFRecords.
"""

from pathlib import Path

import numpy as np
import polars as pl

from beam_jobs.example_files import Column, ExampleWriter, Ragged
from benchmarks.contest import run_contestant
from benchmarks.given import PARTS, USER_COLUMNS, Given
from benchmarks.polars_transform import normalize
from schemas.hashing import hash_strings, mix

_CHUNK_ROWS = 65_536
_USER_TIME = ["user_id", "event_time_us"]


def write_examples(given: Given, output: Path) -> None:
    """Writes `<part>-*.tfrecord`."""
    watches = read_watches(given)
    searches, tokens = read_searches(given)
    users = read_users(given)
    videos = watches["video"].to_numpy()
    for part in PARTS:
        if part == "train":
            chosen = choose_labels(given, watches)
        else:
            chosen = choose_cases(watches)
        chosen = with_searches(chosen, searches).join(
            users, on="user_id", how="left"
        )
        path = output / f"{part}-00000-of-00001.tfrecord"
        with ExampleWriter(str(path), given.keys(part)) as writer:
            for rows in chosen.iter_slices(_CHUNK_ROWS):
                writer.write(columns(given, part, rows, videos, tokens))


def read_watches(given: Given) -> pl.DataFrame:
    """All watches in order, with the video's id and places in the history.

    `first` is the first row of the user, `end` the first row of the user and
    time: rows first .. end - 1 came strictly before.
    """
    parts = [
        pl.scan_parquet(given.log.files("watches", part)).with_columns(
            part=pl.lit(part)
        )
        for part in PARTS
    ]
    videos = vocabulary_frame(given, "video", "video")
    return (
        pl.concat(parts)
        .sort(*_USER_TIME, "video_id", "watch_time_s", "completed", "source")
        .join(
            videos.lazy(),
            left_on="video_id",
            right_on="term",
            how="left",
            maintain_order="left",
        )
        .with_columns(pl.col("video").fill_null(0))
        .with_row_index("row")
        .with_columns(pl.col("row").cast(pl.Int64))
        .with_columns(
            first=pl.col("row").min().over("user_id"),
            end=pl.col("row").min().over(*_USER_TIME),
        )
        .collect()
    )


def read_searches(given: Given) -> tuple[pl.DataFrame, Ragged]:
    """All searches in order, and the token ids of each."""
    files = [f for p in PARTS for f in given.log.files("searches", p)]
    searches = pl.read_parquet(files).sort(*_USER_TIME, "query")
    queries = searches.select("query").unique(maintain_order=True)
    words = (
        pl.col("query")
        .str.to_lowercase()
        .str.extract_all(r"[\p{L}\p{M}\p{N}]+")
    )
    pairs = pl.concat_str(
        pl.col("term"), pl.col("term").shift(-1).over("number"), separator=" "
    )
    unigrams = (
        queries.with_row_index("number")
        .select("number", term=words)
        .explode("term")
        .drop_nulls()
    )
    bigrams = unigrams.select("number", term=pairs).drop_nulls()
    tokens = (
        pl.concat([unigrams, bigrams])
        .join(
            vocabulary_frame(given, "token", "token"),
            on="term",
            how="left",
            maintain_order="left",
        )
        .with_columns(pl.col("token").fill_null(0))
        .sort("number", maintain_order=True)
    )
    counts = np.bincount(tokens["number"].to_numpy(), minlength=queries.height)
    ids = Ragged(tokens["token"].to_numpy(), _splits(counts))
    searches = searches.join(
        queries.with_row_index("number"),
        on="query",
        maintain_order="left",
    ).with_row_index("row")
    rows = pl.col("row").cast(pl.Int64)
    return (
        searches.select(
            *_USER_TIME,
            last_search=rows,
            first_search=rows.min().over("user_id"),
        ),
        gather(ids, searches["number"].to_numpy()),
    )


def read_users(given: Given) -> pl.DataFrame:
    """Users with the ids of their columns and the normalised age."""
    users = pl.read_parquet(given.log.files("users"))
    for column in USER_COLUMNS:
        ids = vocabulary_frame(given, column, f"user_{column}")
        users = users.with_columns(pl.col(column).cast(pl.String)).join(
            ids, left_on=column, right_on="term", how="left"
        )
    age = users["age"].to_numpy()
    normalized = normalize(age.astype(np.float32), *given.age_knots())
    names = [f"user_{column}" for column in USER_COLUMNS]
    return users.select(
        "user_id",
        pl.col(names).fill_null(0),
        pl.Series("user_age", normalized),
    )


def choose_labels(given: Given, watches: pl.DataFrame) -> pl.DataFrame:
    """At most N labels of each user, those of the smallest hashes."""
    bounds, config = given.log.bounds, given.config.retrieval_examples
    spent_us = (pl.col("watch_time_s").fill_null(0) * 1e6).round()
    known = watches.filter(
        pl.col("part") == "train",
        "completed",
        pl.col("event_time_us") + spent_us.cast(pl.Int64)
        <= bounds.train_end_us,
        pl.col("video") > 0,
    )
    draw = mix(
        given.config.seed,
        hash_strings(known["user_id"].to_arrow().cast("string")),
        hash_strings(known["video_id"].to_arrow().cast("string")),
        known["event_time_us"].to_numpy(),
    )
    limit = config.examples_per_user or known.height
    age_us = bounds.train_end_us - pl.col("event_time_us")
    weight = pl.lit(1.0)
    if config.equal_user_weights and config.examples_per_user:
        weight = limit / pl.len().over("user_id")
    return (
        known.with_columns(draw=pl.Series(draw))
        .filter(pl.col("draw").rank("ordinal").over("user_id") <= limit)
        .sort("draw")
        .with_columns(
            label="video",
            example_weight=weight.cast(pl.Float32),
            example_age=(
                age_us / (bounds.train_end_us - bounds.log_start_us)
            ).cast(pl.Float32),
        )
    )


def choose_cases(watches: pl.DataFrame) -> pl.DataFrame:
    """One case per user that completed a watch in the validation part."""
    held_out = watches.filter(pl.col("part") == "valid", "completed")
    return held_out.group_by("user_id", maintain_order=True).agg(
        pl.col("event_time_us", "first", "end").first(), labels="video"
    )


def with_searches(chosen: pl.DataFrame, searches: pl.DataFrame) -> pl.DataFrame:
    """Adds the range of searches strictly before each row's time."""
    return (
        chosen.with_row_index("place")
        .sort("event_time_us")
        .join_asof(
            searches.sort("event_time_us", maintain_order=True),
            on="event_time_us",
            by="user_id",
            allow_exact_matches=False,
            check_sortedness=False,
        )
        .sort("place")
        .with_columns(
            pl.col("last_search").fill_null(-1),
            pl.col("first_search").fill_null(0),
        )
    )


def columns(
    given: Given,
    part: str,
    rows: pl.DataFrame,
    videos: np.ndarray,
    tokens: Ragged,
) -> dict[str, Column]:
    """The columns of some examples."""
    config = given.config.retrieval_examples
    names = np.array(rows["user_id"].cast(pl.Binary).to_list(), object)
    first, end = rows["first"].to_numpy(), rows["end"].to_numpy()
    stop = rows["last_search"].to_numpy() + 1
    recent = ranges(
        np.maximum(rows["first_search"].to_numpy(), stop - config.searches),
        stop,
    )
    found: dict[str, Column] = {
        "user_id": names,
        "event_time_us": rows["event_time_us"].to_numpy(),
        "watch_history": _at(
            videos, ranges(np.maximum(first, end - config.history_length), end)
        ),
        "search_tokens": joined(tokens, recent, config.search_tokens),
        "user_age": rows["user_age"].to_numpy(),
    }
    for column in USER_COLUMNS:
        found[f"user_{column}"] = rows[f"user_{column}"].to_numpy()
    if part == "train":
        for name in ("label", "example_weight", "example_age"):
            found[name] = rows[name].to_numpy()
        return found
    labels = rows["labels"].list
    found["labels"] = Ragged(
        labels.explode().to_numpy(), _splits(labels.len().to_numpy())
    )
    found["seen"] = distinct(_at(videos, ranges(first, end)))
    return found


def vocabulary_frame(given: Given, space: str, name: str) -> pl.DataFrame:
    """Columns `term` and the id under a name."""
    terms = given.vocabulary(space)
    return pl.DataFrame(
        {"term": list(terms), name: list(terms.values())},
        schema={"term": pl.String, name: pl.Int64},
    )


def ranges(start: np.ndarray, end: np.ndarray) -> Ragged:
    """Numbers end - 1 down to start of each row."""
    splits = _splits(end - start)
    place = np.arange(splits[-1]) - np.repeat(splits[:-1], np.diff(splits))
    return Ragged(np.repeat(end, np.diff(splits)) - 1 - place, splits)


def gather(lists: Ragged, index: np.ndarray) -> Ragged:
    """The lists at an index."""
    start, end = lists.row_splits[index], lists.row_splits[index + 1]
    splits = _splits(end - start)
    shift = np.repeat(start - splits[:-1], np.diff(splits))
    return Ragged(lists.values[np.arange(splits[-1]) + shift], splits)


def joined(lists: Ragged, rows: Ragged, limit: int) -> Ragged:
    """The lists of each row's numbers one after another, cut to a limit."""
    flat = gather(lists, rows.values)
    splits = flat.row_splits[rows.row_splits]
    lengths = np.diff(splits)
    place = np.arange(splits[-1]) - np.repeat(splits[:-1], lengths)
    return Ragged(
        flat.values[place < limit], _splits(np.minimum(lengths, limit))
    )


def distinct(lists: Ragged) -> Ragged:
    """The distinct positive values of each row, ascending."""
    row = np.repeat(
        np.arange(len(lists.row_splits) - 1), np.diff(lists.row_splits)
    )
    pairs = (
        pl.DataFrame({"row": row, "value": lists.values})
        .filter(pl.col("value") > 0)
        .unique()
        .sort("row", "value")
    )
    counts = np.bincount(
        pairs["row"].to_numpy(), minlength=len(lists.row_splits) - 1
    )
    return Ragged(pairs["value"].to_numpy(), _splits(counts))


def _at(values: np.ndarray, rows: Ragged) -> Ragged:
    return Ragged(values[rows.values], rows.row_splits)


def _splits(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


if __name__ == "__main__":
    run_contestant(write_examples)
