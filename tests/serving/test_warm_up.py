"""Published warm-up requests and a front end's, answered in Python and in C."""

import os

import numpy as np
import pytest

from models.keras_setup import tf
from models.saved_models import WARM_UP_FILE
from tests.serving import c_client
from tests.serving.front_end import MODELS, TOP_K, inputs_of

ALONE = 20


@pytest.mark.parametrize("model", MODELS)
def test_every_warm_up_record_is_answered(published, program, model):
    folder = published[model]
    logs = c_client.records(os.path.join(folder, WARM_UP_FILE))
    requests = [c_client.request_of(log) for log in logs]
    # Whatever a client calls was called before: no signature is cold.
    names = {request.model_spec.signature_name for request in requests}
    assert names == set(tf.saved_model.load(folder).signatures)
    assert {request.model_spec.name for request in requests} == {model}
    expected = c_client.in_python(folder, logs)
    for got, wanted in zip(
        c_client.in_c(program, folder, logs), expected, strict=True
    ):
        c_client.assert_same(got, wanted)
        assert all(len(values) == 1 for values in got.values())


@pytest.mark.parametrize("model", MODELS)
def test_both_signatures_say_the_same_in_python_and_in_c(
    platform, cases, published, program, model
):
    inputs, folder = inputs_of(platform, model), published[model]
    requests = cases["valid"][1][:ALONE]
    logs = []
    for name, tensors in (
        ("serving_default", c_client.named),
        ("serialized_examples", c_client.example),
    ):
        logs += [
            c_client.log(model, name, tensors(r, inputs)) for r in requests
        ]
    expected = c_client.in_python(folder, logs)
    answers = c_client.in_c(program, folder, logs)
    for got, wanted in zip(answers, expected, strict=True):
        c_client.assert_same(got, wanted)
    # Named tensors, then the same as tf.Examples.
    for got, wanted in zip(answers[:ALONE], answers[ALONE:], strict=True):
        c_client.assert_same(got, wanted)
    first = next(iter(answers[0]))
    values = [answer[first].tobytes() for answer in answers[:ALONE]]
    assert len(set(values)) > ALONE // 2


def test_the_recommender_ranks_what_a_front_end_would_send(
    platform, cases, published, program
):
    """Both stages asked one after the other, in C, give the one call."""
    inputs = inputs_of(platform, "recommender")
    request = c_client.named(cases["valid"][1][0], inputs)
    (whole,) = c_client.in_c(
        program,
        published["recommender"],
        [c_client.log("recommender", "serving_default", request)],
    )
    (found,) = c_client.in_c(
        program,
        published["retrieval"],
        [
            c_client.log(
                "retrieval",
                "serving_default",
                {i.name: request[i.name] for i in platform.retrieval_inputs},
            )
        ],
    )
    nothing = {
        i.name: np.zeros((1, 0), i.numpy_dtype)
        for i in inputs_of(platform, "ranking")
        if i.axis == "candidate"
    }
    (ranked,) = c_client.in_c(
        program,
        published["ranking"],
        [
            c_client.log(
                "ranking",
                "serving_default",
                {
                    **request,
                    **nothing,
                    "candidate_video_id": found["video_ids"],
                },
            )
        ],
    )
    best = np.argsort(-ranked["score"][0], kind="stable")[:TOP_K]
    expected = {
        "video_ids": found["video_ids"],
        "retrieval_scores": found["scores"],
        **ranked,
    }
    c_client.assert_same(
        whole, {name: values[:, best] for name, values in expected.items()}
    )
