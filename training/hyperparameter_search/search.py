"""The loop of a search: take a trial, start or continue its run, watch its validations, stop it or let it end.

    while trials are left:
        take one that is new, or whose process died          (its lock is free)
        train.py -resume_checkpoint auto                     (its run folder says where it goes on)
        after each validation: keep the figure; stop it?     (its JSON file)
    the best flags, and none of them, with other seeds       (the same loop)

Any number of tune.py processes do this in one folder, on whatever machines.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from checkpoints.run_folder import check_unlocked
from training.hyperparameter_search.processes import Process, last_words
from training.hyperparameter_search.space import as_tokens
from training.hyperparameter_search.study import Study
from training.hyperparameter_search.trials import (
    COMPLETE,
    FAILED,
    PRUNED,
    RUNNING,
    Locks,
    Trial,
    read_trial,
    validated_figures,
)
from utils.console import tell
from utils.errors import RunError, UserError
from utils.tables import counted

SECONDS_BETWEEN_LOOKS = 0.5
ASKED_TO_STOP = tuple(128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
MOST_DEATHS = 3  # of a trial's process since its last validation, by signals that tune.py did not send
FAILED_FIRST = 3  # trials, after which a search in which nothing succeeded ends
FULL_DISK = "the disk is full"  # of utils/files.py's write_failure

# (words of the command line, the file for what it prints, number of the place) -> the process
Start = Callable[[Sequence[str], Path, int], Process]


@dataclass
class Running:
    """A trial whose process runs here."""

    trial: Trial
    process: Process


class Search:
    """The trials of one folder.

    Args:
        folder: of the search.
        study: proposes the flags, and says which trials to stop.
        monitor: the figure of a validation that counts.
        jobs: trials at the same time in this process.
        start: starts train.py.
        wait: between two looks at what runs.
    """

    def __init__(
        self,
        folder: Path,
        study: Study,
        monitor: str,
        jobs: int,
        start: Start,
        wait: Callable[[], None] = lambda: time.sleep(SECONDS_BETWEEN_LOOKS),
    ) -> None:
        self.folder, self.study, self.monitor, self.jobs = folder, study, monitor, jobs
        self.start, self.wait = start, wait
        self.locks = Locks(folder)
        self.places: dict[int, Running] = {}
        self._finished: dict[str, Trial] = {}

    # ---- what is to be done

    def trials(self) -> list[Trial]:
        """Those of the search that anybody has begun, in their order."""
        names = (f"trials/{number:04}" for number in range(self.study.flags.trials))
        return [trial for name in names if (trial := self.read(name))]

    def read(self, name: str) -> Trial | None:
        """What is known of a trial; one that is finished is read once."""
        if name in self._finished:
            return self._finished[name]
        trial = read_trial(self.folder, name)
        if trial and trial.state != RUNNING:
            self._finished[name] = trial
        return trial

    def search(self) -> None:
        """Bring all trials to an end, wherever they run.

        Raises:
            RunError: the first trials failed, all of them; or the disk is full.
        """
        self._run_all([f"trials/{number:04}" for number in range(self.study.flags.trials)], self._new_trial)

    def train(self, flags: Mapping[str, Mapping[str, str]]) -> list[Trial]:
        """Train with the given flags, by the name of the run; nothing is stopped early. Returns what came of it."""
        self._run_all([*flags], lambda name: Trial(name, flags[name]))
        return [trial for name in flags if (trial := self.read(name))]

    def _new_trial(self, name: str) -> Trial:
        trials = self.trials()
        failed = [trial for trial in trials if trial.state == FAILED]
        if len(failed) >= FAILED_FIRST and not any(trial.figures for trial in trials):
            raise RunError(
                f"the first {len(failed)} trials failed, the last with: {failed[-1].reason}; what they printed"
                f" stands in {self.folder / failed[-1].name}.log"
            )
        return Trial(name, self.study.next_flags(int(name.rpartition("/")[2]), trials))

    def _claims(self, names: Sequence[str], new: Callable[[str], Trial]) -> Iterator[Trial]:
        """The trials that nobody works on and that are not finished."""
        for name in names:
            known = self.read(name)
            if (known and known.state != RUNNING) or not self.locks.take(name):
                continue
            trial = self.read(name)  # another process may have finished it
            if (trial and trial.state != RUNNING) or self._is_trained(name):
                self.locks.give_back(name)
                continue
            if trial is None:
                trial = new(name).saved(self.folder)
                tell(f"{name}: {' '.join(as_tokens(trial.flags)) or 'no flag beyond the fixed ones'}")
            else:
                tell(f"{name}: goes on after {counted(len(trial.figures), 'validation')}")
            yield trial

    def _is_trained(self, name: str) -> bool:
        """Whether a train.py works in the trial's folder: one that a user started, or one that is dying."""
        try:
            check_unlocked(self.folder / name)
        except UserError:
            return True
        return False

    def _run_all(self, names: Sequence[str], new: Callable[[str], Trial]) -> None:
        left = list(names)
        try:
            while True:
                for place, running in list(self.places.items()):
                    self._look(place, running)
                if len(self.places) < self.jobs:
                    left = [name for name in left if not ((known := self.read(name)) and known.state != RUNNING)]
                    if not left and not self.places:
                        return
                    for trial in self._claims(left, new):
                        self._begin(trial)
                        if len(self.places) >= self.jobs:
                            break
                self.wait()
        except BaseException:
            self._stop_all()
            raise

    # ---- the processes

    def _begin(self, trial: Trial) -> None:
        place = next(place for place in range(self.jobs) if place not in self.places)
        folder = self.folder / trial.name
        tokens = [*self.study.fixed, *as_tokens(trial.flags), f"-save_path={folder}", "-resume_checkpoint=auto"]
        self.places[place] = Running(trial, self.start(tokens, folder.with_name(f"{folder.name}.log"), place))

    def _look(self, place: int, running: Running) -> None:
        code = running.process.poll()
        self._take_figures(running, ended=code is not None)
        if code is None:
            return
        trial = running.trial
        if trial.state == RUNNING:
            trial = self._ended(trial, code)
        del self.places[place]
        self.locks.give_back(trial.name)
        figure = "" if trial.figure is None else f", {self.monitor} {trial.figure:.6g}"
        words = "will go on" if trial.state == RUNNING else trial.state
        tell(f"{trial.name}: {words}{figure}{': ' if trial.reason else ''}{trial.reason}")

    def _take_figures(self, running: Running, ended: bool) -> None:
        """Keep what the validations gave; stop a trial that is not worth going on."""
        trial = running.trial
        figures = validated_figures(self.folder / trial.name, self.monitor, self.study.higher_is_better)
        for count in range(len(trial.figures) + 1, len(figures) + 1):
            if trial.state == PRUNED:
                break
            trial = replace(trial, figures=figures[:count])
            tell(f"{trial.name}: validation {count}, best {self.monitor} so far {figures[count - 1]:.6g}")
            changes: dict[str, Any] = {"deaths": 0}
            if trial.name.startswith("trials/"):
                others = [other for other in self.trials() if other.name != trial.name]
                stop, rungs = self.study.judged(trial, others)
                changes["rungs"] = dict(rungs)
                if stop and not ended:
                    changes |= {"state": PRUNED, "reason": f"stopped after {counted(count, 'validation')}"}
            trial = trial.saved(self.folder, **changes)  # the figure together with what was made of it
            if trial.state == PRUNED:
                running.process.send_signal(signal.SIGTERM)
        running.trial = trial

    def _ended(self, trial: Trial, code: int) -> Trial:
        """The trial whose process ended by itself.

        Raises:
            RunError: the disk was full; the trial goes on later.
        """
        if code == 0 and trial.figures:
            return trial.saved(self.folder, state=COMPLETE)
        if code == 0:
            return trial.saved(self.folder, state=FAILED, reason=f"no validation gave {self.monitor}")
        if code < 0 or code in ASKED_TO_STOP:
            name = signal.Signals(-code if code < 0 else code - 128).name
            if trial.deaths + 1 < MOST_DEATHS:
                return trial.saved(self.folder, deaths=trial.deaths + 1)
            memory = " (out of memory, perhaps)" if code == -signal.SIGKILL else ""
            reason = f"{name} ended it, {MOST_DEATHS} times without a validation in between{memory}"
            return trial.saved(self.folder, state=FAILED, deaths=MOST_DEATHS, reason=reason)
        reason = last_words(self.folder / f"{trial.name}.log")
        if FULL_DISK in reason:
            raise RunError(f"{trial.name}: {reason}; the same command goes on from here")
        return trial.saved(self.folder, state=FAILED, reason=reason)

    def _stop_all(self) -> None:
        """Have every process save and end; Ctrl-C meanwhile leaves at once, and they die with this process."""
        for running in self.places.values():
            if running.process.poll() is None:
                running.process.send_signal(signal.SIGTERM)
        for running in self.places.values():
            running.process.wait()
