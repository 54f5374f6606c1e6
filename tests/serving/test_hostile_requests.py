"""Requests that no good client sends: an error or a sensible answer.

All of a model's are put to one process of the C program, which would not
answer the later ones if an earlier one had ended it, and to Python.
"""

import numpy as np
import pytest

from models.keras_setup import tf
from models.serving_requests import MAX_CANDIDATES
from tests.serving import c_client
from tests.serving.front_end import MODELS, inputs_of

LONG = 1_000_000
BIG = b"cat " * 2_500_000  # 10 MB
WATCHED = "watch_history_video_id"


def filled(request, dtype, value):
    return {
        name: np.full_like(tensor, value) if tensor.dtype == dtype else tensor
        for name, tensor in request.items()
    }


def long_lists(request, inputs):
    """Every list of a watch or a search is a million long."""
    return {
        i.name: np.repeat(request[i.name][:, :1], LONG, axis=1)
        if i.axis in ("watch", "search")
        else request[i.name]
        for i in inputs
    }


def example_of(**values):
    message = tf.train.Example()
    for name, value in values.items():
        feature = message.features.feature[name]
        if isinstance(value[0], bytes):
            feature.bytes_list.value.extend(value)
        elif isinstance(value[0], float):
            feature.float_list.value.extend(value)
        else:
            feature.int64_list.value.extend(value)
    return message.SerializeToString()


def answerable(request, inputs):
    """What is odd, and yet has an answer."""
    nothing = {
        i.name: request[i.name][:, :0]
        if i.axis in ("watch", "search", "impression")
        else request[i.name]
        for i in inputs
    }
    huge = {
        name: tensor.copy() if tensor.dtype == object else tensor
        for name, tensor in request.items()
    }
    for tensor in huge.values():
        if tensor.dtype == object and tensor.size:
            tensor.flat[0] = BIG
    bounds = np.iinfo(np.int64)
    return {
        "empty history": nothing,
        "a million watches and searches": long_lists(request, inputs),
        "NaN": filled(request, np.float32, np.nan),
        "infinite": filled(request, np.float32, np.inf),
        "minus infinite": filled(request, np.float32, -np.inf),
        "before all time": filled(request, np.int64, bounds.min),
        "after all time": filled(request, np.int64, bounds.max),
        "unknown ids": filled(request, object, b"nobody's"),
        "not UTF-8": filled(request, object, b"\xff\xfe\x00\xc3"),
        "strings of 10 MB": huge,
    }


def refused(request):
    """What has no answer, and what the error must name."""
    return {
        "time as float": (
            request | {"request_time_us": np.array([1.0])},
            "int64 but double",
        ),
        "numbers for ids": (
            request | {WATCHED: np.zeros((1, 3), np.int64)},
            "string but int64",
        ),
        "two times": (
            request | {"request_time_us": np.array([5, 6])},
            "same number of rows in all of",
        ),
        "three rows of times": (
            request
            | {"watch_history_event_time_us": np.zeros((3, 1), np.int64)},
            "same number of rows in all of",
        ),
        "a list of lists": (request | {WATCHED: request[WATCHED][None]}, ""),
        "no list": (request | {WATCHED: request[WATCHED][0]}, ""),
        "no time": (
            {n: t for n, t in request.items() if n != "request_time_us"},
            "request_time_us",
        ),
    }


REFUSED_EXAMPLES = {
    "no example": (b"\xff\x00 no example", "Could not parse example"),
    "empty": (b"", "request_time_us"),
    "two times": (example_of(request_time_us=[5, 6]), "request_time_us"),
    "float time": (example_of(request_time_us=[5.0]), "request_time_us"),
    "numbers for ids": (
        example_of(request_time_us=[5], watch_history_video_id=[7]),
        WATCHED,
    ),
}


# 180 MB of requests a model: the first stage alone stays in the quick suite.
SOME = [
    MODELS[0],
    *(pytest.param(m, marks=pytest.mark.slow) for m in MODELS[1:]),
]


@pytest.fixture(scope="module", params=SOME)
def asked(request, platform, cases, published, program):
    """Model, oddity -> log; and answers of C and Python by oddity."""
    model = request.param
    inputs = inputs_of(platform, model)
    good = c_client.named(cases["valid"][1][0], inputs)
    logs = {}

    def ask(oddity, signature, tensors):
        logs[oddity] = c_client.log(model, signature, tensors)

    for oddity, tensors in answerable(good, inputs).items():
        ask(oddity, "serving_default", tensors)
    for oddity, (tensors, _) in refused(good).items():
        ask(oddity, "serving_default", tensors)
    bags = example_of(
        request_time_us=[5], watch_history_video_id=[b"v000001"] * LONG
    )
    examples = {n: e for n, (e, _) in REFUSED_EXAMPLES.items()}
    for oddity, one in (examples | {"a million watches": bags}).items():
        ask(
            f"{oddity}, as an example",
            "serialized_examples",
            {"examples": np.array([one], object)},
        )
    if model == "ranking":
        many = np.full((1, MAX_CANDIDATES + 1), b"v000001", object)
        for oddity, n in (("most", -1), ("too many", None)):
            ask(
                f"{oddity} candidates",
                "serving_default",
                good | {"candidate_video_id": many[:, :n]},
            )
    # A good one at the end: the program is as it was.
    ask("good", "serving_default", good)
    folder = published[model]
    in_c = c_client.in_c(program, folder, list(logs.values()))
    in_python = c_client.in_python(folder, logs.values())
    return (
        model,
        dict(zip(logs, in_c, strict=True)),
        dict(zip(logs, in_python, strict=True)),
        good,
        inputs,
    )


def test_odd_requests_get_finite_answers(asked):
    model, in_c, in_python, good, inputs = asked
    oddities = [
        *answerable(good, inputs),
        "a million watches, as an example",
        "good",
    ]
    if model == "ranking":
        oddities.append("most candidates")
    for oddity in oddities:
        c_client.assert_same(in_c[oddity], in_python[oddity])
        for name, values in in_c[oddity].items():
            assert len(values) == 1, (oddity, name)
            if values.dtype == np.float32:
                assert np.isfinite(values).all(), (oddity, name, values)
            else:
                assert (values != b"").all(), (oddity, name)


def test_a_million_watches_are_cut_to_the_newest(asked, published):
    model, in_c, _, good, inputs = asked
    lengths = {i.name: i.length for i in inputs}
    longest = long_lists(good, inputs)
    cut = {
        n: t[:, : lengths[n]] if lengths[n] and len(t.shape) > 1 else t
        for n, t in longest.items()
    }
    assert cut[WATCHED].shape[1] == lengths[WATCHED] < LONG
    (expected,) = c_client.in_python(
        published[model], [c_client.log(model, "serving_default", cut)]
    )
    c_client.assert_same(in_c["a million watches and searches"], expected)


def test_wrong_requests_are_refused_by_name(asked):
    model, in_c, in_python, good, _ = asked
    wanted = {name: text for name, (_, text) in refused(good).items()}
    for name, (_, text) in REFUSED_EXAMPLES.items():
        wanted[f"{name}, as an example"] = text
    if model == "ranking":
        wanted["too many candidates"] = f"at most {MAX_CANDIDATES}"
    for oddity, text in wanted.items():
        answer = in_c[oddity]
        assert isinstance(answer, str), (oddity, answer)
        assert answer and text in answer.splitlines()[0], (oddity, answer)
        assert isinstance(in_python[oddity], str), oddity
