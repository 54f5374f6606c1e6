"""Raw requests of any length, by hand."""

import numpy as np
import pytest

from models.keras_setup import tf
from models.serving_requests import (
    MAX_CANDIDATES,
    fitted,
    in_pieces,
    parsed,
    ranking_inputs,
    retrieval_inputs,
    serialized,
    tensor_specs,
)
from schemas.requests import RawInput

TIME = RawInput("request_time_us", "int64", "request")
AGE = RawInput("user_age", "float32", "request")
HOBBIES = RawInput("user_hobbies", "string", "request", None, 2)
WATCHES = RawInput("watch_history_video_id", "string", "watch", 3)
SECONDS = RawInput("watch_history_watch_time_s", "float32", "watch", 3)
SHOWN = RawInput("candidate_video_id", "string", "candidate", 2, 0, True)
TAGS = RawInput("impression_tags", "string", "candidate", 2, 2, True)
POSITION = RawInput("candidate_position", "int64", "candidate", 2, 0, True)
LAGGED = RawInput(
    "video_lagged_impressions", "float32", "candidate", 2, 0, True
)
ALL = (TIME, AGE, HOBBIES, WATCHES, SHOWN, TAGS, POSITION, LAGGED)


def test_a_client_is_asked_for_what_it_can_know():
    assert retrieval_inputs(ALL) == (TIME, AGE, HOBBIES, WATCHES)
    assert ranking_inputs(ALL) == (TIME, AGE, HOBBIES, WATCHES, SHOWN, TAGS)
    specs = tensor_specs((TIME, SHOWN, TAGS))
    assert [s.shape.rank for s in specs.values()] == [1, 2, 3]
    assert specs["impression_tags"].dtype == tf.string


@pytest.mark.parametrize(
    ("watches", "expected"),
    [
        ([], [b"", b"", b""]),
        (["a"], [b"a", b"", b""]),
        (["a", "b", "c"], [b"a", b"b", b"c"]),
        (["a", "b", "c", "d"], [b"a", b"b", b"c"]),
    ],
)
def test_lists_are_cut_or_filled_at_their_end(watches, expected):
    raw = {
        "watch_history_video_id": tf.constant([watches], tf.string),
        "user_hobbies": tf.constant([["x"]]),
    }
    got, pieces = fitted(raw, (WATCHES, HOBBIES))
    assert got["watch_history_video_id"].numpy().tolist() == [expected]
    assert got["user_hobbies"].numpy().tolist() == [[b"x", b""]]
    assert pieces == 1


def test_an_unknown_duration_is_nan_and_not_zero():
    nan = float("nan")
    sent = {SECONDS.name: tf.constant([[2.5]])}
    got, _ = fitted(sent, (SECONDS,))
    np.testing.assert_array_equal(got[SECONDS.name], [[2.5, nan, nan]])
    examples = [tf.train.Example() for _ in range(2)]
    seconds = examples[0].features.feature[SECONDS.name]
    seconds.float_list.value.extend([2.5, 1.5])
    got = parsed(
        tf.constant([e.SerializeToString() for e in examples]), (SECONDS,)
    )
    np.testing.assert_array_equal(got[SECONDS.name], [[2.5, 1.5], [nan, nan]])


@pytest.mark.parametrize(
    ("candidates", "pieces"), [(0, 1), (1, 1), (2, 1), (3, 2), (5, 3)]
)
def test_candidates_are_spread_over_rows(candidates, pieces):
    ids = [[f"{user}{i}" for i in range(candidates)] for user in "ab"]
    raw = {
        "request_time_us": tf.constant([7, 8], tf.int64),
        "candidate_video_id": tf.constant(ids, tf.string, [2, candidates]),
        # Not known per candidate: sent as an empty list.
        "impression_tags": tf.zeros([2, 0, 0], tf.string),
    }
    inputs = (TIME, SHOWN, TAGS)
    filled, number = fitted(raw, inputs)
    assert number == pieces
    rows = in_pieces(filled, inputs, number)
    assert rows["request_time_us"].numpy().tolist() == (
        [7] * pieces + [8] * pieces
    )
    assert rows["impression_tags"].shape == (2 * pieces, 2, 2)
    flat = [t.encode() for user in ids for t in padded(user, 2 * pieces)]
    got = rows["candidate_video_id"].numpy()
    assert got.shape == (2 * pieces, 2)
    assert got.reshape(-1).tolist() == flat


def test_rows_must_be_as_many_everywhere():
    """One time for two users would broadcast, and be answered."""
    raw = {
        "request_time_us": tf.constant([7], tf.int64),
        "candidate_video_id": tf.constant([["a"], ["b"]]),
    }
    with pytest.raises(tf.errors.InvalidArgumentError, match="number of rows"):
        fitted(raw, (TIME, SHOWN))


def test_candidates_are_limited():
    for sent in (MAX_CANDIDATES, MAX_CANDIDATES + 1):
        raw = {"candidate_video_id": tf.fill([1, sent], "a")}
        if sent == MAX_CANDIDATES:
            _, pieces = fitted(raw, (SHOWN,))
            assert pieces == MAX_CANDIDATES // 2
        else:
            with pytest.raises(tf.errors.InvalidArgumentError, match="10000"):
                fitted(raw, (SHOWN,))


def test_serialized_requests_are_parsed_back():
    raw = {
        "request_time_us": np.array([5, 6]),
        "user_age": np.array([30.0, np.nan], np.float32),
        "watch_history_video_id": np.array([[b"a", b""], [b"b", b"c"]], object),
        "impression_tags": np.array(
            [[[b"1", b""], [b"2", b"3"]], [[b"", b"4"], [b"", b""]]], object
        ),
    }
    inputs = (TIME, AGE, WATCHES, TAGS)
    got = parsed(tf.constant(serialized(raw, inputs)["examples"]), inputs)
    assert set(got) == set(raw)
    for name, values in raw.items():
        np.testing.assert_array_equal(got[name], values, name)


def padded(terms, length):
    return [*terms, *[""] * (length - len(terms))]


def test_examples_may_leave_out_all_but_the_time():
    full = tf.train.Example()
    features = full.features.feature
    features["request_time_us"].int64_list.value.append(5)
    features["user_age"].float_list.value.append(30.0)
    features["user_hobbies"].bytes_list.value.extend([b"x", b"y"])
    features["watch_history_video_id"].bytes_list.value.append(b"v")
    features["candidate_video_id"].bytes_list.value.extend([b"c", b"d"])
    features["impression_tags"].bytes_list.value.extend([b"1", b"", b"2", b"3"])
    least = tf.train.Example()
    least.features.feature["request_time_us"].int64_list.value.append(6)
    inputs = (TIME, AGE, HOBBIES, WATCHES, SHOWN, TAGS)
    got = parsed(
        tf.constant([e.SerializeToString() for e in (full, least)]), inputs
    )
    assert got["request_time_us"].numpy().tolist() == [5, 6]
    np.testing.assert_array_equal(got["user_age"], [30.0, np.nan])
    lists = {n: got[n].numpy().tolist() for n in got if n not in ("user_age",)}
    assert lists["user_hobbies"] == [[b"x", b"y"], [b"", b""]]
    assert lists["watch_history_video_id"] == [[b"v"], [b""]]
    assert lists["candidate_video_id"] == [[b"c", b"d"], [b"", b""]]
    assert lists["impression_tags"] == [
        [[b"1", b""], [b"2", b"3"]],
        [[b"", b""], [b"", b""]],
    ]
    with pytest.raises(tf.errors.InvalidArgumentError, match="request_time"):
        parsed(tf.constant([tf.train.Example().SerializeToString()]), inputs)
