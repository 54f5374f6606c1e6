"""What lies in `deploy/` fits the project: versions, files, flags, bytes."""

import importlib.util
import io
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import typer
import yaml
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    WorkerOptions,
)
from apache_beam.runners.dataflow.internal.apiclient import (
    DataflowApplicationClient,
)
from google.cloud import dataflow

from beam_jobs.runners import pipeline_options
from pipeline.cli import app, main
from pipeline.run import PREPARED
from schemas.artifacts import ArtifactStore

CHECKOUT = Path(__file__).resolve().parents[1]
TEMPLATE = CHECKOUT / "deploy" / "dataflow"
DOCKERFILES = sorted((CHECKOUT / "deploy").rglob("Dockerfile"))
# As the launcher calls the entry point.
LAUNCHED = [
    "--runner=DataflowRunner",
    "--project=a-project",
    "--region=europe-west1",
    "--job_name=watchnext-prepare",
    "--temp_location=gs://bucket/tmp",
    "--staging_location=gs://bucket/staging",
    "--template_location=gs://bucket/launches/1/job_object",
    "--service_account_email=worker@a-project.iam.gserviceaccount.com",
    "--sdk_container_image=registry/watchnext:0.1.0",
    "--no_auth",
    "--workdir=gs://bucket/work",
    "--config=gs://bucket/run.yaml",
    "--set=beam.num_shards=4000",
    "--stages_flags=--max_num_workers=200 --region=us-central1",
]


@pytest.fixture(scope="module")
def flex_template() -> ModuleType:
    path = TEMPLATE / "flex_template.py"
    spec = importlib.util.spec_from_file_location("flex_template", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # By name, so that a worker finds the function that it shall call.
    with mock.patch.dict("sys.modules", {"flex_template": module}):
        spec.loader.exec_module(module)
        yield module


def _pinned_beam() -> str:
    setup = (CHECKOUT / "setup.py").read_text()
    (version,) = re.findall(r'"apache-beam==([\d.]+)"', setup)
    return version


def _metadata() -> dict[str, Any]:
    return json.loads((TEMPLATE / "metadata.json").read_text())


def test_metadata_is_the_message_that_the_service_documents() -> None:
    """Unknown keys and parameter types are refused by the message itself."""
    text = (TEMPLATE / "metadata.json").read_text()
    read = dataflow.TemplateMetadata.from_json(
        text, ignore_unknown_fields=False
    )
    assert read.name and read.description and not read.streaming
    for parameter in read.parameters:
        assert parameter.label and parameter.help_text, parameter.name
        for pattern in parameter.regexes:
            re.compile(pattern)
    names = [p.name for p in read.parameters]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("workdir", "gs://bucket/work", "/work"),
        ("set", "beam.num_shards=4000", "beam.num_shards"),
        ("stages_flags", "--a=1 --b", "a=1"),
    ],
)
def test_patterns_of_the_metadata(name: str, good: str, bad: str) -> None:
    (parameter,) = (p for p in _metadata()["parameters"] if p["name"] == name)
    (pattern,) = parameter["regexes"]
    assert re.fullmatch(pattern, good) and not re.fullmatch(pattern, bad)


def test_parameters_are_those_of_the_entry_point_and_of_beam(
    flex_template: ModuleType,
) -> None:
    actions = {a.dest: a for a in flex_template.parser()._actions}
    del actions["help"]
    beams = PipelineOptions([]).get_all_options()
    parameters = {p["name"]: p for p in _metadata()["parameters"]}
    assert set(actions) <= set(parameters)
    assert set(parameters) - set(actions) <= set(beams)
    for name, action in actions.items():
        assert action.required != parameters[name].get("isOptional", False)
    default = parameters["stages_runner"]["defaultValue"]
    assert default == actions["stages_runner"].default


def test_prepare_takes_what_the_entry_point_gives(
    flex_template: ModuleType,
) -> None:
    command, options = flex_template.prepare_command(LAUNCHED)
    prepare = typer.main.get_command(app).commands["prepare"]
    context = prepare.make_context("prepare", command[1:])
    assert command[0] == "prepare"
    assert context.params["workdir"] == "gs://bucket/work"
    assert context.params["config"] == "gs://bucket/run.yaml"
    assert list(context.params["overrides"]) == ["beam.num_shards=4000"]
    stages = pipeline_options(context.args)
    cloud = stages.view_as(GoogleCloudOptions)
    workers = stages.view_as(WorkerOptions)
    # Inherited, and overridden by `stages_flags`.
    assert cloud.project == "a-project"
    assert cloud.region == "us-central1"
    assert workers.sdk_container_image == "registry/watchnext:0.1.0"
    assert workers.max_num_workers == 200
    # The launcher's own: a stage's job is submitted, not described.
    assert cloud.template_location is None and cloud.job_name is None
    assert options.view_as(GoogleCloudOptions).region == "europe-west1"


def test_the_launcher_gets_a_job_of_one_step(
    flex_template: ModuleType,
) -> None:
    """The graph goes where the launcher looks; nothing is waited for."""
    staged: dict[str, bytes] = {}

    def stage_file(
        _: Any, folder: str, name: str, stream: io.BytesIO, *__: Any, **___: Any
    ) -> None:
        staged[f"{folder}/{name}"] = stream.read()

    def nothing(*_: Any) -> None:
        """Beam asks the bucket whether it keeps what is deleted."""

    with (
        mock.patch.object(DataflowApplicationClient, "stage_file", stage_file),
        mock.patch.object(
            GoogleCloudOptions, "_warn_if_soft_delete_policy_enabled", nothing
        ),
    ):
        flex_template.main(LAUNCHED)
    job = json.loads(staged["gs://bucket/launches/1/job_object"])
    assert job["name"] == "watchnext-prepare"
    (pool,) = job["environment"]["workerPools"]
    (image,) = pool["sdkHarnessContainerImages"]
    assert image["containerImage"] == "registry/watchnext:0.1.0"


@pytest.mark.slow
def test_the_driver_in_a_worker_writes_what_prepare_writes(
    flex_template: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(
        "simulator: {num_users: 100, num_videos: 150, num_channels: 20,"
        " num_topics: 5, num_days: 8, requests_per_user_day: 0.4}\n"
        "beam: {num_shards: 2}\n"
    )
    config = ["--config", str(tmp_path / "small.yaml")]
    by_hand, by_driver = tmp_path / "by_hand", tmp_path / "by_driver"
    assert main(["simulate", *config, "--workdir", str(by_hand)]) == 0
    shutil.copytree(by_hand, by_driver)
    assert main(["prepare", *config, "--workdir", str(by_hand)]) == 0
    flex_template.main(
        [
            "--runner=FnApiRunner",
            "--stages_runner=FnApiRunner",
            f"--workdir={by_driver}",
            f"--config={tmp_path / 'small.yaml'}",
        ]
    )
    for stage in PREPARED:
        expected, found = (
            ArtifactStore(str(work)).versions(stage)[0].manifest
            for work in (by_hand, by_driver)
        )
        assert expected["files"] and found == expected


def test_a_failing_driver_fails_the_job(
    flex_template: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="ended with 2"):
        flex_template.run_command(["prepare", "--workdir", str(tmp_path)])


@pytest.mark.parametrize(
    "dockerfile", DOCKERFILES, ids=lambda path: path.parent.name
)
def test_images_hold_the_project(dockerfile: Path) -> None:
    text = dockerfile.read_text().replace("\\\n", " ")
    copied = [
        source
        for words in re.findall(r"^COPY (?!--from)(.*)$", text, re.M)
        for source in words.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (CHECKOUT / source).exists(), source
    packages = {"schemas", "beam_jobs", "models", "pipeline", "configs"}
    assert packages | {"setup.py", "requirements.lock"} <= set(copied)
    # The lock's Python; a worker unpickles what the same minor pickled.
    assert set(re.findall(r"python:?(3\.\d+)", text)) == {"3.11"}


def test_the_template_image_is_of_the_pinned_beam() -> None:
    text = (TEMPLATE / "Dockerfile").read_text()
    (version,) = re.findall(
        r"^FROM apache/beam_python3\.11_sdk:(\S+)", text, re.M
    )
    assert version == _pinned_beam()
    (entry,) = re.findall(r"FLEX_TEMPLATE_PYTHON_PY_FILE=(\S+)", text)
    assert entry == "/template/flex_template.py"
    assert re.search(r"^WORKDIR /template$", text, re.M)
    assert re.search(r"^COPY deploy/dataflow/flex_template.py \./$", text, re.M)


def test_the_flink_cluster_fits_the_pinned_beam() -> None:
    """The version of Flink is one that Beam has a job server for."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions

    folder = CHECKOUT / "deploy" / "flink"
    compose = yaml.safe_load((folder / "docker-compose.yaml").read_text())
    images = {
        name: service["image"]
        for name, service in compose["services"].items()
        if service["image"].startswith("flink:")
    }
    assert set(images) == {"jobmanager", "taskmanager"}
    (flink,) = {image.split(":")[1].split("-")[0] for image in images.values()}
    assert flink in FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS
    guide = (folder / "README.md").read_text()
    assert f"--flink_version={flink} " in guide
    assert (
        f"beam-runners-flink-{flink}-job-server-{_pinned_beam()}.jar" in guide
    )
    port = compose["services"]["workers"]
    assert port["network_mode"] == "service:taskmanager"
    assert "--environment_config=localhost:50000" in guide
    assert "--service_port=50000" in (folder / "Dockerfile").read_text()
