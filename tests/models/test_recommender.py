"""The whole funnel in one SavedModel against its stages, one by one."""

import numpy as np
import pytest

from models.generators import TOWER
from models.keras_setup import tf
from models.recommender import Catalogue, RecommenderService
from models.retrieval import RetrievalModel
from models.serving import RankingService, RetrievalService
from schemas.config import GeneratorConfig, ServingConfig
from schemas.errors import InputError
from schemas.model_config import RetrievalConfig, SequenceConfig, TowerConfig
from tests.models import conftest as small

BY_SEQUENCE = ServingConfig(
    candidates=6,
    generators=(GeneratorConfig(name="sequence", candidates=3),),
)
LOGGED_AS = {"co_watch": b"b", "popular": b"a", TOWER: b""}


@pytest.fixture(scope="module")
def request_(world, raw):
    """Raw requests without candidates, as tensors."""
    return {
        i.name: tf.constant(raw[i.name], i.dtype)
        for i in world.inputs
        if i.axis != "candidate"
    }


@pytest.fixture(scope="module")
def signatures(exported):
    return tf.saved_model.load(exported.recommender).signatures


def candidates_by_hand(world, raw, tower):
    """Per request: rows of video, generator and score."""
    lists, number = small.candidate_lists(), world.videos
    ids = {name: i for i, name in enumerate(number, start=1)}
    regions = {b"r1": 1, b"r0": 2}
    answers = []
    for row in range(small.REQUESTS):
        watched = raw["watch_history_video_id"][row].tolist()
        watching = raw["query_video_id"][row]
        query = watching or watched[0]
        unwanted = {*watched, watching}
        keys = {
            "co_watch": ids.get(query, 0),
            "popular": regions.get(raw["user_region"][row], 0),
        }
        chosen = []
        for generator in small.SERVING.generators:
            ready = lists[generator.name]
            offered = [
                (number[i - 1], generator.name, score)
                for i, score in zip(
                    ready.ids[keys[generator.name]],
                    ready.scores[keys[generator.name]],
                    strict=True,
                )
                if i > 0 and number[i - 1] not in unwanted
            ]
            chosen += offered[: generator.candidates]
        names = tower["video_ids"][row].numpy()
        scores = tower["scores"][row].numpy()
        others = [
            (v, TOWER, s)
            for v, s in zip(names, scores, strict=True)
            if v and v not in unwanted
        ]
        chosen += others[: small.TOP_K]
        first = {v: (v, g, s) for v, g, s in reversed(chosen)}
        order = sorted(first, key=[v for v, _, _ in chosen].index)
        answers.append([first[v] for v in order][: small.TOP_K])
    return answers


@pytest.fixture(scope="module")
def by_hand(world, raw, request_):
    first = RetrievalService(
        world.retrieval,
        world.transform,
        world.inputs,
        world.video_ids,
        top_k=100,
    )
    tower = first.recommend({i.name: request_[i.name] for i in first.inputs})
    # Some watch a video that the tower would show them.
    assert any(
        watching in found and watching
        for watching, found in zip(
            raw["query_video_id"], tower["video_ids"].numpy(), strict=True
        )
    )
    return candidates_by_hand(world, raw, tower)


def test_candidates_are_the_generators_then_the_tower_s(
    signatures, request_, by_hand
):
    answer = signatures["every_candidate"](**request_)
    named = [
        answer[name].numpy().tolist()
        for name in ("video_ids", "candidate_sources", "retrieval_scores")
    ]
    for expected, *found in zip(by_hand, *named, strict=True):
        scores = {video: score for video, _, score in expected}
        sources = {v: source.encode() for v, source, _ in expected}
        videos, found_sources, found_scores = found
        assert dict(zip(videos, found_sources, strict=True)) == sources
        assert dict(zip(videos, found_scores, strict=True)) == pytest.approx(
            scores, rel=1e-5
        )
    # A query video, the last watch instead, and neither.
    sources = [{source for _, source, _ in row} for row in by_hand]
    assert {"co_watch", "popular", TOWER} in sources
    assert {"popular", TOWER} in sources


def test_candidates_are_ranked_as_the_ranking_model_does(
    world, raw, exported, signatures, request_, ranking_raw, by_hand
):
    rank = tf.saved_model.load(exported.ranking).signatures
    absent = {
        i.name: tf.constant(
            np.full((small.REQUESTS, small.TOP_K, *i.shape[1:]), i.absent),
            i.dtype,
        )
        for i in world.inputs
        if i.axis == "candidate" and i.name in ranking_raw
    }
    videos = np.array([[v for v, _, _ in row] for row in by_hand], object)
    of_candidates = {
        "candidate_video_id": tf.constant(videos),
        "candidate_source": tf.constant(
            [[LOGGED_AS[g] for _, g, _ in row] for row in by_hand]
        ),
    }
    ranked = rank["serving_default"](**request_ | absent | of_candidates)
    best = np.argsort(-ranked["score"].numpy(), axis=1, kind="stable")
    # The two stages disagree, or this would say nothing of the order.
    assert (best != np.arange(small.TOP_K)).any()
    expected = {"video_ids": tf.constant(videos), **ranked}
    every = signatures["every_candidate"](**request_)
    few = signatures["serving_default"](**request_)
    assert set(few) == {*expected, "candidate_sources", "retrieval_scores"}
    assert set(every) == set(few)
    for name, values in expected.items():
        ordered = np.take_along_axis(values.numpy(), best, 1)
        np.testing.assert_array_equal(every[name], ordered, name)
    for name, values in few.items():
        np.testing.assert_array_equal(values, every[name][:, :4], name)


def service(world, folder, config, retrieval=None, **known):
    first = RetrievalService(
        retrieval or world.retrieval,
        world.transform,
        world.inputs,
        world.video_ids,
        config.candidates,
    )
    second = RankingService(
        world.ranking, world.transform, world.inputs, world.lagged, str(folder)
    )
    catalogue = Catalogue(world.video_ids, **known)
    return RecommenderService(first, second, catalogue, config)


def test_blanks_stay_behind_every_video(world, raw, request_, tmp_path):
    everything = service(
        world, tmp_path, ServingConfig(candidates=100, top_k=100)
    )
    blank = everything.recommend(request_)["video_ids"].numpy() == b""
    assert blank.shape == (len(raw["request_time_us"]), 17)
    assert blank.any()
    assert (np.diff(blank.astype(int), axis=1) >= 0).all()


@pytest.mark.parametrize("most", [1, 2])
def test_a_channel_s_further_videos_come_last(world, request_, tmp_path, most):
    config = ServingConfig(candidates=100, top_k=100)
    free = service(world, tmp_path, config).recommend(request_)
    capped = service(
        world,
        tmp_path,
        config.model_copy(update={"max_per_channel": most}),
        channels=small.CHANNELS,
    ).recommend(request_)
    channel = dict(zip(world.videos, small.CHANNELS[1:], strict=True))
    moved = False
    for before, after in zip(
        free["video_ids"].numpy(), capped["video_ids"].numpy(), strict=True
    ):
        names = [v for v in before if v]
        kept = []
        for name in names:
            same = [n for n in kept if channel[n] == channel[name]]
            if channel[name] == 0 or len(same) < most:
                kept.append(name)
        order = [*kept, *(n for n in names if n not in kept)]
        assert [v for v in after if v] == order
        moved |= order != names
    assert moved


@pytest.mark.parametrize("more", [(), (TowerConfig(embedding_dim=6),)])
def test_the_encoder_s_part_offers_by_its_own_scores(
    world, request_, tmp_path, more
):
    model = RetrievalModel(
        world.features,
        world.sizes,
        RetrievalConfig(
            embedding_dim=4,
            hidden_units=(8,),
            more_towers=more,
            sequence=SequenceConfig(length=3, layers=1, place="beside"),
        ),
        seed=1,
        example_age=True,
    )
    model.output_biases.assign(tf.cast(tf.range(18) % 5, tf.float32) / 5)
    funnel = service(world, tmp_path, BY_SEQUENCE, model)
    first = RetrievalService(
        model, world.transform, world.inputs, world.video_ids, 6
    )
    features = first.features({i.name: request_[i.name] for i in first.inputs})
    u = model.query_embedding(features).numpy()[:, -4:]
    table = model.output_embeddings.numpy()[1:, -4:]
    scores = u @ table.T + model.output_biases.numpy()[1:]
    answer = funnel.every_candidate(request_)
    found = [
        {
            video: score
            for video, source, score in zip(*row, strict=True)
            if source == b"sequence"
        }
        for row in zip(
            answer["video_ids"].numpy(),
            answer["candidate_sources"].numpy(),
            answer["retrieval_scores"].numpy(),
            strict=True,
        )
    ]
    for row, watched in enumerate(features["watch_history"].numpy()):
        watching = request_["query_video_id"][row].numpy()
        own = [
            i
            for i in np.argsort(-scores[row])
            if i + 1 not in watched and world.videos[i] != watching
        ][:3]
        expected = {world.videos[i]: scores[row, i] for i in own}
        assert found[row] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_context_offers_what_follows_the_query_video(
    world, raw, request_, tmp_path
):
    config = ServingConfig(
        candidates=6,
        generators=(GeneratorConfig(name="context", candidates=3),),
    )
    # Nothing is being watched in the last one.
    watching = np.array([*raw["query_video_id"][:-1], b""], object)
    asked = {**request_, "query_video_id": tf.constant(watching)}
    answer = service(world, tmp_path, config).every_candidate(asked)
    first = RetrievalService(
        world.retrieval, world.transform, world.inputs, world.video_ids, 17
    )
    # A front end that sent the query video as the last watch.
    sent = {}
    for i in first.inputs:
        values = raw[i.name]
        if i.name.startswith("watch_history_"):
            new = watching if i.name.endswith("video_id") else values[:, 0]
            values = np.concatenate([new[:, None], values[:, :-1]], axis=1)
        sent[i.name] = tf.constant(values, i.dtype)
    tower = first.recommend(sent)["video_ids"].numpy()
    for row, own in enumerate(tower):
        unwanted = {b"", *raw["watch_history_video_id"][row], watching[row]}
        expected = [video for video in own if video not in unwanted][:3]
        found = [
            video
            for video, source in zip(
                answer["video_ids"][row].numpy(),
                answer["candidate_sources"][row].numpy(),
                strict=True,
            )
            if source == b"context"
        ]
        assert set(found) == (set(expected) if watching[row] else set())


def test_a_model_without_an_encoder_has_no_such_generator(world, tmp_path):
    with pytest.raises(InputError, match="place: beside"):
        service(world, tmp_path, BY_SEQUENCE)
