"""Published warm-up requests and a front end's, answered in Python and in C."""

import os
from types import SimpleNamespace

import pytest

from models.saved_models import WARM_UP_FILE
from tests.serving import c_client
from tests.serving.front_end import MODELS, inputs_of

ALONE = 20


@pytest.fixture(scope="module", params=MODELS)
def asked(request, platform, cases, published, program):
    """A model's warm-up requests, then each signature's, and all answers."""
    model = request.param
    inputs, folder = inputs_of(platform, model), published[model]
    warm_up = c_client.records(os.path.join(folder, WARM_UP_FILE))
    logs = list(warm_up)
    for name, tensors in (
        ("serving_default", c_client.named),
        ("serialized_examples", c_client.example),
    ):
        logs += [
            c_client.log(model, name, tensors(case, inputs))
            for case in cases["valid"][1][:ALONE]
        ]
    return SimpleNamespace(
        model=model,
        folder=folder,
        warm_up=[c_client.request_of(log) for log in warm_up],
        in_c=c_client.in_c(program, folder, logs),
        in_python=c_client.in_python(folder, logs),
    )


def test_every_warm_up_record_is_answered(asked):
    # Whatever a client calls was called before: no signature is cold.
    called = [request.model_spec.signature_name for request in asked.warm_up]
    assert sorted(called) == sorted(c_client.loaded(asked.folder).signatures)
    for request, answer in zip(asked.warm_up, asked.in_c, strict=False):
        assert request.model_spec.name == asked.model
        assert all(len(values) == 1 for values in answer.values())


def test_answers_in_c_are_those_in_python(asked):
    assert len(asked.in_c) == len(asked.warm_up) + 2 * ALONE
    for got, expected in zip(asked.in_c, asked.in_python, strict=True):
        c_client.assert_same(got, expected)


def test_both_signatures_say_the_same(asked):
    named, examples = asked.in_c[-2 * ALONE : -ALONE], asked.in_c[-ALONE:]
    for got, expected in zip(examples, named, strict=True):
        c_client.assert_same(got, expected)
    # Requests differ, and so do their answers.
    first = next(iter(named[0]))
    assert len({answer[first].tobytes() for answer in named}) > ALONE // 2
