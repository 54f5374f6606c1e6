"""An experiment from simulated log to page; what fails, resumes, is missing."""

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.cli import main
from pipeline.experiments import crew
from pipeline.experiments.catalogue import EXPERIMENTS
from pipeline.experiments.experiment import (
    Cell,
    Experiment,
    Results,
)
from pipeline.experiments.page import write_page
from pipeline.experiments.plan import Plan
from pipeline.experiments.reproduce import Outcome, reproduce
from pipeline.experiments.scales import QUICK
from schemas.errors import WatchnextError
from tests.pipeline.serve.browser import Browser, chromium

TINY = (
    "simulator.num_users=150",
    "simulator.num_videos=150",
    "simulator.num_channels=40",
    "simulator.num_days=16",
    "beam.num_shards=2",
    "retrieval.epochs=1",
    "retrieval.batch_size=64",
    "retrieval.embedding_dim=8",
    "retrieval.hidden_units=[8]",
    "retrieval.num_negatives=20",
)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Figure 4, tiny, measured in this process with one seed."""
    made = Plan(QUICK, str(tmp_path_factory.mktemp("reproduce")), TINY)
    cells = made.cells([EXPERIMENTS["figure_4"]], [7])
    assert [made.fingerprint(cell) for cell in cells] == [None] * 3
    made.prepare(cells)
    for cell in cells:
        made.measure(cell)
    return made


def outcome(plan: Plan, seeds: list[int]) -> Outcome:
    experiment = EXPERIMENTS["figure_4"]
    by_cell = {c: plan.result(c) for c in plan.cells([experiment], seeds)}
    return Outcome(
        experiment,
        Results({c: r for c, r in by_cell.items() if r is not None}),
        {c: "it failed" for c, r in by_cell.items() if r is None},
    )


def test_the_sweep_reaches_the_trained_models(plan: Plan) -> None:
    results = outcome(plan, [7]).results
    assert results.of("without_age", "flatness") == {7: 1.0}
    assert results.of("without_age", "correlation_model_log") == {7: 0.0}
    assert results.of("with_age", "flatness")[7] > 1.0
    # Before its upload no video was watched; in the window some are.
    log = {
        int(age): results.of("with_age", f"curve.log.{age}")[7]
        for age in results.names("curve.log.")
    }
    assert all(share == 0.0 for age, share in log.items() if age < 0)
    assert max(log.values()) > 0.0
    # More users watch the same videos: their shares are the log's, less noise.
    assert results.of("with_age", "correlation_log_crowd")[7] > 0.3
    # Of one seed nothing is said.
    checks = EXPERIMENTS["figure_4"].checks(results)
    assert {check.outcome for check in checks} == {"inconclusive"}


def test_results_are_found_again_by_what_they_follow_from(plan: Plan) -> None:
    again = Plan(QUICK, plan.workdir, TINY)
    (cell, *_) = again.cells([EXPERIMENTS["figure_4"]], [7])
    assert again.result(cell) == plan.result(cell)
    other_model = Plan(QUICK, plan.workdir, (*TINY, "retrieval.epochs=2"))
    assert other_model.fingerprint(cell) not in (None, again.fingerprint(cell))
    assert other_model.result(cell) is None
    other_log = Plan(QUICK, plan.workdir, (*TINY, "simulator.num_days=17"))
    assert other_log.fingerprint(cell) is None
    # Whatever a training left is gone.
    assert not list(Path(plan.workdir).rglob("*.scratch"))


def test_a_measurement_without_data_names_what_to_run(tmp_path: Path) -> None:
    cell = Cell("figure_4", "with_age", 1)
    with pytest.raises(WatchnextError, match=r"no data .* reproduce"):
        Plan(QUICK, str(tmp_path), TINY).measure(cell)


def test_the_page_names_runs_and_what_is_missing(
    plan: Plan, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    write_page(str(path), plan, [outcome(plan, [7, 8])])
    text = path.read_text()
    for cell in plan.cells([EXPERIMENTS["figure_4"]], [7]):
        assert str(plan.fingerprint(cell))[:12] in text
    assert "figure_4/with_age/seed-8: it failed" in text
    assert "3 of 6" in text
    assert "retrieval.num_negatives=20" in text
    assert "<svg" in text and "<script" not in text


def test_failed_jobs_are_named_with_their_logs(tmp_path: Path) -> None:
    told = []
    jobs = [
        crew.Job(name, arguments, str(tmp_path / f"{name}.log"))
        for name, arguments in (("fails", ("sing",)), ("helps", ("--help",)))
    ]
    done = crew.run_jobs(jobs, 2, told.append)
    assert [(d.job.name, d.code) for d in done] == [("fails", 2), ("helps", 0)]
    assert sorted(d.job.name for d in told) == ["fails", "helps"]
    assert "invalid choice: 'sing'" in crew.last_line(jobs[0].log)


def test_a_terminated_run_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Serves until it is ended.
    monkeypatch.setattr(crew, "_CHILD", "http.server")
    job = crew.Job(
        "serves", ("0", "--bind", "127.0.0.1"), str(tmp_path / "log")
    )
    before = set(psutil.Process().children())
    began = threading.Event()

    def terminate() -> None:
        while not (set(psutil.Process().children()) - before):
            time.sleep(0.05)
        began.set()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    told: list[crew.Done] = []
    with pytest.raises(KeyboardInterrupt):
        crew.run_jobs([job, job], 1, told.append)
    assert began.is_set() and told == []
    assert not (set(psutil.Process().children()) - before)


def test_a_killed_run_leaves_no_process(tmp_path: Path) -> None:
    # Nobody is left to end its jobs, and they would write on.
    program = (
        "from pipeline.experiments import crew\n"
        "crew._CHILD = 'http.server'\n"
        "job = crew.Job('serves', ('0', '--bind', '127.0.0.1'), "
        f"{str(tmp_path / 'log')!r})\n"
        "crew.run_jobs([job], 1, print)\n"
    )
    parent = psutil.Popen([sys.executable, "-c", program])
    while not (jobs := parent.children()):
        time.sleep(0.05)
    # It runs its own program by now.
    while jobs[0].cmdline()[1:3] != ["-m", "http.server"]:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(jobs, timeout=10)
    assert alive == []


def test_all_seeds_that_failed_to_prepare_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(crew, "_CHILD", "no.such.module")
    arguments = {"quick": True, "workdir": str(tmp_path), "overrides": TINY}
    with pytest.raises(WatchnextError, match=r"data.*seed-3\.log"):
        reproduce(only=["figure_5"], seeds=[3], jobs=1, **arguments)
    assert "FAILED" in capsys.readouterr().out
    page = (tmp_path / "quick" / "reproduce.html").read_text()
    assert "figure_5/next_watch/seed-3: its data could not be" in page
    assert "Nothing of it was measured." in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "figure_44"], "no such experiment. There are figure_4,"),
        (["--seeds", "one"], "expected whole numbers, such as 1,2,3"),
        (["--workdir", "gs://bucket/x"], "give a local folder"),
        (["--set", "retrieval.epoch=1"], "retrieval.epochs"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys
) -> None:
    workdir = ["--workdir", str(tmp_path)]
    assert main(["reproduce", "--quick", *workdir, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("quick", [True, False])
def test_settings_fit_the_configuration(name: str, quick: bool) -> None:
    plan = Plan(QUICK, "nowhere")
    experiment: Experiment = EXPERIMENTS[name]
    settings = experiment.settings(quick)
    assert len({s.name for s in settings}) == len(settings)
    assert all(re.fullmatch(r"\w+", s.name) for s in settings)
    for cell in plan.cells([experiment], [1]):
        plan.config(cell)
    # Nothing measured: no verdict.
    checks = experiment.checks(Results({}))
    assert {c.outcome for c in checks} == {"inconclusive"}


@pytest.fixture
def browser(tmp_path: Path):
    program = chromium()
    if program is None:
        pytest.skip("No Chromium: install the package chromium.")
    made = Browser(program, tmp_path / "profile")
    yield made
    made.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_fits_a_phone_and_a_desk(
    plan: Plan, tmp_path: Path, browser: Browser, width: int
) -> None:
    path = tmp_path / "page.html"
    write_page(str(path), plan, [outcome(plan, [7, 8])])
    look(browser, path, width)


def look(browser: Browser, path: Path, width: int) -> None:
    """Opens a page: all of it is there, in the width, without an error."""
    browser.look(width, 900)
    browser.open(path.as_uri())
    browser.wait("document.readyState === 'complete'")
    assert browser.run("document.querySelectorAll('svg.plot').length") > 0
    wide = browser.run("document.documentElement.scrollWidth")
    assert wide <= width
    assert browser.problems == []
    assert path.stat().st_size < 8_000_000


@pytest.mark.slow
def test_all_experiments_run_quick(tmp_path: Path, capsys, browser) -> None:
    assert main(["reproduce", "--quick", "--workdir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "FAILED" not in said
    folder = tmp_path / "quick"
    page = folder / "reproduce.html"
    for name, experiment in EXPERIMENTS.items():
        for cell in experiment.cells([1], True):
            assert str(cell) in page.read_text()
            pattern = f"{name}/{cell.setting}-seed-1-*.json"
            (kept,) = (folder / "cells").glob(pattern)
            assert json.loads(kept.read_text())["fingerprint"][:12] in (
                page.read_text()
            )
    assert 'class="missing"' not in page.read_text()
    look(browser, page, 390)
    # What is there is not measured again.
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*.json")}
    assert main(["reproduce", "--quick", "--workdir", str(tmp_path)]) == 0
    assert times == {p: p.stat().st_mtime_ns for p in folder.rglob("*.json")}
    shutil.rmtree(folder)
