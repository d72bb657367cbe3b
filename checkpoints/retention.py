"""Which checkpoints of a run are kept: the best validations, the latest steps, the latest hours. The others go."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.run_folder import CHECKPOINT_FOLDER, LAST_NAME, step_of
from utils.console import tell
from utils.files import LONGEST_NAME, link_path, remove_path

if TYPE_CHECKING:  # which asks here what is kept
    from checkpoints.saved_run import SavedRun

KINDS = ("best", "step", "hour")
KEEP_BEST = 5  # checkpoints of validations
OUR_NAME = re.compile(r"epoch[0-9]+-global_step[0-9]+(-val_loss-?([0-9.]+|inf|nan)|-by-hour)?(_endofepoch)?\.ckpt")


@dataclass(frozen=True)
class DueCheckpoint:
    """A name under which the present state is to be saved."""

    kind: str  # best: a validation or the end of an epoch; step: -save_every; hour: -save_every_hour
    name: str
    order: float  # within its kind; what is higher is kept longer


class KeptCheckpoints:
    """The checkpoints that count, of each kind, from the first that would go.

    Args:
        folder: where they lie.
        save_last_k: how many are kept of the kinds step and hour.
    """

    def __init__(self, folder: Path, save_last_k: int) -> None:
        self.folder = folder
        self.save_last_k = save_last_k
        self.entries: dict[str, list[tuple[float, str]]] = {kind: [] for kind in KINDS}

    def add(self, due: Sequence[DueCheckpoint], best_step: int) -> list[Path]:
        """Count `due` in; returns the files that do not count any more, perhaps one of `due` among them.

        The checkpoint of `best_step` always counts; of equal ones the earlier does, since it is the one called best.
        """
        gone: list[Path] = []
        for new in due:
            entries = [entry for entry in self.entries[new.kind] if entry[1] != new.name] + [(new.order, new.name)]
            if new.kind == "best":
                entries.sort(key=lambda entry: (_step(entry) == best_step, entry[0], -_step(entry)))
            else:
                entries.sort(key=lambda entry: entry[0])
            keep = KEEP_BEST if new.kind == "best" else self.save_last_k
            gone += [self.folder / name for _, name in entries[:-keep]]
            self.entries[new.kind] = entries[-keep:]
        return gone

    def state(self) -> dict[str, list[list[Any]]]:
        """For a checkpoint."""
        return {kind: [list(entry) for entry in entries] for kind, entries in self.entries.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Count what `state`, which has no `kept_problem`, counted and what still lies in the folder."""
        self.entries = {
            kind: [(order, name) for order, name in entries if (self.folder / name).exists()]
            for kind, entries in state.items()
        }


def kept_problem(kept: Any) -> str:
    """Why the mapping `kept`, of a checkpoint, is not what `KeptCheckpoints.state` gave; empty when it may be.

    What it names is deleted one day, so that only the run's own names are taken: never a path.
    """
    if set(kept) != set(KINDS):
        return f"it counts {', '.join(map(repr, kept)) or 'nothing'}, not {', '.join(KINDS)}"
    for kind, entries in kept.items():
        for entry in entries if isinstance(entries, list) else [entries]:
            if not _is_entry(entry):
                return f"it counts {repr(entry)[:100]} as {kind}, which is no checkpoint of a run"
    return ""


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, list) or [type(part) for part in entry] not in ([float, str], [int, str]):
        return False
    order, name = entry
    return order == order and len(name) <= LONGEST_NAME and OUR_NAME.fullmatch(name) is not None  # NaN has no order


def _step(entry: tuple[float, str]) -> int:
    return step_of(Path(entry[1]))


def continue_from(folder: Path, resumed: SavedRun) -> None:
    """Make `resumed`, a checkpoint of the run in `folder`, its `last.ckpt`, and remove what its course does not have.

    Raises:
        RunError: the disk refused.
    """
    last = folder / CHECKPOINT_FOLDER / LAST_NAME
    if not last.exists() or not resumed.path.samefile(last):
        link_path(resumed.path, last)
    remove_uncounted(folder, resumed, later=True)


def remove_uncounted(folder: Path, resumed: SavedRun, later: bool) -> None:
    """Remove the checkpoints that a run saved in `folder` and that its checkpoint `resumed` does not count.

    A kill between a save and the removal of an older checkpoint leaves them, and so does a run that goes on from an
    earlier step. `last.ckpt`, `resumed` itself, and files with names of their own stay.

    Args:
        later: also those of later steps than `resumed`, and say which.

    Raises:
        RunError: the disk refused.
    """
    step = resumed.global_step
    counted = {name for entries in resumed.scores.kept.values() for _, name in entries}
    ours = sorted(path for path in (folder / CHECKPOINT_FOLDER).glob("*.ckpt") if OUR_NAME.fullmatch(path.name))
    for path in ours:
        resumed_itself = os.path.realpath(path) == os.path.realpath(resumed.path)
        if path.name in counted or resumed_itself or (step_of(path) > step and not later):
            continue
        if step_of(path) > step:
            tell(f"the run goes on from optimizer step {step}: {path}, of a later step, is removed")
        remove_path(path)
