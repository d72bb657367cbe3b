"""Checks of flags that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from config.flags.optim import OPTIMIZERS, OptimFlags
from config.flags.train import TrainConfig
from config.parser import FlagSpec, flag_specs, shown, to_dict
from utils.errors import UserError
from utils.files import LONGEST_NAME

NO_UTF8_NAME = "the name is no UTF-8, and the library that writes weights takes no other; choose another"
LONGEST_PATH = 4000  # bytes; the file systems of Linux take 4096, and a run's files go deeper


def collect(problems: list[str], action: Callable[[], Any]) -> Any:
    try:
        return action()
    except UserError as error:
        problems.extend(error.problems)
        return None


def check_combinations(config: Any, problems: list[str]) -> None:
    """Flags that need or exclude others, as their declarations say; a value that is the default asks for nothing."""
    used = used_flags(config)
    found: dict[tuple[str, str], list[str]] = {}
    for spec in flag_specs(type(config)):
        if spec.name not in used:
            continue
        told = shown(spec.name, used[spec.name])
        for condition, reason in spec.needs.items():
            if not _holds(condition, used):
                name, _, wanted = condition.partition("=")
                words = f"-{name} {wanted.replace('|', ' or ')}".rstrip()
                found.setdefault((f"only with {words}", reason), []).append(told)
        for condition, reason in spec.excludes.items():
            if _holds(condition, used):
                names = [part.partition("=")[0] for part in condition.split()]
                words = " ".join(shown(name, used[name]) for name in names)
                found.setdefault((f"not with {words}", reason), []).append(told)
    problems += [f"{', '.join(flags)}: {words}: {reason}" for (words, reason), flags in found.items()]


def has_effect(spec: FlagSpec, config: Any) -> bool:
    """Whether a flag may be given beside those of `config`: what it needs is there, and nothing that it excludes."""
    used = used_flags(config)
    needed = all(_holds(condition, used) for condition in spec.needs)
    return needed and not any(_holds(condition, used) for condition in spec.excludes)


def used_flags(config: Any) -> dict[str, Any]:
    """The flags whose values are not the defaults."""
    values = to_dict(config)
    return {
        spec.name: values[spec.name] for spec in flag_specs(type(config)) if _differs(values[spec.name], spec.default)
    }


def _differs(value: Any, default: Any) -> bool:
    return bool(value != (list(default) if isinstance(default, tuple) else default))


def _holds(condition: str, used: Mapping[str, Any]) -> bool:
    """Whether a condition, as `FlagSpec` describes it, holds for the flags in use."""
    for part in condition.split():
        name, _, wanted = part.partition("=")
        values = used[name] if isinstance(used.get(name), list) else [used.get(name)]
        if name not in used or (wanted and not {*wanted.split("|")} & {*map(str, values)}):
            return False
    return True


def column_problems(name: str, *columns: str) -> list[str]:
    """What is wrong with the columns of a flag, each a name or a number."""
    return [
        f"-{name} {column}: columns are counted from 1; give a number from 1, or a name"
        for column in columns
        if column.isdecimal() and not int(column)
    ]


def check_devices(gpus: int, cpu_processes: int, problems: list[str]) -> None:
    if cpu_processes and gpus > 0:
        problems.append(f"-cpu_processes {cpu_processes} and -gpus {gpus} exclude each other; leave one of them out")
    if cpu_processes > (os.cpu_count() or 1) * 4:
        problems.append(f"-cpu_processes {cpu_processes}: this machine has {os.cpu_count()} processors")


def highest_rate(optim: OptimFlags) -> float | None:
    """The learning rate in force; None for adafactor's own."""
    known = OPTIMIZERS.get(optim.optim)  # of a checkpoint it may be one of a later version
    return known.rate if known and optim.learning_rate is None else optim.learning_rate


def schedule_steps(config: TrainConfig, total_steps: int) -> int:
    """Optimizer steps of the schedule: those of the whole run, `total_steps`, where the flags do not say."""
    steps = config.optim.scheduler_steps
    return config.run.max_steps if steps == -1 else steps or total_steps


def schedule_of(optim: OptimFlags) -> str | None:
    """The schedule in force; None where the optimizer sets its own rate."""
    if highest_rate(optim) is None:
        return None
    return optim.lr_scheduler if OPTIMIZERS[optim.optim].scheduled else "constant"


# ---- paths


def is_too_long(path: Path) -> bool:
    """Whether a file system takes no such name, or none for the files of a run below it."""
    parts = [len(os.fsencode(part)) for part in path.absolute().parts]
    return max(parts) > LONGEST_NAME or sum(parts) + len(parts) > LONGEST_PATH


def same_file(first: str | Path, second: str | Path) -> bool:
    """Whether both are there and one file, under whatever names."""
    return os.path.exists(first) and os.path.exists(second) and os.path.samefile(first, second)


def lies_in(path: str | Path, folder: str | Path) -> bool:
    """Whether `path` is `folder` or lies in it, as a name or, through symbolic links, as a file."""
    parent, name = os.path.split(os.path.abspath(path))
    names = (os.path.realpath(path), os.path.join(os.path.realpath(parent), name))
    return any(Path(name).is_relative_to(os.path.realpath(folder)) for name in names)
