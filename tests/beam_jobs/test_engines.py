"""One log, many engines: every stage's files have the same sha256.

Raw files go through `ingest` and `prepare` by the command line, in process
(FnApiRunner, 1, 2 and 4 worker processes) and on an engine that is a process
of its own and speaks Beam's job API: Flink with as many task slots where its
job server is to be had, Prism beside it. Prism has one worker a job; what
varies there is how the worker is started. Each engine runs the log as it was
written and cut to pieces: 6 combinations in process and 6 on Prism make 12,
6 more on Flink.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.cli import main
from pipeline.config import load_config
from pipeline.run import Run
from pipeline.stages import DataStages
from schemas.artifacts import ArtifactStore

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIG = """
name: engines
simulator: {num_users: 150, num_videos: 200, num_channels: 20, num_topics: 5,
            num_days: 8, requests_per_user_day: 0.4}
beam: {num_shards: 3}
retrieval_examples: {history_length: 10, search_tokens: 12}
"""
TABLES = ("watches", "searches", "impressions", "videos", "users")
STAGES = (
    "events",
    "split",
    "vocabularies",
    "transform",
    "retrieval_examples",
    "retrieval_holdout",
    "ranking_examples",
    "ranking_holdout",
)
CUT_ROWS = 97


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run left: per stage the files' sha256, and the counts."""

    files: dict[str, dict[str, str]]
    counts: dict[str, dict[str, int]]


@dataclasses.dataclass(frozen=True)
class Log:
    """The same rows twice: as written, and cut to pieces in another order."""

    folder: Path

    def ingest(self, workdir: Path, cut: bool, flags: list[str]) -> Outcome:
        root = self.folder / ("cut" if cut else "written")
        mapping = ["--mapping", str(self.folder / "mapping.yaml")]
        command = ["ingest", *mapping, "--input", str(root)]
        assert main([*command, *self.common(workdir), *flags]) == 0
        return _outcome(workdir, ("events",))

    def ingest_and_prepare(
        self, workdir: Path, cut: bool, flags: list[str]
    ) -> Outcome:
        events = self.ingest(workdir, cut, flags)
        if cut:
            _cut_row_groups(workdir)
        assert main(["prepare", *self.common(workdir), *flags]) == 0
        prepared = _outcome(workdir, STAGES[1:])
        return Outcome(
            events.files | prepared.files, events.counts | prepared.counts
        )

    def common(self, workdir: Path) -> list[str]:
        config = ["--config", str(self.folder / "engines.yaml")]
        return [*config, "--workdir", str(workdir)]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    folder = tmp_path_factory.mktemp("engines")
    (folder / "engines.yaml").write_text(CONFIG)
    simulated = folder / "simulated"
    config = ["--config", str(folder / "engines.yaml")]
    assert main(["simulate", *config, "--workdir", str(simulated)]) == 0
    events = ArtifactStore(str(simulated)).versions("events")[0]
    noise = np.random.default_rng(3)
    mapping: dict[str, object] = {"name": "engines", "tables": {}}
    for table in TABLES:
        rows = pa.concat_tables(
            [pq.read_table(path) for path in events.files(f"{table}-")]
        )
        _write_raw(folder / "written" / f"{table}-0.parquet", rows, 1 << 17)
        rows = rows.take(noise.permutation(rows.num_rows))
        # Names whose order is not that of the rows, and tiny row groups.
        ends = np.linspace(0, rows.num_rows, 6).astype(int)
        for name, start, end in zip("ebdac", ends, ends[1:], strict=False):
            piece = rows.slice(start, end - start)
            _write_raw(
                folder / "cut" / f"{table}-{name}.parquet", piece, CUT_ROWS
            )
        columns = {name: name for name in rows.column_names}
        columns |= {
            n: {"column": n, "unit": n.split("_")[-1]}
            for n in columns
            if n
            in ("event_time_us", "upload_time_us", "watch_time_s", "duration_s")
        }
        mapping["tables"][table] = {
            "file": f"{table}-*.parquet",
            "columns": columns,
        }
    (folder / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    return Log(folder)


@pytest.fixture(scope="module")
def in_process(log: Log) -> Outcome:
    """What the default runner writes: one worker in this process."""
    return log.ingest_and_prepare(log.folder / "reference", False, [])


def _write_raw(path: Path, rows: pa.Table, row_group_rows: int) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(rows, path, row_group_size=row_group_rows)


def _cut_row_groups(workdir: Path) -> None:
    """Rewrites the events' files in tiny row groups: many small bundles."""
    events = Path(ArtifactStore(str(workdir)).versions("events")[-1].path)
    manifest = json.loads((events / "manifest.json").read_text())
    for name in manifest["files"]:
        if name.startswith(TABLES):
            path = events / name
            pq.write_table(pq.read_table(path), path, row_group_size=CUT_ROWS)
            content = path.read_bytes()
            manifest["files"][name] = {
                "sha256": hashlib.sha256(content).hexdigest(),
                "bytes": len(content),
            }
    (events / "manifest.json").write_text(json.dumps(manifest))


def _outcome(workdir: Path, stages: Sequence[str]) -> Outcome:
    store = ArtifactStore(str(workdir))
    found = {stage: store.versions(stage)[-1].manifest for stage in stages}
    return Outcome(
        {
            stage: {n: f["sha256"] for n, f in manifest["files"].items()}
            for stage, manifest in found.items()
        },
        {stage: dict(m["counts"]) for stage, m in found.items()},
    )


def _assert_equal(
    found: Outcome,
    expected: Outcome,
    stages: Sequence[str] = STAGES,
    *,
    may_lose_counts: bool = False,
) -> None:
    for stage in stages:
        assert expected.files[stage], stage
        assert found.files[stage] == expected.files[stage], stage
        told, wanted = found.counts[stage], expected.counts[stage]
        if may_lose_counts:
            assert told.keys() <= wanted.keys(), stage
            assert all(n <= wanted[name] for name, n in told.items()), stage
        else:
            assert told == wanted, stage


def _environment(kind: str, request: pytest.FixtureRequest) -> list[str]:
    """Flags of a worker environment; asks for its fixture only if needed."""
    if kind == "LOOPBACK":
        return ["--environment_type=LOOPBACK"]
    if kind == "EXTERNAL":
        pool = request.getfixturevalue("worker_pool")
        return ["--environment_type=EXTERNAL", f"--environment_config={pool}"]
    process = {
        "command": request.getfixturevalue("boot"),
        "env": {
            # This Python and its packages, no virtual environment of boot's.
            "RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(CHECKOUT),
        },
    }
    return [
        "--environment_type=PROCESS",
        f"--environment_config={json.dumps(process)}",
    ]


def _slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


CUTS = [False, True]
CUT_IDS = ["written", "cut"]


def test_the_log_is_cut_as_it_says(log: Log) -> None:
    """Both forms hold the same rows; only one has many small pieces."""
    for table in TABLES:
        written = pq.ParquetFile(log.folder / "written" / f"{table}-0.parquet")
        pieces = [
            pq.ParquetFile(p)
            for p in (log.folder / "cut").glob(f"{table}-*.parquet")
        ]
        assert written.num_row_groups == 1
        assert len(pieces) == 5
        assert sum(p.metadata.num_rows for p in pieces) == (
            written.metadata.num_rows
        )
    assert sum(p.num_row_groups for p in pieces) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS, ids=CUT_IDS)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_in_process(
    log: Log, in_process: Outcome, tmp_path: Path, workers: int, cut: bool
) -> None:
    """FnApiRunner; more than one worker are processes of their own."""
    flags = ["--runner=FnApiRunner"]
    if workers > 1:
        flags += [
            "--direct_running_mode=multi_processing",
            f"--direct_num_workers={workers}",
        ]
    found = log.ingest_and_prepare(tmp_path / "work", cut, flags)
    _assert_equal(found, in_process)


@pytest.mark.prism
@pytest.mark.parametrize(
    ("environment", "cut"),
    [
        _slow("LOOPBACK", False),
        ("LOOPBACK", True),
        _slow("EXTERNAL", False),
        _slow("EXTERNAL", True),
        _slow("PROCESS", False),
        _slow("PROCESS", True),
    ],
)
def test_on_prism(
    log: Log,
    in_process: Outcome,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    prism: str,
    environment: str,
    cut: bool,
) -> None:
    """Prism, a process of its own; its workers as the environment says."""
    flags = ["--runner=PrismRunner", f"--prism_location={prism}"]
    flags += _environment(environment, request)
    found = log.ingest_and_prepare(tmp_path / "work", cut, flags)
    # Prism 2.77 keeps the counters of a bundle by their short ids until it has
    # asked the worker what these mean; a bundle that ends meanwhile replaces
    # them (jobservices/metrics.go, unprocessedPayloads). So on a busy machine
    # a bundle's counters may be missing, but none is counted twice.
    _assert_equal(found, in_process, may_lose_counts=True)


@pytest.mark.prism
def test_the_first_stages_on_prism_with_external_workers(
    log: Log, in_process: Outcome, tmp_path: Path, prism: str, worker_pool: str
) -> None:
    """Beam's worker pool starts a new process a job, so three jobs of them."""
    flags = ["--runner=PrismRunner", f"--prism_location={prism}"]
    flags += ["--environment_type=EXTERNAL"]
    flags += [f"--environment_config={worker_pool}"]
    work = tmp_path / "work"
    events = log.ingest(work, True, flags)
    _assert_equal(events, in_process, ["events"], may_lose_counts=True)
    config = load_config(str(log.folder / "engines.yaml"), [])
    run = Run(config, ArtifactStore(str(work)), tuple(flags))
    stages = ["split", "vocabularies"]
    DataStages(run.building(*stages)).vocabularies()
    others = _outcome(work, stages)
    _assert_equal(others, in_process, stages, may_lose_counts=True)


@pytest.mark.flink
@pytest.mark.parametrize(
    ("slots", "environment", "cut"),
    [
        (2, "LOOPBACK", False),
        _slow(2, "EXTERNAL", True),
        _slow(1, "LOOPBACK", True),
        _slow(1, "EXTERNAL", False),
        _slow(4, "PROCESS", False),
        _slow(4, "EXTERNAL", True),
    ],
)
def test_on_flink(
    log: Log,
    in_process: Outcome,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    flink_job_server: str,
    slots: int,
    environment: str,
    cut: bool,
) -> None:
    """A local Flink cluster with so many task slots, by Beam's job server."""
    flags = [
        "--runner=FlinkRunner",
        "--flink_master=[local]",
        f"--flink_job_server_jar={flink_job_server}",
        f"--parallelism={slots}",
        # Elements a bundle: Flink's default is 5,000.
        f"--max_bundle_size={1 if cut else 1000}",
    ]
    flags += _environment(environment, request)
    found = log.ingest_and_prepare(tmp_path / "work", cut, flags)
    _assert_equal(found, in_process)


@pytest.mark.prism
def test_an_error_on_a_worker_reaches_the_user_in_one_line(
    log: Log, tmp_path: Path, prism: str
) -> None:
    """The command in a process of its own: all that a terminal would show."""
    work = tmp_path / "work"
    log.ingest(work, False, [])
    events = Path(ArtifactStore(str(work)).versions("events")[0].path)
    # Damaged behind the manifest's back, so that a worker is who finds it.
    broken = next(events.glob("watches-00001-*.parquet"))
    broken.write_bytes(broken.read_bytes()[:-9])
    manifest = json.loads((events / "manifest.json").read_text())
    content = broken.read_bytes()
    manifest["files"][broken.name] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    (events / "manifest.json").write_text(json.dumps(manifest))
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pipeline.cli",
                "prepare",
                *log.common(work),
            ),
            *("--runner=PrismRunner", f"--prism_location={prism}"),
        ],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    said = [line for line in done.stderr.splitlines() if str(broken) in line]
    assert said == [
        f"watchnext: {broken} is no readable Parquet file: {_reason(broken)}. "
        "Run the stage that wrote it again."
    ]
    assert "Traceback" not in done.stderr, done.stderr
    assert "ERROR" not in done.stderr


def _reason(broken: Path) -> str:
    with pytest.raises(pa.ArrowException) as caught:
        pq.ParquetFile(broken)
    return str(caught.value).splitlines()[0].rstrip(".")
