"""TensorFlow's Java binding loads what is published, and answers the same.

Needs Java 17 and a folder of the binding's jars, named by
WATCHNEXT_TENSORFLOW_JAVA: org.tensorflow:tensorflow-core-api,
tensorflow-core-native and the latter's classifier linux-x86_64, with what
they depend on.
"""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.serving import c_client
from tests.serving.front_end import MODELS, inputs_of

REQUESTS = 5


@pytest.fixture(scope="module")
def jars():
    folder = os.environ.get("WATCHNEXT_TENSORFLOW_JAVA")
    if not folder or shutil.which("java") is None:
        pytest.skip(
            "WATCHNEXT_TENSORFLOW_JAVA is not set, or java is not on PATH"
        )
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_java_answers_as_python(
    jars, platform, cases, published, tmp_path, model
):
    inputs = inputs_of(platform, model)
    examples = [
        c_client.example(request, inputs)
        for request in cases["valid"][1][:REQUESTS]
    ]
    files = []
    for example in examples:
        files.append(tmp_path / str(len(files)))
        files[-1].write_bytes(example["examples"][0])
    done = subprocess.run(
        [
            *("java", "-cp", f"{jars}/*"),
            str(Path(__file__).with_name("Predict.java")),
            published[model],
            *map(str, files),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    logs = [c_client.log(model, "serialized_examples", e) for e in examples]
    for expected in c_client.in_python(published[model], logs):
        got = {name: values for name, *values in lines[: len(expected)]}
        lines = lines[len(expected) :]
        assert set(got) == set(expected)
        for name, values in expected.items():
            if values.dtype == np.float32:
                np.testing.assert_allclose(
                    np.array(got[name], np.float32),
                    values[0],
                    rtol=1e-6,
                    atol=1e-6,
                )
            else:
                assert [v.encode() for v in got[name]] == list(values[0])
    assert not lines
