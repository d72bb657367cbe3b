"""The files of a search: of each trial one JSON file beside its run folder, and a lock that its process holds.

search.json         what all trials of the search share
trials/0007.json    its flags, its state, and what the validations gave
trials/0007/        the run folder of train.py
trials/0007.log     what train.py printed
trials/0007.lock    locked by the tune.py that works on it; the kernel gives it back when that one dies
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints.run_folder import STEP_LOG
from training.hyperparameter_search.space import Dimension
from utils.console import tell
from utils.errors import UserError
from utils.files import clean_temporary, run_error, try_lock, write_json
from utils.json_files import read_object

SETTINGS = "search.json"
RUNNING, COMPLETE, PRUNED, FAILED = "running", "complete", "pruned", "failed"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial, or a refit.

    Args:
        name: of its run folder below the search's, `trials/0007`.
        flags: beyond the fixed ones, as they are written on the command line.
        figures: the best of the monitored figure after each validation.
        rungs: of ASHA, that it has reached, with the figure there.
        reason: why it failed, or after which validation it was stopped.
        deaths: how often a signal ended its process since its last validation.
    """

    name: str
    flags: Mapping[str, str]
    state: str = RUNNING
    figures: tuple[float, ...] = ()
    rungs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    reason: str = ""
    deaths: int = 0

    @property
    def figure(self) -> float | None:
        """The best that it came to."""
        return self.figures[-1] if self.figures else None

    def saved(self, folder: Path, **changes: Any) -> Trial:
        """This trial with `changes`, written durably. Raises `RunError` when the disk refuses."""
        changed = dataclasses.replace(self, **changes)
        write_json(folder / f"{changed.name}.json", dataclasses.asdict(changed))
        return changed


def read_trial(folder: Path, name: str) -> Trial | None:
    """What is known of a trial; None when nobody has begun it.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    content = read_object(path, f"-save_path {folder}")
    try:
        return Trial(**{**content, "figures": tuple(map(float, content["figures"]))})
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"-save_path {folder}: {path} is damaged ({error}); it is not of a trial") from None


def keep_settings(folder: Path, space: Sequence[Dimension], flags: Mapping[str, Any]) -> None:
    """Write what all trials of the search share, or compare it with what an earlier command wrote.

    Raises:
        UserError: the folder holds another search.
        RunError: the disk refuses.
    """
    path = folder / SETTINGS
    settings = {"space": {one.name: one.settings for one in space}, "flags": dict(flags)}
    if not path.exists():
        with run_error(path):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
        return
    saved = read_object(path, f"-save_path {folder}")
    changed = [
        f"{name} ({part})"
        for part, now in settings.items()
        for name in sorted({*now, *saved.get(part, {})})
        if now.get(name) != saved.get(part, {}).get(name)
    ]
    if changed:
        raise UserError(
            f"-save_path {folder}: holds a search with other settings: {', '.join(changed)}, see {path}; trials that"
            " differ in more than the search cannot be compared, so choose another folder"
        )


class Locks:
    """The trials that this process works on: no other has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: dict[str, int] = {}

    def take(self, name: str) -> bool:
        """Whether the trial is now this process's, and was nobody's before."""
        if name in self.held:
            return False
        path = self.folder / f"{name}.lock"
        with run_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        locked = try_lock(descriptor)
        if locked is False:
            os.close(descriptor)
            return False
        if locked is None and not self.held:
            tell(
                f"-save_path {self.folder}: this file system has no locks; see to it that one tune.py alone works there"
            )
        clean_temporary(self.folder / f"{name}.json")
        self.held[name] = descriptor
        return True

    def give_back(self, name: str) -> None:
        """Leave the trial to others."""
        os.close(self.held.pop(name))


def validated_figures(folder: Path, monitor: str, higher_is_better: bool) -> tuple[float, ...]:
    """The best of `monitor` so far after each validation of the run in `folder` that gave it."""
    try:
        content = (folder / STEP_LOG).read_bytes()
    except FileNotFoundError:
        return ()
    best: list[float] = []
    for line in content.split(b"\n")[:-1]:  # the last may be half written
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        figure = entry.get(monitor) if isinstance(entry, dict) and entry.get("phase") == "valid" else None
        if isinstance(figure, int | float) and math.isfinite(figure):
            pick = max if higher_is_better else min
            best.append(pick([float(figure), *best[-1:]]))
    return tuple(best)
