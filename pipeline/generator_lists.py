"""The lists of candidate generators: which files they follow from.

Wiring of the stage `candidate_lists`, and of what the exported recommender
knows of videos beside the models.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.events import read_tables
from models.baselines import Watches, read_watches
from models.candidate_lists import (
    CandidateLists,
    co_watch_lists,
    popular_lists,
    topic_lists,
    topics_of_videos,
)
from models.generators import BY_INDEX
from models.recommender import Catalogue
from pipeline.stages import DataStages
from schemas.artifacts import Artifact, ArtifactWriter
from schemas.config import GeneratorConfig
from schemas.errors import UsageError
from schemas.hashing import hash_strings
from schemas.split import DAY_US
from schemas.vocabularies import read_vocabulary


def wanted(data: DataStages) -> tuple[GeneratorConfig, ...]:
    """The configured generators that look lists up."""
    generators = data.run.config.serving.generators
    return tuple(g for g in generators if g.name not in BY_INDEX)


def inputs(data: DataStages) -> dict[str, str]:
    """Fingerprints of what `write` reads."""
    found = {
        "train_watches": data.split().fingerprint("train/watches-"),
        "vocabularies": data.vocabularies().fingerprint(),
    }
    if data.schema.has("videos"):
        found["videos"] = data.events.fingerprint("videos-")
    if data.schema.has("users"):
        found["users"] = data.events.fingerprint("users-")
    return found


def write(data: DataStages, writer: ArtifactWriter) -> None:
    """Fills the stage: `<generator>.npz` of each that looks lists up.

    Raises:
      UsageError: the log has no topics for `topics`.
    """
    config, folder = data.run.config, data.vocabularies().path
    videos = read_vocabulary(folder, "video")
    files = sorted(data.split().files("train/watches-"))
    watches = read_watches(files, videos)
    end_us = data.bounds.train_end_us
    # What was watched is left out at serving: there must be others behind it.
    history = config.retrieval_examples.history_length

    for generator in wanted(data):
        most = generator.candidates + history
        recent = watches.since(end_us - generator.recent_days * DAY_US)
        if generator.name == "co_watch":
            lists = co_watch_lists(watches, videos.size, most)
        elif generator.name == "topics":
            lists = _by_topic(data, recent, most)
        else:
            lists = _by_region(data, recent, videos.size, most)
        lists.save(writer.file(f"{generator.name}.npz"))
        writer.counts[f"{generator.name}_keys"] = int(
            np.count_nonzero(lists.ids[:, 0])
        )


def catalogue(data: DataStages, lists: Artifact | None) -> Catalogue:
    """What the recommender knows of videos: strings, lists, channels."""
    loaded, channels = {}, None
    if lists is not None:
        loaded = {
            generator.name: CandidateLists.load(
                lists.file(f"{generator.name}.npz")
            )
            for generator in wanted(data)
        }
    if data.run.config.serving.max_per_channel is not None:
        channels = _channels(data)
    return Catalogue(data.vocabularies().file("video.txt"), loaded, channels)


def _by_topic(data: DataStages, watches: Watches, most: int) -> CandidateLists:
    folder = data.vocabularies().path
    videos = read_vocabulary(folder, "video")
    topics = read_vocabulary(folder, "topic")
    if not topics.size:
        raise UsageError(
            "No video of the log has a topic, so the generator `topics` has "
            "nothing to offer. Leave it out of serving.generators."
        )
    of_video = topics_of_videos(
        _columns(data, "videos", "video_id", "topics"),
        videos,
        topics,
        data.run.config.ranking_examples.max_list,
    )
    return topic_lists(watches, of_video, topics.size, most)


def _by_region(
    data: DataStages, watches: Watches, videos: int, most: int
) -> CandidateLists:
    users: np.ndarray = np.zeros(0, np.uint64)
    of_user: np.ndarray = np.zeros(0, np.int64)
    regions = 0
    if data.schema.has("users", "region"):
        vocabulary = read_vocabulary(data.vocabularies().path, "region")
        rows = _columns(data, "users", "user_id", "region")
        users, regions = hash_strings(rows["user_id"]), vocabulary.size
        of_user = vocabulary.ids(rows["region"])
    return popular_lists(watches, users, of_user, regions, videos, most)


def _channels(data: DataStages) -> np.ndarray:
    """A number from 1 per channel, int32 [V + 1]; 0 where there is none."""
    videos = read_vocabulary(data.vocabularies().path, "video")
    rows = _columns(data, "videos", "video_id", "channel_id")
    codes = rows["channel_id"].combine_chunks().dictionary_encode().indices
    numbers = np.asarray(pc.fill_null(pc.add(codes, 1), 0))
    channels = np.zeros(videos.size + 1, np.int32)
    channels[videos.ids(rows["video_id"])] = numbers
    channels[0] = 0
    return channels


def _columns(data: DataStages, table: str, *names: str) -> pa.Table:
    columns = data.schema.arrow(table)
    wanted = pa.schema([columns.field(name) for name in names])
    return read_tables(data.entity_files(table), wanted)
