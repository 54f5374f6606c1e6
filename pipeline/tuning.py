"""The search over a model's configuration: `watchnext tune`.

A study asks for trials; each is a training in a process of its own, measured
by the validation metric that training itself watches. All that a search knows
is in `tuning/<model>-<key>/` of the work directory, so that one which was
killed goes on: with its finished trials, and inside those that were not. What
a trial is asked for is a function of the seed, its number and the trials
before it. Out: `tuned.yaml`, a whole configuration.
"""

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from pipeline.config import explain, read_yaml
from pipeline.console import number as shown
from pipeline.console import print_table, say
from pipeline.interruption import Interrupted
from pipeline.local_processes import (
    LocalProcess,
    passing_signals_to,
    terminate,
    without_cluster,
)
from pipeline.model_training import Model, watched_metric
from pipeline.run import Run, write_text
from pipeline.shipped import shipped_config
from pipeline.stages import DataStages
from pipeline.tuning_space import Space
from pipeline.tuning_trial import (
    BEST_EPOCH,
    DIVERGED,
    open_study,
    trial_folder,
)
from schemas.artifacts import digest, join
from schemas.config import Config
from schemas.errors import UsageError, WatchnextError
from schemas.hashing import mix

TUNED = "tuned.yaml"
_CONFIG = "config.yaml"
_SHOWN = 10


def tune(
    run: Run,
    which: Model,
    space_file: str | None,
    *,
    trials: int,
    jobs: int,
    prune: bool,
) -> None:
    """Runs a search up to so many trials, and writes what was best.

    Args:
      run: its configuration is the first trial, as far as the space has it.
      which: the model.
      space_file: see `tuning_space`; None is the shipped one.
      trials: of the whole search, those of earlier runs among them.
      jobs: trials at a time; with 1 the same trials come in the same order.
      prune: whether to end trials that are worse than the others were.

    Raises:
      UsageError: a wrong space, no examples, or Optuna is not installed.
      Interrupted: all trials have saved; a second run goes on.
      WatchnextError: a trial failed.
    """
    where = space_file or str(shipped_config(f"tuning/{which}"))
    space = Space.parse(read_yaml(where), which, run.config, where)
    _check_optuna()
    if "://" in run.workdir:
        raise UsageError(
            f"`tune` needs a local or shared folder, not {run.workdir}: the "
            "trials append to one file."
        )
    data = DataStages(run)
    examples = (
        data.ranking_examples()
        if which == "ranking"
        else data.retrieval_examples()
    )
    key = digest(
        [
            which,
            run.config.seed,
            getattr(run.config, which).model_dump(mode="json"),
            space.to_json(),
            examples.fingerprint("train-", "valid-"),
            prune,
        ]
    )
    folder = join(run.workdir, "tuning", f"{which}-{key[:12]}")
    os.makedirs(folder, exist_ok=True)
    with _alone(folder):
        search = _Search(run, which, space, folder, prune)
        search.run(trials, jobs)
        search.write_best()


class _Search:
    """A study, and the processes of its trials."""

    def __init__(
        self, run: Run, which: Model, space: Space, folder: str, prune: bool
    ) -> None:
        self._run, self._which, self._space = run, which, space
        self._folder, self._prune = folder, prune
        section = getattr(run.config, which)
        self._metric, maximize = watched_metric(section, which)
        self._study = open_study(folder, maximize=maximize, prune=prune)
        self._processes: dict[int, LocalProcess] = {}

    def run(self, trials: int, jobs: int) -> None:
        """Runs trials until there are so many."""
        started: list[LocalProcess] = []
        with passing_signals_to(started) as received:
            try:
                while True:
                    self._note_ended()
                    while not received and len(self._processes) < jobs:
                        number = self._next(trials, jobs)
                        if number is None:
                            break
                        started.append(self._start(number))
                    if not self._processes:
                        break
                    time.sleep(0.05)
            finally:
                terminate(list(self._processes.values()))
        if received:
            raise Interrupted(
                "Interrupted; the trials are saved. Run it again to continue.",
                received[0],
            )

    def write_best(self) -> None:
        """Prints the best trials and writes `tuned.yaml`.

        Raises:
          WatchnextError: no trial came to its end.
        """
        complete = self._trials("COMPLETE")
        if not complete:
            raise WatchnextError(
                "No trial came to its end, so there is no best one: "
                f"{len(self._trials('PRUNED'))} diverged or had values that "
                "do not go together. Lower the learning rates of the space."
            )
        sign = -1 if self._study.direction.name == "MAXIMIZE" else 1
        # Of equal ones the first.
        complete.sort(key=lambda t: (sign * t.value, t.number))
        self._print(complete)
        best = complete[0]
        config = self._space.config(self._run.config, best.params)
        values = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        path = join(self._run.workdir, TUNED)
        write_text(
            path,
            f"# The best of {len(self._asked())} trials of `watchnext tune "
            f"{self._which}`: trial {best.number},\n# validation "
            f"{self._metric} {best.value:.6g} in epoch "
            f"{best.user_attrs[BEST_EPOCH]}. See {self._folder}.\n{values}",
        )
        say(f"Wrote {path}: use it by `--config {path}`.")

    def _print(self, complete: Sequence[Any]) -> None:
        names = list(self._space.fields)
        rows = [
            [
                str(trial.number),
                shown(trial.value),
                str(trial.user_attrs[BEST_EPOCH]),
                *(
                    f"{value:.4g}" if isinstance(value, float) else str(value)
                    for value in self._space.values(trial.params).values()
                ),
            ]
            for trial in complete[:_SHOWN]
        ]
        columns = ["trial", self._metric, "epoch"]
        columns += [name.partition(".")[2] for name in names]
        ended = len(self._trials("PRUNED"))
        print_table(
            f"The best of {len(complete) + ended} trials on the validation "
            f"part, {ended} of them ended early",
            columns,
            rows,
        )

    def _next(self, trials: int, jobs: int) -> int | None:
        """The number of the trial to start; None if there is none."""
        for trial in self._trials("RUNNING"):
            if trial.number in self._processes:
                continue
            if set(trial.params) == set(self._space.fields):
                say(f"Trial {trial.number} is gone on with.")
                return int(trial.number)
            # This process was killed while it asked.
            self._tell(trial.number, "FAIL")
        while len(self._asked()) < trials:
            number = self._ask(jobs)
            if number is not None:
                return number
        return None

    def _ask(self, jobs: int) -> int | None:
        """Asks for a trial; None if its values do not go together."""
        from optuna.samplers import TPESampler

        index = len(self._asked())
        # A sampler of its own for each: the draws of a search that is gone on
        # with are those of one that was not interrupted.
        seed = int(mix(self._run.config.seed, np.array([index]))[0] >> 32)
        self._study.sampler = TPESampler(seed=seed, constant_liar=jobs > 1)
        first = self._space.params_of(self._run.config)
        if first and not self._study.trials:
            self._study.enqueue_trial(first)
        trial = self._study.ask(self._space.distributions())
        try:
            config = self._space.config(self._run.config, trial.params)
        except ValidationError as error:
            why = explain(error, Config)
            say(f"Trial {trial.number}: its values do not go together: {why}")
            self._tell(trial.number, "PRUNED")
            return None
        _write_config(trial_folder(self._folder, trial.number), config)
        return int(trial.number)

    def _start(self, number: int) -> LocalProcess:
        own = trial_folder(self._folder, number)
        # Made anew: a killed process may have asked and not written it.
        params = self._study.trials[number].params
        _write_config(own, self._space.config(self._run.config, params))
        command = trial_command(
            self._which, self._run.workdir, self._folder, number, self._prune
        )
        process = LocalProcess(command, f"[trial {number}] ", without_cluster())
        self._processes[number] = process
        return process

    def _note_ended(self) -> None:
        """Says what became of the processes that have ended.

        Raises:
          WatchnextError: one failed; it was not told to stop.
        """
        for number, process in list(self._processes.items()):
            code = process.poll()
            if code is None:
                continue
            process.join()
            del self._processes[number]
            trial = self._study.trials[number]
            if not code and trial.state.is_finished():
                say(f"Trial {number}: {self._outcome(trial)}")
            elif code not in (130, 143):  # What a training that saved gives.
                raise WatchnextError(
                    f"Trial {number} ended with exit code {code}; its lines "
                    "above say why. Run it again to continue."
                )

    def _outcome(self, trial: Any) -> str:
        if trial.state.name == "COMPLETE":
            epoch = trial.user_attrs[BEST_EPOCH]
            return f"{self._metric} {shown(trial.value)} in epoch {epoch}"
        if DIVERGED in trial.user_attrs:
            return f"diverged. {trial.user_attrs[DIVERGED]}"
        last = max(trial.intermediate_values)
        value = trial.intermediate_values[last]
        return f"ended after epoch {last + 1}, {self._metric} {shown(value)}"

    def _asked(self) -> list[Any]:
        return self._trials("RUNNING", "COMPLETE", "PRUNED")

    def _trials(self, *states: str) -> list[Any]:
        return [t for t in self._study.trials if t.state.name in states]

    def _tell(self, number: int, state: str) -> None:
        from optuna.trial import TrialState

        self._study.tell(number, state=TrialState[state])


def trial_command(
    which: Model, workdir: str, folder: str, number: int, prune: bool
) -> list[str]:
    """What runs a trial: `tuning_trial.run_trial` in a process of its own."""
    config = join(trial_folder(folder, number), _CONFIG)
    return [
        *(sys.executable, "-m", "pipeline.cli", "tune-trial", which),
        *("--workdir", workdir, "--config", config),
        *("--study", folder, "--number", str(number)),
        "--prune" if prune else "--no-prune",
    ]


def _write_config(folder: str, config: Config) -> None:
    values = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_text(join(folder, _CONFIG), values)


@contextlib.contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Keeps a second search out; the lock is gone with this process.

    Raises:
      UsageError: there is one already.
    """
    with open(join(folder, "lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"Another `watchnext tune` works in {folder}; give it time, "
                "or more --jobs."
            ) from error
        yield


def _check_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"`tune` needs a package that is not installed ({error}): run "
            "`pip install 'watchnext[tune]'`."
        ) from error
