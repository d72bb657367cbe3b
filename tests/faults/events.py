"""Faults for a process under test, which imports this where its environment has one of these (`tests.cli.forked`).

Events are counted: every durable write (fsync, replace, link, unlink) and every step of training or validation.

FAULT_AT=N      act at the N-th event of the first process: with SIGKILL on the whole process group, or with
FAULT_SIGNAL=15 this signal on that process alone
FAULT_RANK=1    count and act in the process of this local rank
FAULT_ON=name   count only events of this name
FAULT_SLOW=0.1  seconds that each fsync takes longer, like a slow disk
FAULT_LOG=file  hold the number of events there
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
from typing import Any

STEPS = {"models.seq2seq_module": ("Seq2SeqModule", ("training_step", "validation_step", "on_validation_epoch_end"))}
count = 0


def is_chosen() -> bool:
    """Whether this is the process that counts."""
    return os.environ.get("LOCAL_RANK", "0") == os.environ.get("FAULT_RANK", "0")


def event(name: str) -> None:
    """Count one event, and act when it is the one."""
    global count
    if os.environ.get("FAULT_ON", name) != name or not is_chosen():
        return
    count += 1
    if "FAULT_LOG" in os.environ:
        with open(os.environ["FAULT_LOG"], "w", encoding="utf-8") as file:
            file.write(str(count))
    if count == int(os.environ.get("FAULT_AT", "0")):
        signum = int(os.environ.get("FAULT_SIGNAL", "0"))
        if signum:
            os.kill(os.getpid(), signum)
        else:
            os.killpg(0, signal.SIGKILL)


def counted(name: str, function: Any) -> Any:
    """`function`, with an event before each call."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        event(name)
        if name == "fsync":
            time.sleep(float(os.environ.get("FAULT_SLOW", "0")))
        return function(*arguments, **options)

    return call


class CountSteps(importlib.abc.MetaPathFinder):
    """Counts the steps of our module as soon as it is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if name not in STEPS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module
        class_name, methods = STEPS[name]

        def execute_and_count(module: Any) -> None:
            execute(module)
            owner = getattr(module, class_name)
            for method in methods:
                setattr(owner, method, counted(method, getattr(owner, method)))

        spec.loader.exec_module = execute_and_count  # type: ignore[method-assign]
        return spec


for function_name in ("fsync", "replace", "link", "unlink"):
    setattr(os, function_name, counted(function_name, getattr(os, function_name)))
sys.meta_path.insert(0, CountSteps())
