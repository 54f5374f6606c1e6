"""The jobs that Dataflow would be sent, without a network or credentials.

`ingest` and `prepare` run by the command line with DataflowRunner's flags, the
recommendations of all users by their job's own function.
Each pipeline is built, validated and described by Beam's own DataflowRunner
down to the job message of the service (v1beta3); where that would be
submitted it is kept here, and the same pipeline runs in process, so that the
next job finds its input.

Dataflow knows a step by its name: running jobs are updated and monitored by
it. The names of all steps are pinned in `dataflow_steps.txt`; after a wanted
change write it anew:

    WATCHNEXT_WRITE_GOLDEN=1 ./watchnext test tests/pipeline/test_dataflow.py
"""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import socket
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import apache_beam as beam
import pytest
import tensorflow as tf
import yaml
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
)
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.dataflow.internal.apiclient import (
    DataflowApplicationClient,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from google.cloud import dataflow

from beam_jobs import recommendations
from beam_jobs.runners import pipeline_options
from pipeline.all_users import STAGE
from pipeline.cli import main
from pipeline.config import load_config
from pipeline.run import PREPARED, Run, saved_config
from pipeline.stages import DataStages
from schemas.artifacts import ArtifactStore, ArtifactWriter
from schemas.requests import raw_inputs

_CLIENT = DataflowApplicationClient
CHECKOUT = Path(__file__).resolve().parents[2]
STEPS = Path(__file__).with_name("dataflow_steps.txt")
CONFIG = """
name: small
simulator: {num_users: 100, num_videos: 150, num_channels: 20, num_topics: 5,
            num_days: 8, requests_per_user_day: 0.4}
beam: {num_shards: 2}
retrieval_examples: {history_length: 10, search_tokens: 12}
retrieval: {refit_epochs: 1}
"""
MAPPING = {
    "name": "small",
    "tables": {
        "watches": {
            "file": "watches-*.parquet",
            "columns": {
                "user_id": "user_id",
                "video_id": "video_id",
                "event_time_us": {"column": "event_time_us", "unit": "us"},
                "watch_time_s": {"column": "watch_time_s", "unit": "s"},
                "completed": "completed",
                "source": "source",
            },
        },
        "videos": {
            "file": "videos-*.parquet",
            "columns": {
                "video_id": "video_id",
                "channel_id": "channel_id",
                "duration_s": {"column": "duration_s", "unit": "s"},
            },
        },
    },
}
FLAGS = [
    "--runner=DataflowRunner",
    "--project=a-project",
    "--region=europe-west1",
    "--temp_location=gs://bucket/tmp",
    "--staging_location=gs://bucket/staging",
    "--max_num_workers=7",
    "--machine_type=n2-highmem-4",
    "--no_auth",
]
# Two ways to bring our package to the workers: they install what is sent,
# or their image has it.
SENT = f"--setup_file={CHECKOUT}/setup.py"
IMAGE = "europe-docker.pkg.dev/a-project/images/watchnext:0.1.0"
# What Beam's and Transform's own transforms are made of, from here on a name
# is theirs.
_OF_BEAM = re.compile(
    r"/(Impulse|Map\(decode\)|FlatMap\(<lambda|AddRandomKeys|"
    r"RemoveRandomKeys|ReshufflePerKey|CombinePerKey|Combine|GroupByKey|"
    r"DoOnce|KeyWithVoid|UnKey|InjectDefault)(?!\w).*"
    r"|(?<=^Analyze)/.*|(?<=^Write)/.*"
)


@dataclasses.dataclass
class Described:
    """A job: which stage it is of, its message, its graph, staged files."""

    name: str
    message: dataflow.Job = dataclasses.field(repr=False)
    graph: beam_runner_api_pb2.Pipeline = dataclasses.field(repr=False)
    staged: dict[str, bytes] = dataclasses.field(repr=False)


class Service:
    """Stands where Beam would talk to Google; keeps what it would send."""

    def __init__(self) -> None:
        self.jobs: list[Described] = []
        self.stage = "events"
        self._staged: dict[str, bytes] = {}

    def stage_file(
        self, folder: str, name: str, stream: Any, *_: Any, **__: Any
    ) -> None:
        assert folder.startswith("gs://bucket/staging/"), folder
        self._staged[name] = stream.read()

    def submit(self, job: Any) -> dataflow.Job:
        module = _beam_job_module()
        self.jobs.append(
            Described(
                f"{self.stage}/{module}",
                job.proto,
                job.proto_pipeline,
                self._staged,
            )
        )
        self._staged = {}
        return dataflow.Job(id="kept")


def _beam_job_module() -> str:
    """The module of `beam_jobs` that runs the pipeline, from the stack."""
    frame = sys._getframe()
    while frame is not None:
        module = frame.f_globals["__name__"]
        if module.startswith("beam_jobs.") and module != "beam_jobs.runners":
            return str(module.removeprefix("beam_jobs."))
        frame = frame.f_back
    raise AssertionError("no module of `beam_jobs` is running")


def _no_network(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("the description of a job needs no network")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[Described]:
    """Every job of `ingest` and `prepare`, described and run in process."""
    folder = tmp_path_factory.mktemp("dataflow")
    (folder / "small.yaml").write_text(CONFIG)
    (folder / "mapping.yaml").write_text(yaml.safe_dump(MAPPING))
    common = ["--config", str(folder / "small.yaml"), "--workdir"]
    work, mapped = str(folder / "work"), str(folder / "mapped")
    assert main(["simulate", *common, work]) == 0
    raw = ArtifactStore(work).versions("events")[0].path
    mapping = ["--mapping", str(folder / "mapping.yaml"), "--input", raw]
    service = Service()
    with _as_service(service):
        ingest = ["ingest", *mapping, *common, mapped]
        assert main([*ingest, *FLAGS, SENT]) == 0
        image = f"--sdk_container_image={IMAGE}"
        assert main(["prepare", *common, work, *FLAGS, image]) == 0
        _recommend(work, str(folder / "model"), [*FLAGS, image])
    return service.jobs


def _recommend(work: str, model: str, flags: list[str]) -> None:
    """The job of all users, with a model that knows one video."""
    module = tf.Module()
    spec = tf.TensorSpec([None], tf.int64, "request_time_us")

    def serve(request_time_us: tf.Tensor) -> dict[str, tf.Tensor]:
        times = request_time_us[:, None]
        seconds = tf.cast(times, tf.float32) / 1e6
        return {"video_ids": tf.strings.as_string(times), "scores": seconds}

    module.serve = tf.function(serve, input_signature=[spec])
    tf.saved_model.save(module, model, {"serving_default": module.serve})
    run = Run(load_config(saved_config(work), []), ArtifactStore(work))
    data = DataStages(run)
    config = run.config
    inputs = raw_inputs(
        data.schema, config.retrieval_examples, config.ranking_examples
    )

    def write(writer: ArtifactWriter) -> None:
        done = recommendations.run(
            files={t: data.events.files(f"{t}-") for t in data.schema.columns},
            schema=data.schema,
            inputs=[i for i in inputs if i.axis != "candidate"],
            model=model,
            time_us=1,
            metadata={},
            output=writer.path,
            max_events_per_user=1000,
            options=pipeline_options(flags),
        )
        assert done.counts["users"] == 100

    run.building(STAGE).stage(STAGE, {}, {}, write, resumable=True)


@contextlib.contextmanager
def _as_service(service: Service) -> Iterator[None]:
    """Patches the places where Beam would leave this machine."""
    run_pipeline, run_stage = beam.Pipeline.run, Run.stage

    def run(pipeline: beam.Pipeline, *arguments: bool) -> Any:
        if arguments:  # Beam runs a copy that went through its own format.
            return run_pipeline(pipeline, *arguments)
        result = FnApiRunner().run_pipeline(pipeline, PipelineOptions([]))
        run_pipeline(pipeline)
        return result

    def stage(self: Run, name: str, *arguments: Any, **named: Any) -> Any:
        service.stage = name
        return run_stage(self, name, *arguments, **named)

    def stage_file(_: Any, *arguments: Any, **named: Any) -> None:
        service.stage_file(*arguments, **named)

    def submit(_: Any, job: Any) -> dataflow.Job:
        return service.submit(job)

    def nothing(*_: Any) -> None:
        """Beam asks the bucket whether it keeps what is deleted."""

    with (
        mock.patch.object(beam.Pipeline, "run", run),
        mock.patch.object(Run, "stage", stage),
        mock.patch.object(_CLIENT, "stage_file", stage_file),
        mock.patch.object(_CLIENT, "submit_job_description", submit),
        mock.patch.object(
            GoogleCloudOptions, "_warn_if_soft_delete_policy_enabled", nothing
        ),
        mock.patch.object(socket, "create_connection", _no_network),
    ):
        yield


def _steps(job: Described) -> list[str]:
    """Names of the job's steps, down to where Beam's own parts begin."""
    transforms = job.graph.components.transforms
    return sorted(
        {
            _OF_BEAM.sub("", transform.unique_name)
            for transform in transforms.values()
            if not transform.subtransforms
        }
    )


def test_the_names_of_all_steps_are_those_pinned(
    jobs: list[Described],
) -> None:
    found = "".join(
        f"[{job.name}]\n" + "".join(f"{name}\n" for name in _steps(job)) + "\n"
        for job in jobs
    )
    if os.environ.get("WATCHNEXT_WRITE_GOLDEN"):
        STEPS.write_text(found)
    changed = "\n".join(
        difflib.unified_diff(
            STEPS.read_text().splitlines(), found.splitlines(), "pinned", "now"
        )
    )
    assert not changed, changed


def test_every_data_stage_is_described(jobs: list[Described]) -> None:
    stages = {job.name.split("/")[0] for job in jobs}
    assert stages == {"events", *PREPARED, STAGE}
    names = [job.message.name for job in jobs]
    assert len(set(names)) == len(names)


def test_the_message_says_what_the_flags_say(jobs: list[Described]) -> None:
    for job in jobs:
        environment = job.message.environment
        assert job.message.type_ == dataflow.JobType.JOB_TYPE_BATCH
        (pool,) = environment.worker_pools
        assert pool.autoscaling_settings.max_num_workers == 7
        assert pool.machine_type == "n2-highmem-4"
        options = dict(environment.sdk_pipeline_options)["options"]
        assert options["project"] == "a-project"
        assert options["region"] == "europe-west1"
        assert environment.temp_storage_prefix.startswith(
            "storage.googleapis.com/bucket/tmp"
        )
        # What the workers fetch is the graph that was validated.
        assert options["pipelineUrl"].endswith("/pipeline.pb")
        sent = beam_runner_api_pb2.Pipeline.FromString(
            job.staged["pipeline.pb"]
        )
        assert sent == job.graph


def test_workers_install_what_setup_py_describes(
    jobs: list[Described],
) -> None:
    """`--setup_file`: Beam's stock image, and a source distribution."""
    (ingest,) = (job for job in jobs if job.name.startswith("events/"))
    (pool,) = ingest.message.environment.worker_pools
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert pool.worker_harness_container_image.endswith(
        f"/beam_python{version}_sdk:{beam.__version__}"
    )
    assert "workflow.tar.gz" in {package.name for package in pool.packages}
    with tarfile.open(
        fileobj=io.BytesIO(ingest.staged["workflow.tar.gz"])
    ) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    for folder in ("beam_jobs", "schemas", "models", "pipeline", "configs"):
        ours = {
            str(path.relative_to(CHECKOUT))
            for path in (CHECKOUT / folder).rglob("*")
            if path.suffix in (".py", ".yaml")
        }
        assert ours and ours <= names, folder


def test_an_image_with_our_package_needs_no_installation(
    jobs: list[Described],
) -> None:
    """`--sdk_container_image`: nothing is installed when a worker starts."""
    for job in jobs:
        if job.name.startswith("events/"):
            continue
        (pool,) = job.message.environment.worker_pools
        (harness,) = pool.sdk_harness_container_images
        assert harness.container_image == IMAGE
        assert "workflow.tar.gz" not in job.staged
