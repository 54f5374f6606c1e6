"""Failures are injected as broken packages, binaries and device files."""

import io
import os
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import doctor, doctor_runners
from pipeline.doctor import (
    Package,
    PackageFound,
    Report,
    TensorFlowSees,
    accelerators_in_words,
    onnx_in_words,
    print_report,
    try_imports,
)
from pipeline.doctor_runners import RunnerFound, find_runners


def write_package(folder: Path, name: str, body: str) -> Package:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(body)
    return Package(name, f"import {name}")


def write_program(folder: Path, name: str, body: str) -> Path:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return program


def test_each_way_to_fail_is_one_line_and_the_rest_is_still_tried(
    tmp_path: Path,
) -> None:
    packages = [
        write_package(tmp_path, "chatty", "print('hello')"),
        write_package(tmp_path, "broken", "raise ImportError('no\\nsymbol')"),
        write_package(tmp_path, "crash", "import os; os.kill(os.getpid(), 11)"),
        write_package(tmp_path, "leaves", "raise SystemExit(3)"),
        write_package(tmp_path, "quits", "import os; os._exit(4)"),
        Package("absent", "import absent"),
        write_package(tmp_path, "last", ""),
    ]
    found, _ = try_imports(packages, [str(tmp_path)])
    assert {f.name: f.error for f in found} == {
        "chatty": None,
        "broken": "ImportError: no",
        # SIGSEGV is signal 11.
        "crash": "the import ended the interpreter (signal 11)",
        "leaves": "SystemExit: 3",
        "quits": "the import ended the interpreter (exit status 4)",
        "absent": "ModuleNotFoundError: No module named 'absent'",
        "last": None,
    }
    assert [f.name for f in found] == [p.name for p in packages]
    assert {f.version for f in found} == {None}


def test_a_package_in_the_current_folder_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = write_package(tmp_path, "stranger", "")
    monkeypatch.chdir(tmp_path)
    found, _ = try_imports([stranger], [])
    assert found[0].error == "ModuleNotFoundError: No module named 'stranger'"


def test_what_tensorflow_sees_is_counted_by_kind(tmp_path: Path) -> None:
    body = """
from types import SimpleNamespace as S
config = S(list_physical_devices=lambda: [
    S(device_type=kind) for kind in ("CPU", "GPU", "GPU")])
io = S(gfile=S(get_registered_schemes=lambda: ["file", "gs"]))
"""
    package = write_package(tmp_path, "tensorflow", body)
    found, sees = try_imports([package], [str(tmp_path)])
    assert found[0].error is None
    assert sees == TensorFlowSees({"CPU": 1, "GPU": 2}, ("file", "gs"))


@pytest.mark.parametrize(
    ("devices", "nodes", "words"),
    [
        ({"CPU": 1}, [], "none; TensorFlow computes on the CPU"),
        ({"CPU": 1, "GPU": 1}, ["nvidia0"], "1 GPU"),
        ({"GPU": 2, "TPU": 8}, [], "2 GPUs and 8 TPUs"),
        (
            {"CPU": 1},
            ["nvidia0"],
            "none; TensorFlow computes on the CPU; an NVIDIA card is here but"
            " unused: pip install 'tensorflow[and-cuda]', the [gpu] extra",
        ),
        (
            {"GPU": 1},
            ["accel0"],
            "1 GPU; a TPU is here but unused: it needs the [tpu] extra and a"
            " TPU build of TensorFlow",
        ),
    ],
)
def test_accelerators_in_words(
    tmp_path: Path, devices: dict[str, int], nodes: list[str], words: str
) -> None:
    for node in nodes:
        (tmp_path / node).touch()
    assert accelerators_in_words(TensorFlowSees(devices), tmp_path) == words


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder on PATH, empty; Go has installed nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GOBIN", "GOPATH", "WATCHNEXT_PRISM", "WATCHNEXT_BOOT"):
        monkeypatch.delenv(name, raising=False)
    return folder


def usable(cache: Path, reads_gs: bool = True) -> dict[str, bool]:
    return {r.name: r.usable for r in find_runners(reads_gs, cache)}


def prism_words(cache: Path) -> str:
    words = {r.name: r.words for r in find_runners(True, cache)}
    return words["PrismRunner"]


def test_prism_is_found_on_path_or_in_the_cache(
    programs: Path, tmp_path: Path
) -> None:
    assert not usable(tmp_path)["PrismRunner"]
    assert prism_words(tmp_path).endswith(
        "go install github.com/apache/beam/sdks/v2/go/cmd/prism"
        f"@v{metadata.version('apache-beam')}"
    )
    cache = tmp_path / "prism" / "bin"
    cache.mkdir(parents=True)
    (cache / "apache_beam-v2.77.0-prism-linux-amd64").touch()
    assert usable(tmp_path)["PrismRunner"]
    prism = write_program(programs, "prism", "exit 0")
    # The binary on PATH wins: it needs no network.
    assert prism_words(tmp_path).startswith(f"{prism}, workers LOOPBACK and")


def test_prism_and_boot_are_found_where_go_installs_them(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "go" / "bin"
    go.mkdir(parents=True)
    prism = write_program(go, "prism", "exit 0")
    assert "PROCESS needs Beam's boot: go install" in prism_words(tmp_path)
    # Go names a program after its package's folder.
    write_program(go, "container", "exit 0")
    every = "workers LOOPBACK, EXTERNAL and PROCESS"
    assert prism_words(tmp_path) == f"{prism}, {every}"
    other = write_program(tmp_path / "other", "prism", "exit 0")
    monkeypatch.setenv("GOBIN", str(tmp_path / "other"))
    assert prism_words(tmp_path) == f"{other}, {every}"
    # What the variable names is taken or nothing.
    monkeypatch.setenv("WATCHNEXT_PRISM", str(tmp_path / "absent"))
    assert not usable(tmp_path)["PrismRunner"]


def test_flink_needs_java_that_runs_and_the_job_server(
    programs: Path, tmp_path: Path
) -> None:
    jars = tmp_path / "jars"
    jars.mkdir()
    (jars / "beam-runners-flink-2.2-job-server-2.77.0.jar").touch()
    assert not usable(tmp_path)["FlinkRunner"]
    write_program(programs, "java", "echo broken >&2; exit 1")
    assert not usable(tmp_path)["FlinkRunner"]
    write_program(
        programs,
        "java",
        "echo 'Picked up JAVA_TOOL_OPTIONS: -X' >&2;"
        " echo 'openjdk version \"17.0.1\"' >&2",
    )
    words = {r.name: r.words for r in find_runners(True, tmp_path)}
    assert words["FlinkRunner"].startswith('openjdk version "17.0.1", job')
    (jars / "beam-runners-flink-2.2-job-server-2.77.0.jar").unlink()
    assert not usable(tmp_path)["FlinkRunner"]


def test_dataflow_needs_the_extra_and_gs_paths(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"apitools", "google.cloud.storage"}
    monkeypatch.setattr(
        doctor_runners, "_is_importable", lambda m: m in installed
    )
    assert usable(tmp_path)["DataflowRunner"]
    assert not usable(tmp_path, reads_gs=False)["DataflowRunner"]
    installed.remove("google.cloud.storage")
    missing = find_runners(True, tmp_path)[-1]
    assert missing == RunnerFound(
        "DataflowRunner", False, "pip install 'watchnext[gcp]'"
    )
    assert usable(tmp_path)["FnApiRunner"]


def a_report(*packages: PackageFound) -> Report:
    return Report(
        python="3.12.1",
        platform="Linux",
        cores=2,
        memory_bytes=3 * 2**30,
        memory_free_bytes=3 * 2**29,
        disk_free_bytes=2**29,
        packages=packages,
        accelerators="none",
        onnx="needs the [onnx] extra",
        runners=(RunnerFound("FnApiRunner", True, "here"),),
    )


def test_what_onnx_needs_is_named() -> None:
    assert onnx_in_words(["numpy"]) == "ready for `export --onnx`"
    said = onnx_in_words(["numpy", "absent-a", "absent-b"])
    assert said.startswith("no absent-a and no absent-b: ")
    assert said.endswith("pip install 'watchnext[onnx]'")


def printed(report: Report) -> list[str]:
    out = io.StringIO()
    print_report(report, Console(file=out, width=100))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_broken_package_is_named_and_fails() -> None:
    broken = a_report(
        PackageFound("scann", "1.4.2", "ImportError: [x] lost"),
        PackageFound("pytest", "9.2.0", None),
    )
    assert broken.exit_code == 1
    lines = printed(broken)
    assert "scann    1.4.2    ImportError: [x] lost" in lines
    assert lines[-1].startswith("Cannot run: scann cannot be imported.")


def test_sizes_are_in_gib_and_health_exits_0() -> None:
    healthy = a_report(PackageFound("pytest", "9.2.0", None))
    assert healthy.exit_code == 0
    lines = printed(healthy)
    # 3 * 2^29 / 2^30 = 1.5; 2^29 / 2^30 = 0.5
    assert "Memory        3.0 GiB, 1.5 GiB free" in lines
    assert "Disk          0.5 GiB free here" in lines
    # No markup was read in it.
    assert "ONNX          needs the [onnx] extra" in lines
    assert lines[-1] == "All packages import; this machine is ready."


def test_this_machine_in_truth() -> None:
    found = doctor.report()
    assert found.exit_code == 0, found.packages
    assert [p.name for p in found.packages] == [
        "tensorflow",
        "tensorflow-recommenders",
        "apache-beam",
        "scann",
        "tensorflow-transform",
        "pytest",
    ]
    # What the kernel says, read another way.
    meminfo = Path("/proc/meminfo").read_text().split()
    assert found.memory_bytes == int(meminfo[1]) * 1024
    assert 1 <= found.cores <= (os.cpu_count() or 1)
