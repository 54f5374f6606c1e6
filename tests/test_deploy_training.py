"""`deploy/kubernetes` and `deploy/vertex`: schemas, clusters, commands."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from google.cloud.aiplatform_v1.types import CustomJobSpec

from pipeline.cli import app
from pipeline.cluster import current_task

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"


def manifests() -> list[dict[str, Any]]:
    text = (DEPLOY / "kubernetes" / "training-job.yaml").read_text()
    return list(yaml.safe_load_all(text))


def options(arguments: list[str]) -> dict[str, Any]:
    """What `watchnext train` understands; fails where it does not."""
    train = typer.main.get_command(app).commands["train"]
    return train.make_context("train", arguments).params


def test_kubernetes_has_such_objects() -> None:
    """By its published JSON schemas, in which no other key is allowed."""
    for manifest in manifests():
        kubernetes_validate.validate(manifest, "1.31", strict=True)
    job = manifests()[1]
    job["spec"]["backofLimit"] = 1
    with pytest.raises(
        kubernetes_validate.ValidationError, match="backofLimit"
    ):
        kubernetes_validate.validate(job, "1.31", strict=True)


@pytest.mark.parametrize("index", [0, 3])
def test_each_pod_finds_its_place(
    index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, job = manifests()
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {e["name"]: e["value"] for e in container["env"]}
    # What the shell would start, in place of it.
    program = tmp_path / "watchnext"
    program.write_text('#!/bin/sh\necho "$TF_CONFIG"\necho "$@"\n')
    program.chmod(0o755)
    environment |= {
        "JOB_COMPLETION_INDEX": str(index),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    said = subprocess.run(
        [*container["command"], *container["args"]],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    monkeypatch.setenv("TF_CONFIG", said[0])
    task = current_task()
    count = job["spec"]["completions"]
    assert (task.num_workers, task.index) == (count, index) == (4, index)
    assert job["spec"]["parallelism"] == count
    # A pod's name in the DNS: <job>-<index>.<subdomain>.
    domain, name = pod["subdomain"], job["metadata"]["name"]
    assert domain == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    port = container["ports"][0]["containerPort"]
    expected = [f"{name}-{i}.{domain}:{port}" for i in range(count)]
    assert [worker.address for worker in task.workers] == expected
    command, *arguments = said[1].split()
    assert command == "train"
    assert options(arguments)["workdir"] == "gs://BUCKET/work"


def test_saving_on_sigterm_is_no_failure_and_wrong_use_is_not_repeated() -> (
    None
):
    spec = manifests()[1]["spec"]
    actions = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions == {143: "Ignore", 2: "FailJob"}
    # Kubernetes asks for it where there is a policy.
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_vertex_has_such_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown keys and values are refused by the service's own message."""
    text = (DEPLOY / "vertex" / "custom-job.yaml").read_text()
    job = CustomJobSpec.from_json(
        json.dumps(yaml.safe_load(text)), ignore_unknown_fields=False
    )
    chief, workers = job.worker_pool_specs
    assert (chief.replica_count, workers.replica_count) == (1, 3)
    assert chief.machine_spec.accelerator_count == 1
    assert job.scheduling.restart_job_on_worker_restart
    for pool in job.worker_pool_specs:
        assert list(pool.container_spec.command) == ["watchnext"]
        command, *arguments = pool.container_spec.args
        assert command == "train"
        assert options(arguments)["workdir"] == "gs://BUCKET/work"
    # As the service sets it, with keys of its own.
    cluster = {"chief": ["c-0:2222"], "worker": ["w-0:2222", "w-1:2222"]}
    task = {"type": "worker", "index": 1, "trial": "1"}
    value = {"cluster": cluster, "task": task, "environment": "cloud"}
    monkeypatch.setenv("TF_CONFIG", json.dumps(value))
    assert (current_task().num_workers, current_task().index) == (3, 2)
