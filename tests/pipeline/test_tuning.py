"""The search: which trials, in what order, and what a killed one leaves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline import tuning
from pipeline.cli import main
from pipeline.config import load_config
from pipeline.run import PREPARED, Run
from pipeline.tuning_space import Space
from pipeline.tuning_trial import open_study
from schemas.artifacts import ArtifactStore
from schemas.config import Config
from schemas.errors import WatchnextError
from tests.pipeline.known_loss import finish

ROOT = Path(__file__).parents[2]
SPACE = yaml.safe_load(
    "ranking.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}\n"
    "ranking.dropout: {choices: [0.0, 0.2, 0.4]}\n"
)
# A trial in a process: it waits while there is a file `wait`, and ends as the
# file `fail` says, or well.
TRIAL = """
import pathlib, sys, time
sys.path[:0] = eval(sys.argv[3])
folder, number = pathlib.Path(sys.argv[1]), int(sys.argv[2])
with open(folder / "starts", "a") as stream:
    stream.write(f"{number}\\n")
while (folder / "wait").exists():
    time.sleep(0.02)
if (folder / "fail").exists():
    print("the disk is full")
    sys.exit(int((folder / "fail").read_text()))
from tests.pipeline.known_loss import finish
finish(str(folder), number)
"""


class Done:
    """A trial that has ended when it is started."""

    def __init__(self, command: list[str], *_: object) -> None:
        finish(command[0], int(command[1]))

    def poll(self) -> int:
        return 0

    def join(self) -> None:
        pass


@pytest.fixture
def at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trials of known loss, in this process; gives a work directory."""
    monkeypatch.setattr(tuning, "LocalProcess", Done)
    monkeypatch.setattr(
        tuning,
        "trial_command",
        lambda which, workdir, folder, number, prune: [folder, str(number)],
    )
    return tmp_path


@pytest.fixture
def in_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trials are `TRIAL`; gives a work directory."""
    program = tmp_path / "trial.py"
    program.write_text(TRIAL)
    paths = repr([str(ROOT), *sys.path])
    monkeypatch.setattr(
        tuning,
        "trial_command",
        lambda which, workdir, folder, number, prune: [
            *(sys.executable, str(program), folder, str(number), paths)
        ],
    )
    return tmp_path


def search(work: Path, name: str = "study", **config: object) -> tuning._Search:
    folder = work / name
    folder.mkdir(exist_ok=True)
    whole = Config.model_validate({"ranking": {"dropout": 0.4}, **config})
    space = Space.parse(SPACE, "ranking", whole, "space.yaml")
    run = Run(whole, ArtifactStore(str(work)))
    return tuning._Search(run, "ranking", space, str(folder), prune=True)


def trials(work: Path, name: str = "study") -> list[dict[str, object]]:
    study = open_study(str(work / name), maximize=False, prune=True)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * len(
        study.trials
    )
    return [{**t.params, "value": t.value} for t in study.trials]


def test_the_same_search_has_the_same_trials_however_often_it_ends(
    at_once: Path,
) -> None:
    # More than the ten that are drawn at random.
    search(at_once, "whole").run(12, 1)
    whole = trials(at_once, "whole")
    for end in (1, 5, 11, 12):
        search(at_once, "parts").run(end, 1)
        assert len(trials(at_once, "parts")) == end
    assert trials(at_once, "parts") == whole
    # The first is the configuration as it stands: its rate is 10^-3.
    assert whole[0]["value"] == pytest.approx(0.4)
    assert whole[0]["ranking.learning_rate"] == 1e-3
    assert len({str(trial) for trial in whole}) == 12
    search(at_once, "other", seed=2).run(3, 1)
    other = trials(at_once, "other")
    assert other[0] == whole[0] and other[1:] != whole[1:3]


def test_the_best_is_written_as_a_configuration(
    at_once: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = search(at_once, name="study", seed=5)
    found.run(6, 1)
    found.write_best()
    best = min(trials(at_once), key=lambda trial: trial["value"])
    text = (at_once / "tuned.yaml").read_text()
    assert f"validation loss {best['value']:.6g} in epoch 2" in " ".join(
        text.replace("#", "").split()
    )
    config = load_config(str(at_once / "tuned.yaml"), [])
    assert config.ranking.learning_rate == best["ranking.learning_rate"]
    assert str(config.ranking.dropout) == best["ranking.dropout"]
    assert config.seed == 5
    said = capsys.readouterr().out
    assert "The best of 6 trials" in said and "learning_rate" in said
    assert "Trial 5: loss" in said


def test_several_jobs_run_at_a_time_and_all_trials_come(
    in_processes: Path,
) -> None:
    folder = in_processes / "study"
    folder.mkdir()
    (folder / "wait").touch()
    # None ends before three have started.
    watcher = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import pathlib, sys, time\n"
            "folder = pathlib.Path(sys.argv[1])\n"
            "starts = folder / 'starts'\n"
            "while not starts.exists() or len(starts.read_text()) < 6:\n"
            "    time.sleep(0.02)\n"
            "(folder / 'wait').unlink()\n",
            str(folder),
        ]
    )
    try:
        search(in_processes).run(5, 3)
    finally:
        watcher.kill()
        watcher.wait()
    assert len(trials(in_processes)) == 5


def test_a_trial_that_fails_ends_the_search_and_is_run_again(
    in_processes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(in_processes, "whole").run(3, 1)
    search(in_processes).run(1, 1)
    fail = in_processes / "study" / "fail"
    fail.write_text("1")
    with pytest.raises(WatchnextError, match="Trial 1 ended with exit code 1"):
        search(in_processes).run(3, 1)
    assert "[trial 1] the disk is full" in capsys.readouterr().out
    fail.unlink()
    search(in_processes).run(3, 1)
    starts = (in_processes / "study" / "starts").read_text().split()
    assert starts == ["0", "1", "1", "2"]
    assert trials(in_processes) == trials(in_processes, "whole")


def test_a_search_that_was_killed_while_it_asked_asks_again(
    at_once: Path,
) -> None:
    search(at_once, "whole").run(3, 1)
    search(at_once).run(1, 1)
    study = open_study(str(at_once / "study"), maximize=False, prune=True)
    study.ask().suggest_float("ranking.learning_rate", 1e-4, 1e-2, log=True)
    search(at_once).run(3, 1)
    study = open_study(str(at_once / "study"), maximize=False, prune=True)
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    found = [t.params for t in study.trials if t.state.name == "COMPLETE"]
    whole = open_study(str(at_once / "whole"), maximize=False, prune=True)
    assert found == [trial.params for trial in whole.trials]


def test_two_searches_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with (
        tuning._alone(str(tmp_path)),
        pytest.raises(WatchnextError, match="Another `watchnext tune`"),
        tuning._alone(str(tmp_path)),
    ):
        raise AssertionError("both are inside")
    with tuning._alone(str(tmp_path)):
        pass


def test_without_examples_it_says_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tune", "ranking", "--workdir", str(tmp_path), "--trials", "2"]
    assert main(arguments) == 2
    assert "watchnext simulate" in capsys.readouterr().err
    assert not (tmp_path / "tuning").exists()


def _tune(work: Path, folder: Path, count: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "pipeline.cli", "tune", "ranking"),
            *("--workdir", str(work), "--space", str(folder / "space.yaml")),
            *("--trials", str(count), "--set", "ranking.epochs=2"),
            *("--set", "ranking.checkpoint_every=5"),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.slow
def test_a_killed_search_goes_on_inside_its_trial(
    work: Path, tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    for name in ("whole", "killed"):
        for stage in {*PREPARED, "events"} & {p.name for p in work.iterdir()}:
            os.makedirs(tmp_path / name, exist_ok=True)
            os.symlink(work / stage, tmp_path / name / stage)
        (tmp_path / name / "config.yaml").write_bytes(
            (work / "config.yaml").read_bytes()
        )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _tune(whole, tmp_path, 2).wait() == 0
    process = _tune(killed, tmp_path, 2)
    while not list(killed.glob("tuning/*/trial-*/checkpoints/*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert _tune(killed, tmp_path, 2).wait() == 0
    # Trials, values and epochs, to the last digit.
    tuned = [(p / "tuned.yaml").read_text() for p in (whole, killed)]
    assert tuned[0].replace(str(whole), "") == tuned[1].replace(str(killed), "")
    found = []
    for folder in (whole, killed):
        (own,) = folder.glob("tuning/ranking-*")
        study = open_study(str(own), maximize=False, prune=True)
        found.append(
            [(t.params, t.value, t.intermediate_values) for t in study.trials]
        )
        assert not list(own.glob("trial-*/checkpoints"))
    assert found[0] == found[1] and len(found[0]) == 2
    # A training by the result takes the same way.
    config = load_config(str(whole / "tuned.yaml"), [])
    assert config.ranking.epochs == 2
