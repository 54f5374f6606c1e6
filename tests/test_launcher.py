"""The launcher on machines that are not like this one.

A copy of the launcher runs in an empty checkout with a PATH of fakes only, so
that nothing is ever really installed; the slow test at the end builds and
installs the real project.
"""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import venv
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
# What the script itself calls; python and uv are left to each test.
TOOLS = [
    *("sh", "dirname", "readlink", "sha256sum", "cat", "tail", "uname"),
    *("rm", "mv", "mkdir", "cp", "chmod", "sleep"),
]


class Machine:
    """A checkout and a PATH of its own.

    `python_says(name, words)` puts an interpreter on PATH that answers the
    launcher's probe with these words; its `-m venv` makes a fake venv.
    """

    def __init__(self, root: Path) -> None:
        self.checkout = root / "check out"
        self.bin = root / "bin"
        self.checkout.mkdir()
        self.bin.mkdir()
        shutil.copy(CHECKOUT / "watchnext", self.checkout)
        (self.checkout / "requirements.lock").write_text("a==1\n")
        (self.checkout / "setup.py").write_text("# one\n")
        for tool in TOOLS:
            real = shutil.which(tool)
            assert real is not None, tool
            (self.bin / tool).symlink_to(real)

    def program(self, name: str, body: str) -> Path:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text("#!/bin/sh\n" + textwrap.dedent(body))
        path.chmod(0o755)
        return path

    def python_says(self, name: str, words: str) -> None:
        self.program(name, f"echo {words!r}\n")

    def fit_python(self, install: str = ":") -> None:
        """Put a fit python3 on PATH; `install` runs when pip is called.

        Its venv's `python` counts the installs in the file `installs`, and
        its `watchnext` prints its arguments.
        """
        # One pair of brackets a word, to see how words are forwarded.
        self.program(
            "ran",
            """
            printf ran
            [ $# -eq 0 ] || printf ' [%s]' "$@"
            echo
        """,
        )
        # flock is done by the real interpreter on the inherited descriptor.
        self.program(
            "python3",
            f"""
            case "$2" in
            *fcntl*) exec '{sys.executable}' "$@" ;;
            venv) mkdir -p "$3/bin"
                cp "$0.in-venv" "$3/bin/python"
                chmod +x "$3/bin/python" ;;
            *) echo "ok $0" ;;
            esac
            """,
        )
        self.program(
            "python3.in-venv",
            f"""
            case "$*" in
            *editable*)
                cp '{self.bin}/ran' "${{0%python}}watchnext"
                ;;
            *"pip install"*) echo installed >>'{self.checkout}/installs'
                {install} ;;
            *) echo "python $*" ;;
            esac
            """,
        )

    @property
    def installs(self) -> int:
        log = self.checkout / "installs"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [self.checkout / "watchnext", *arguments],
            env={"PATH": str(self.bin)},
            cwd=self.bin,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def refusal(machine: Machine) -> str:
    """Run; expect exit code 1 and exactly one line; return that line."""
    code, out, err = machine.run("doctor")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1 and err.startswith("watchnext: ")
    assert not (machine.checkout / ".venv").exists()
    return err


@pytest.mark.parametrize(
    ("uname_s", "uname_m"), [("Darwin", "x86_64"), ("Linux", "aarch64")]
)
def test_other_platforms_are_told_what_was_found(
    machine: Machine, uname_s: str, uname_m: str
) -> None:
    machine.fit_python()
    machine.program(
        "uname", f'[ "$1" = -s ] && echo {uname_s} || echo {uname_m}\n'
    )
    line = refusal(machine)
    assert "needs Linux on x86-64" in line
    assert f"this machine is {uname_s} on {uname_m}" in line


def test_no_python_at_all(machine: Machine) -> None:
    assert "found: no python3 that runs" in refusal(machine)


def test_every_unfit_python_is_named(machine: Machine) -> None:
    machine.python_says("python3", "is Python 3.10.13")
    # A shim without a version behind it.
    machine.program("python3.13", "echo 'command not found' >&2; exit 127\n")
    machine.python_says("python3.11", "lacks ensurepip (apt install it)")
    line = refusal(machine)
    assert "needs CPython 3.11, 3.12 or 3.13" in line
    assert (
        "found: python3 is Python 3.10.13;"
        " python3.11 lacks ensurepip (apt install it)." in line
    )


def ask_probe(setup: str, installer: str) -> str:
    """Run the launcher's probe in this interpreter, after `setup`."""
    script = (CHECKOUT / "watchnext").read_text()
    probe = script.split("probe='\n")[1].split("\n'\n")[0]
    return subprocess.run(
        [sys.executable, "-c", setup + probe, installer],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    ("setup", "answer"),
    [
        ("sys.version_info = (3, 10, 13)", "is Python"),
        ("sys.version_info = (3, 14, 0)", "is Python"),
        ("sys.maxsize = 2**31 - 1", "is a 32-bit Python"),
        ("sys.abiflags = 't'", "is a free-threaded Python"),
        ("platform.python_implementation = lambda: 'PyPy'", "is PyPy, not"),
        ("platform.libc_ver = lambda: ('', '')", "runs on an unknown C"),
        ("platform.libc_ver = lambda: ('glibc', '2.9')", "runs on glibc 2.9,"),
        ("sys.modules['ensurepip'] = None", "lacks ensurepip (Debian"),
        ("platform.libc_ver = lambda: ('glibc', '2.28')", "ok /"),
    ],
)
def test_probe(setup: str, answer: str) -> None:
    said = ask_probe(f"import platform, sys\n{setup}\n", "pip")
    assert said.startswith(answer)


def test_uv_needs_no_ensurepip() -> None:
    said = ask_probe("import sys\nsys.modules['ensurepip'] = None\n", "uv")
    assert said == f"ok {os.path.realpath(sys._base_executable)}\n"


def test_first_call_installs_once_and_forwards_the_words(
    machine: Machine,
) -> None:
    machine.fit_python()
    code, out, err = machine.run("train", "a b", "--set", "x=1")
    assert (code, out) == (0, "ran [train] [a b] [--set] [x=1]\n"), err
    assert "installing" in err and err.count("\n") == 2
    assert machine.run("doctor") == (0, "ran [doctor]\n", "")
    assert machine.installs == 1


@pytest.mark.parametrize("changed", ["requirements.lock", "setup.py"])
def test_changed_lock_or_setup_installs_again(
    machine: Machine, changed: str
) -> None:
    machine.fit_python()
    machine.run("doctor")
    (machine.checkout / changed).write_text("# two\n")
    stale = machine.checkout / ".venv/stale_package.py"
    stale.touch()
    assert machine.run("doctor")[0] == 0
    assert machine.installs == 2
    assert not stale.exists()


def test_a_moved_checkout_installs_again(
    machine: Machine, tmp_path: Path
) -> None:
    machine.fit_python()
    machine.run("doctor")
    machine.checkout = machine.checkout.rename(tmp_path / "moved")
    machine.fit_python()
    assert machine.run("doctor")[1] == "ran [doctor]\n"
    assert machine.installs == 2


def test_failed_install_shows_the_reason_and_is_begun_again(
    machine: Machine,
) -> None:
    machine.fit_python("echo 'no such version a==1'; exit 1")
    code, out, err = machine.run("doctor")
    assert (code, out) == (1, "")
    assert "no such version a==1" in err
    assert "installing failed at: " in err.splitlines()[-1]
    machine.fit_python()
    assert machine.run("doctor")[:2] == (0, "ran [doctor]\n")
    assert machine.installs == 2


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def test_killed_install_is_not_believed(machine: Machine) -> None:
    # The venv looks whole when the kill comes; only the stamp is missing.
    machine.fit_python(
        'printf "#!/bin/sh\\n" >"${0%python}watchnext";'
        ' chmod +x "${0%python}watchnext"; exec sleep 20'
    )
    process = machine.start("doctor")
    wait_for(machine.checkout / ".venv/bin/watchnext")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    machine.fit_python()
    assert machine.run("doctor")[:2] == (0, "ran [doctor]\n")
    assert machine.installs == 2


def test_two_launchers_at_once_install_once(machine: Machine) -> None:
    gate = machine.checkout / "gate"
    machine.fit_python(f"until [ -e '{gate}' ]; do sleep 0.02; done")
    first = machine.start("demo")
    wait_for(machine.checkout / "installs")
    second = machine.start("doctor")
    # The second must wait for as long as the first installs.
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=0.5)
    gate.touch()
    assert first.communicate(timeout=20)[0] == "ran [demo]\n"
    out, err = second.communicate(timeout=20)
    assert out == "ran [doctor]\n"
    assert err.count("\n") == 1 and "waiting for another" in err
    assert machine.installs == 1


def test_test_command_leaves_the_slow_ones_out(machine: Machine) -> None:
    machine.fit_python()
    machine.run("doctor")
    said = machine.run("test", "-k", "clock")[1]
    spread = "--numprocesses auto --maxprocesses 4 --dist loadgroup"
    assert said == f"python -m pytest -m not slow {spread} -k clock\n"
    said = machine.run("test", "--all", "-x")[1]
    assert said == f"python -m pytest -m  {spread} -x\n"


def test_called_through_a_symlink_from_elsewhere(
    machine: Machine, tmp_path: Path
) -> None:
    machine.fit_python()
    (tmp_path / "wn").symlink_to(machine.checkout / "watchnext")
    done = subprocess.run(
        [tmp_path / "wn", "doctor"],
        env={"PATH": str(machine.bin)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "ran [doctor]\n", done.stderr
    assert (machine.checkout / ".venv").is_dir()


@pytest.mark.slow
def test_wheel_installs_and_runs_from_another_folder(tmp_path: Path) -> None:
    source = tmp_path / "source"
    unwanted = shutil.ignore_patterns(".*", "work", "build", "*.egg-info")
    shutil.copytree(CHECKOUT, source, ignore=unwanted)
    # Building rewrites sys.argv, so it is read first.
    build = (
        "import sys; from setuptools import build_meta; out = sys.argv[1];"
        "build_meta.build_sdist(out); build_meta.build_wheel(out)"
    )
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()

    # A venv that sees this interpreter's packages, but not the checkout.
    venv.create(tmp_path / "venv", with_pip=True)
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    here = [p for p in sys.path if p.endswith("site-packages")]
    (site / "outer.pth").write_text("\n".join(here) + "\n")
    python = tmp_path / "venv/bin/python"
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    # --ignore-installed: the checkout may be installed in the outer site.
    subprocess.run(
        [
            *(python, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--no-index", "--ignore-installed", wheel),
        ],
        env=clean,
        cwd=tmp_path,
        check=True,
    )
    shipped = sorted(p.name for p in (CHECKOUT / "configs").rglob("*.yaml"))
    assert shipped, "configs/ holds no YAML files"
    for folder in (site / "pipeline" / "configs", unpacked / "configs"):
        assert sorted(p.name for p in folder.rglob("*.yaml")) == shipped
    done = subprocess.run(
        [tmp_path / "venv/bin/watchnext", "--help"],
        env=clean,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for command in ("demo", "train", "recommend", "doctor"):
        assert command in done.stdout
