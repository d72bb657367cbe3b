"""The tasks of a run and where the rows of each come from: -task, or -train_task with several that are mixed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from pathlib import Path
from typing import Any

from config.checks import collect
from config.flags.data import DataFlags, TrainTaskFlags
from datamodules.readers.paths import check_data_paths, parse_data_path
from task_utils import FILES, Task, file_paths, get_task, override_task, task_content
from utils.errors import UserError, raise_if_any
from utils.mapping_files import FILE_SUFFIXES, unknown_keys

FLAG = "-train_task"
MIXTURE_KEYS = ("tasks", "temperature")
ENTRY_KEYS = ("task", "name", "rate", *FILES)


@dataclass(frozen=True)
class Member:
    """A task of a run, the data flags with its own files in place, and its share of the rows, None = none is given."""

    task: Task
    data: DataFlags
    rate: float | None = None

    @property
    def validates(self) -> bool:
        """Whether it has validation rows."""
        data = self.data
        return bool(data.valid_data or data.valid_data_proportions or self.task.valid_proportion)


@dataclass(frozen=True)
class Mixture:
    """The tasks of a run, one or several; `temperature` None = none is given."""

    members: tuple[Member, ...]
    temperature: float | None = None

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the rows of its members mean."""
        return tuple(member.task for member in self.members)

    @property
    def monitors(self) -> tuple[str, ...]:
        """The figures of a validation that -monitor may name: of several tasks means, and `TASK/METRIC`."""
        tasks = [member.task for member in self.members if member.validates] or self.tasks
        figures = dict.fromkeys(name for task in tasks for name in task.monitors)
        own = [f"{task.name}/{name}" for task in tasks for name in task.monitors] if len(self.members) > 1 else []
        return (*figures, *own)

    @property
    def is_drawn(self) -> bool:
        """Whether an epoch draws rows of the tasks at rates: otherwise it takes each row once."""
        rated = self.temperature is not None or any(member.rate is not None for member in self.members)
        return rated and len(self.members) > 1

    def rates(self, rows: Sequence[int]) -> tuple[float, ...]:
        """Each task's share of the rows of an epoch, together 1; () where it takes each row once.

        Args:
            rows: the training rows of every task, whose rates are proportional to rows ** (1 / temperature).
        """
        if not self.is_drawn:
            return ()
        logs, temperature = [log(member.rate or 1.0) for member in self.members], 1.0
        if self.temperature is not None:
            logs, temperature = [log(count) for count in rows], self.temperature
        weights = [exp((value - max(logs)) / temperature) for value in logs]  # none, however large, is beyond a float
        return tuple(weight / sum(weights) for weight in weights)


def mixture_of(flags: TrainTaskFlags, data: DataFlags) -> Mixture:
    """The tasks that the flags name.

    Raises:
        UserError: every problem of the tasks, of the files that describe them, and of the names of their rows' files.
    """
    if not flags.train_task:
        if _is_mixture(flags.task):
            raise UserError(f"-task {flags.task}: mixes several tasks; give it as {FLAG} {flags.task}")
        task = override_task(get_task(flags.task), data)
        return Mixture((Member(task, data if data.train_data else _with_files(data, _files_of(flags.task))),))
    problems: list[str] = []
    if len(flags.train_task) == 1 and _is_mixture(flags.train_task[0]):
        mixture = _read_mixture(flags.train_task[0], data, problems)
    else:
        found = [collect(problems, lambda value=value: _member(value, data)) for value in flags.train_task]  # type: ignore[misc]
        mixture = Mixture(tuple(filter(None, found)))
    _check(mixture.members, problems)
    raise_if_any(problems)
    return replace(mixture, members=_all_rated(mixture.members))


def _member(value: str, data: DataFlags) -> Member:
    """One value of -train_task: NAME[:RATE]."""
    rated = ":" in value and not value.endswith(FILE_SUFFIXES)
    name, _, text = value.rpartition(":") if rated else (value, "", "")
    if _is_mixture(name):
        raise UserError(f"{FLAG} {value}: mixes tasks itself; give it alone and without a rate, or name its tasks")
    task = override_task(get_task(name, FLAG), data)
    rate = _positive(f"{FLAG} {value}: rate", text) if rated else None
    return Member(task, _with_files(data, _files_of(name)), rate)


def _is_mixture(value: str) -> bool:
    """Whether it is a file of tasks; what is wrong with a file is told where it is read."""
    if not value.endswith(FILE_SUFFIXES):
        return False
    return "tasks" in (collect([], lambda: task_content(value, FLAG)) or {})


def _read_mixture(path: str, data: DataFlags, problems: list[str]) -> Mixture:
    """The tasks of a mixture file, without those that `problems` are found in."""
    content, place = task_content(path, FLAG), f"{FLAG} {path}"
    problems += unknown_keys(place, content, MIXTURE_KEYS)
    entries = content["tasks"]
    if not isinstance(entries, list) or not entries:
        problems.append(f"{place}: tasks must be a list of tasks, each with the keys {', '.join(ENTRY_KEYS)}")
        entries = []
    members = []
    for number, entry in enumerate(entries, start=1):
        entry = {"task": entry} if isinstance(entry, str) else entry
        at = f"{place}: task {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("task"), str):
            problems.append(f"{at}: key 'task' is missing; it names a built-in task or a file that describes one")
            continue
        found = len(problems)
        problems += unknown_keys(at, entry, ENTRY_KEYS)
        member = collect(problems, lambda entry=entry, at=at: _entry(entry, at, Path(path).parent, data))  # type: ignore[misc]
        members += [member] if member and len(problems) == found else []
    temperature = None
    if "temperature" in content:
        temperature = collect(problems, lambda: _positive(f"{place}: temperature", content["temperature"]))
        if any(isinstance(entry, dict) and "rate" in entry for entry in entries):
            problems.append(
                f"{place}: temperature {content['temperature']} and rates exclude each other; give one of them"
            )
    return Mixture(tuple(members), temperature)


def _entry(entry: Mapping[str, object], place: str, folder: Path, data: DataFlags) -> Member:
    """One task of a mixture file; its files win over those that the task's own file names."""
    name = str(entry["task"])
    name = str(folder / name) if name.endswith(FILE_SUFFIXES) else name
    if _is_mixture(name):
        raise UserError(f"{place}: {name} is a mixture, and mixtures hold tasks; name its tasks here")
    problems: list[str] = []
    task: Task | None = collect(problems, lambda: override_task(get_task(name, f"{place}:"), data))
    files = collect(problems, lambda: _beside(folder, entry, place)) or {}
    rate = collect(problems, lambda: _positive(f"{place}: rate", entry["rate"])) if "rate" in entry else None
    own_name = entry.get("name", "x")
    if not isinstance(own_name, str) or not own_name.strip():
        problems.append(f"{place}: name must be plain text, not {own_name!r}")
    if task is None or problems:
        raise UserError(*problems)
    task = replace(task, name=str(entry.get("name", task.name)))
    return Member(task, _with_files(data, {**_files_of(name), **files}), rate)


def _positive(place: str, value: object) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UserError(f"{place} {value}: a number above 0 expected")
    return number


def _files_of(name: str) -> dict[str, tuple[str, ...]]:
    """The files of rows that a task file names."""
    if not name.endswith(FILE_SUFFIXES):
        return {}
    return _beside(Path(name).parent, task_content(name), f"-task {name}")


def _beside(folder: Path, content: Mapping[str, object], place: str) -> dict[str, tuple[str, ...]]:
    """The paths of the keys that name files of rows, as seen from `folder`; names of the hub as they are."""

    def placed(value: str) -> str:
        joined = str(folder / value)
        try:
            is_hub = parse_data_path(value).kind == "hub" and not os.path.exists(joined.partition(":")[0])
        except UserError:
            is_hub = False
        return value if is_hub else joined

    return {key: tuple(map(placed, file_paths(key, content[key], place))) for key in FILES if key in content}


def _with_files(data: DataFlags, files: Mapping[str, tuple[str, ...]]) -> DataFlags:
    """The data flags with these files; a share of the training rows is for tasks that name no file."""
    shares = {"valid_data": "valid_data_proportions", "test_data": "test_data_proportions"}
    named = {key: paths for key, paths in files.items() if paths and not getattr(data, key)}
    changes: dict[str, Any] = {**named, **{shares[key]: 0.0 for key in named if key in shares}}
    return replace(data, **changes)


def _check(members: Sequence[Member], problems: list[str]) -> None:
    """What does not go together, and files that are not there."""
    for name, count in Counter(member.task.name for member in members).items():
        if count > 1:
            problems.append(
                f"{FLAG}: {count} tasks are named {name}; give each a name of its own (key name of its file, or of its"
                " entry in a mixture)"
            )
    for member in members:
        name, data = member.task.name, member.data
        for key in FILES:
            wrong = check_data_paths(f"-{key}", getattr(data, key))
            problems += [f"{FLAG} {name}: {problem}" for problem in wrong]
        if not data.train_data and not member.task.hub_dataset:
            problems.append(
                f"{FLAG} {name}: no training rows; name their files by train_data in its file, or in its entry of a"
                " mixture file"
            )
    given = [member.rate for member in members if member.rate is not None]
    if 0 < len(given) < len(members) and sum(given) >= 1:
        without = ", ".join(member.task.name for member in members if member.rate is None)
        problems.append(
            f"{FLAG}: the rates given are {sum(given):g} together and leave nothing for {without}; give every task one"
        )


def _all_rated(members: Sequence[Member]) -> tuple[Member, ...]:
    """With a rate for all of them where some have one: the others share what is left to 1."""
    given = [member.rate for member in members if member.rate is not None]
    if not 0 < len(given) < len(members):
        return tuple(members)
    rest = (1 - sum(given)) / (len(members) - len(given))
    return tuple(replace(member, rate=rest if member.rate is None else member.rate) for member in members)
