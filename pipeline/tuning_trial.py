"""One trial of a search: a training whose epochs the study is told of.

Runs in a process of its own. What a killed trial has left, its parameters in
the study and its checkpoints in its folder, is gone on with by a second run.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from models.keras_setup import tf
from pipeline.model_training import Model, Trainer, Workers, watched_metric
from pipeline.run import Run
from pipeline.stages import DataStages
from pipeline.training import DivergedError
from schemas.artifacts import join

# A finished trial's attributes.
BEST_EPOCH, DIVERGED = "best_epoch", "diverged"


def open_study(folder: str, *, maximize: bool, prune: bool) -> Any:
    """The study of a folder, new or as it was left; an `optuna.Study`.

    Optuna's journal is a file that is appended to, by this process and those
    of the trials.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Of features that we use and that are still called experimental.
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    pruners = optuna.pruners
    return optuna.create_study(
        study_name="trials",
        storage=optuna.storages.JournalStorage(
            JournalFileBackend(join(folder, "journal.log"))
        ),
        direction="maximize" if maximize else "minimize",
        # Beneath the median of the others' best values up to that epoch, once
        # there are five of them.
        pruner=pruners.MedianPruner() if prune else pruners.NopPruner(),
        load_if_exists=True,
    )


def trial_folder(folder: str, number: int) -> str:
    """Where a trial has its configuration, checkpoints and logs."""
    return join(folder, f"trial-{number:04d}")


def run_trial(
    run: Run, which: Model, folder: str, number: int, *, prune: bool
) -> None:
    """Trains what the trial's configuration says, and tells the study.

    Args:
      run: of the trial's configuration.
      which: the model.
      folder: of the study.
      number: of the trial, which the study has asked for.
      prune: whether to end it where it is worse than the others were.

    Raises:
      WatchnextError: whatever ends a training; the trial is then not ended,
        but for one that diverges, which is a result.
    """
    import optuna

    metric, maximize = watched_metric(getattr(run.config, which), which)
    study = open_study(folder, maximize=maximize, prune=prune)
    trial = optuna.Trial(study, study.trials[number]._trial_id)
    own = trial_folder(folder, number)
    data = DataStages(run)
    examples = (
        data.ranking_examples()
        if which == "ranking"
        else data.retrieval_examples()
    )

    def tell(history: Sequence[dict[str, float]]) -> None:
        # A killed one may have been saved and not told, or both.
        told = study.trials[number].intermediate_values
        for epoch, values in enumerate(history):
            if epoch not in told:
                trial.report(values[metric], epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    trainer = Trainer(run, data, Workers(), scratch=own)
    try:
        result = trainer.train(which, examples, after_epoch=tell)
    except optuna.TrialPruned:
        study.tell(number, state=optuna.trial.TrialState.PRUNED)
    except DivergedError as error:
        # No value is worse to the sampler, which then looks elsewhere.
        trial.set_user_attr(DIVERGED, str(error))
        study.tell(number, state=optuna.trial.TrialState.PRUNED)
    else:
        best = result.history[result.best_epoch - 1]
        trial.set_user_attr(BEST_EPOCH, result.best_epoch)
        study.tell(number, best[metric])
    checkpoints = join(own, "checkpoints")
    if tf.io.gfile.exists(checkpoints):
        tf.io.gfile.rmtree(checkpoints)
