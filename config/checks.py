"""Checks of flags that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from config.flags import ADAM_RATE, OptimFlags
from utils.errors import UserError


def collect(problems: list[str], action: Callable[[], Any]) -> Any:
    try:
        return action()
    except UserError as error:
        problems.extend(error.problems)
        return None


def check_devices(gpus: int, cpu_processes: int, problems: list[str]) -> None:
    if cpu_processes and gpus > 0:
        problems.append(f"-cpu_processes {cpu_processes} and -gpus {gpus} exclude each other; leave one of them out")
    if cpu_processes > (os.cpu_count() or 1) * 4:
        problems.append(f"-cpu_processes {cpu_processes}: this machine has {os.cpu_count()} processors")


def highest_rate(optim: OptimFlags) -> float | None:
    """The learning rate in force; None for adafactor's own."""
    return ADAM_RATE if optim.learning_rate is None and optim.optim == "adam" else optim.learning_rate
