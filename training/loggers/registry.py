"""The loggers by their names in -logger, and those of a run as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from checkpoints.run_folder import TRACKERS_FOLDER
from training.loggers.base import RunLogger, Samples, Start
from training.loggers.csv_table import CsvTable
from training.loggers.mlflow import Mlflow
from training.loggers.tensorboard import TensorBoard
from training.loggers.tracker import Tracker
from training.loggers.trackio import Trackio
from training.loggers.wandb import Wandb
from utils.console import tell
from utils.errors import RunError
from utils.files import run_error, write_json
from utils.json_files import read_json

TENSORBOARD = "tensorboard"
TRACKERS: dict[str, Callable[[], RunLogger]] = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio, "csv": CsvTable}
RUNS_NAME = "runs.json"  # under which id each tracker has this run, up to which step, and whether it has ended


class Loggers:
    """What -logger names. Shows nothing before `start`, which only the first process calls.

    What the disk refuses TensorBoard ends the run (`RunError`): it cannot be saved there either. Whatever a tracker
    raises ends that tracker alone.

    Args:
        names: values of -logger.
        folder: of the run.
        settings: the flags, as hyper-parameters.
    """

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        self.names = names
        self.folder = folder
        self.settings = settings
        self.tensorboard: TensorBoard | None = None
        self.trackers: list[Tracker] = []
        self._runs: dict[str, dict[str, Any]] = {}

    def start(self, first_step: int, lines: Sequence[Mapping[str, Any]], dropped: Iterable[Mapping[str, Any]]) -> None:
        """Begin, or go on with the run of an earlier process.

        Args:
            first_step: whose figures come again, as all after it.
            lines: of metrics.jsonl, those that stay.
            dropped: those that were taken out, since they come again.
        """
        if TENSORBOARD in self.names:
            with run_error(self.folder):
                self.tensorboard = TensorBoard()
                self.tensorboard.start(Start(self.folder, "", self.settings, first_step, lines))
        named = [name for name in self.names if name in TRACKERS]
        if not named:
            return
        with run_error(self._runs_path):
            self._runs_path.parent.mkdir(exist_ok=True)
        runs = self._runs = _read_runs(self._runs_path)
        for run in runs.values():
            for phase, step in ((str(line.get("phase")), line["step"]) for line in dropped):
                run["has"][phase] = max(step, run["has"].get(phase, -1))
        for name in named:
            run = runs.get(name, {"id": "", "has": {}})
            run["ended"] = False
            tracker = Tracker(name, TRACKERS[name](), run["has"])
            run_id = tracker.start(Start(self.folder, run["id"], self.settings, first_step, lines))
            runs.update({name: {**run, "id": run_id}} if run_id else {})
            self.trackers.append(tracker)
        if runs:
            write_json(self._runs_path, runs)

    @property
    def _runs_path(self) -> Path:
        return self.folder / TRACKERS_FOLDER / RUNS_NAME

    def left_open(self) -> Loggers:
        """Those of the trackers that a process of this run began and none ended."""
        runs = _read_runs(self._runs_path)
        return Loggers(
            [name for name in self.names if name in runs and not runs[name]["ended"]], self.folder, self.settings
        )

    def scalars(self, step: int, phase: str, figures: Mapping[str, float]) -> None:
        """Show figures of `phase`, "train" or "valid"."""
        if self.tensorboard is not None:
            with run_error(self.folder):
                self.tensorboard.scalars(step, phase, figures)
        for tracker in self.trackers:
            tracker.scalars(step, phase, figures)

    def samples(self, step: int, name: str, samples: Samples) -> None:
        """Show some predictions of a validation."""
        if self.tensorboard is not None:
            with run_error(self.folder):
                self.tensorboard.samples(step, name, samples)
        for tracker in self.trackers:
            tracker.samples(step, name, samples)

    def flush(self) -> None:
        """Bring TensorBoard's curves to the disk; its thread tells here what the disk refused it."""
        if self.tensorboard is not None:
            with run_error(self.folder):
                self.tensorboard.flush()

    def close_tensorboard(self) -> None:
        """Bring the rest of its curves to the disk."""
        if self.tensorboard is not None:
            with run_error(self.folder):
                self.tensorboard.close(succeeded=True)
            self.tensorboard = None

    def close_trackers(self, succeeded: bool, files: Iterable[Path] = ()) -> None:
        """Show some files of the run in the trackers, those that are there, and end them."""
        paths = [path for path in files if path.is_file()]
        for tracker in self.trackers:
            for path in paths:
                tracker.file(path)
            tracker.close(succeeded)
            if tracker.name in self._runs:
                self._runs[tracker.name]["ended"] = succeeded and not tracker.failure
        self.trackers = []
        if self._runs and succeeded:
            with suppress(RunError):  # a run that is complete stays so; they are ended once more
                write_json(self._runs_path, self._runs)


def _read_runs(path: Path) -> dict[str, dict[str, Any]]:
    try:
        runs = read_json(path)
        return {
            name: {"id": str(run["id"]), "has": dict(run["has"]), "ended": run.get("ended") is True}
            for name, run in runs.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        tell(f"{path} could not be read ({error}): the trackers begin new runs")
        return {}
