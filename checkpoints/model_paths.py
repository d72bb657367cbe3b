"""What the name of a model or tokenizer stands for: a file, a folder, a run's folder, or a hub name. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from checkpoints.run_folder import CHECKPOINT_FOLDER
from config.checks import collect
from utils.errors import UserError
from utils.files import STATE_NAME
from utils.json_files import read_json

EXPORTS = ("best", "last")  # of a run, the one that stands for it first
_HUB_NAME = re.compile(r"(?=.{1,96}\Z)[a-z0-9][\w.-]*(/[a-z0-9][\w.-]*)?", re.ASCII | re.IGNORECASE)


def model_path(flag: str, name: str) -> str:
    """The file, folder or hub name that `name` stands for; a run's folder stands for its best/, else its last/.

    Raises:
        UserError: a URL, nothing, a run without either, the folder of its checkpoints, or a path where nothing is: the
            hub is never asked for a path.
    """
    if not name.strip():
        raise UserError(f"{flag} {name!r}: a file, a folder or a hub name is expected, not an empty text")
    place = f"{flag} {name}"
    if "://" in name:
        raise UserError(f"{place}: a file, a folder or a hub name is expected, not a URL")
    if os.path.isdir(Path(name) / CHECKPOINT_FOLDER):
        found = _exports_of(name)
        if not found:
            raise UserError(f"{place}: this run has no best/ or last/ yet; give a .ckpt of {CHECKPOINT_FOLDER}/")
        return found[0]
    folder = Path(os.path.abspath(name))
    if folder.name == CHECKPOINT_FOLDER and folder.is_dir():
        raise UserError(f"{place}: the checkpoints of a run; give one of its .ckpt files, or the run: {folder.parent}")
    if not os.path.exists(name) and (problem := _missing(name)):
        raise UserError(f"{place}: {problem}")
    return name


def _exports_of(run: str) -> list[str]:
    """The model folders of a run, the one that stands for it first."""
    return [path for export in EXPORTS if os.path.isdir(path := os.path.join(run, export))]


def _missing(name: str) -> str:
    """Why nothing can be loaded by a name that is not here; empty for what may be a name of the hub."""
    path = Path(name)
    last = path.with_name("last") if path.name == "best" else path
    if path.name == "best" and os.path.isdir(last):
        return f"no such folder: a run has one from its first validation on; its latest state is {last}"
    if name.endswith(".ckpt"):
        return "no such file"
    first, _, rest = name.partition("/")
    if not _HUB_NAME.fullmatch(name) or path.name in EXPORTS or (rest and first == "runs"):
        return "no such folder; a hub name is NAME or OWNER/NAME"
    if rest and os.path.isdir(first):
        return f"no such folder; {first} is a folder here, so that this is no OWNER/NAME of the hub"
    return ""


def may_know_task(name: str, model: str) -> bool:
    """Whether the model may have been trained on a task of that name, as far as that shows quickly: a .ckpt is not
    opened, and of several tasks the one that is meant is found later."""
    try:
        state = read_json(Path(next(iter(_exports_of(model)), model)) / STATE_NAME)
        return bool("tasks" in state or name == state["task"]["name"])
    except (OSError, ValueError, TypeError, KeyError):
        return model.endswith(".ckpt")


def check_model_paths(problems: list[str], values: Mapping[str, str | Sequence[str]]) -> None:
    """Append what `model_path` says against the value of each flag, "" = not given, or its several values."""
    for flag, value in values.items():
        for name in ([value] if value else []) if isinstance(value, str) else value:
            collect(problems, lambda flag=flag, name=name: model_path(flag, name))  # type: ignore[misc]
