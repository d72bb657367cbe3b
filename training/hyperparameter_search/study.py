"""What optuna makes of the trials so far: the flags of the next one, and whether one is to be stopped.

A study is made anew from the files of the trials each time: the run folders alone say what was done, so nothing can
differ from them, no database lies on a shared disk, and a process that is killed leaves nothing half told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from config.flags.tune import SearchFlags
from training.hyperparameter_search.space import Dimension, draw
from training.hyperparameter_search.trials import COMPLETE, FAILED, PRUNED, Trial
from utils.libraries import require_package

REDUCTION = 3  # of ASHA: one trial in three goes on
FINISHED_FIRST = 5  # trials, before the median stops any
LEAST_FOR_IMPORTANCE = 10  # trials that ran to their end; the best tenth of them is set against the others
LARGEST_SEED = 2**31


@dataclass(frozen=True)
class Study:
    """The optuna side of a search."""

    space: Sequence[Dimension]
    fixed: Sequence[str]
    flags: SearchFlags
    higher_is_better: bool
    seed: int

    def next_flags(self, number: int, trials: Sequence[Trial]) -> dict[str, str]:
        """The flags of trial `number`: of the same trials before it always the same."""
        study = self._study(number, trials)
        return draw(self.space, self.fixed, study.ask())

    def judged(self, trial: Trial, others: Sequence[Trial]) -> tuple[bool, Mapping[str, float]]:
        """Whether `trial` is to be stopped after its latest validation, and the rungs that it has reached."""
        study = self._study(0, [*others, trial])
        stop = study.pruner.prune(study, study.get_trials()[-1])
        return stop, study.get_trials()[-1].system_attrs

    def importance(self, trials: Sequence[Trial]) -> dict[str, float]:
        """How much each flag decides, as shares of 1; nothing as long as few trials ran to their end."""
        complete = [trial for trial in trials if trial.state == COMPLETE]
        if len(complete) < LEAST_FOR_IMPORTANCE:
            return {}
        optuna = require_package("optuna", "tune.py")
        return dict(optuna.importance.get_param_importances(self._study(0, complete)))

    def _study(self, number: int, trials: Sequence[Trial]) -> Any:
        optuna = require_package("optuna", "tune.py")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruners = {
            "asha": lambda: optuna.pruners.SuccessiveHalvingPruner(self.flags.prune_after, REDUCTION),
            "median": lambda: optuna.pruners.MedianPruner(FINISHED_FIRST, self.flags.prune_after - 1),
            "none": optuna.pruners.NopPruner,
        }
        study = optuna.create_study(
            direction="maximize" if self.higher_is_better else "minimize",
            sampler=optuna.samplers.TPESampler(seed=(self.seed + number) % LARGEST_SEED, constant_liar=True),
            pruner=pruners[self.flags.prune](),
        )
        for trial in trials:
            study.add_trial(self._frozen(optuna, trial))
        return study

    def _frozen(self, optuna: Any, trial: Trial) -> Any:
        states = optuna.trial.TrialState
        state = {COMPLETE: states.COMPLETE, PRUNED: states.PRUNED, FAILED: states.FAIL}.get(trial.state, states.RUNNING)
        taken = [dimension for dimension in self.space if dimension.name in trial.flags]
        return optuna.trial.create_trial(
            state=state,
            value=trial.figure if trial.state in (COMPLETE, PRUNED) else None,
            params={dimension.name: dimension.value(trial.flags[dimension.name]) for dimension in taken},
            distributions={dimension.name: dimension.distribution() for dimension in taken},
            intermediate_values=dict(enumerate(trial.figures, 1)),
            system_attrs=dict(trial.rungs),
        )
