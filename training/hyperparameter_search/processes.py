"""A trial's train.py as a process that dies with this one, on the devices that are its share."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from training.process_watch import PR_SET_PDEATHSIG
from utils.errors import EXIT_RUN_ERROR
from utils.files import run_error
from utils.launch import NUMBERS

TRAIN = Path(__file__).resolve().parent.parent.parent / "train.py"
LAUNCHER = ("MASTER_ADDR", "TORCHELASTIC_RUN_ID", *NUMBERS)  # a trial is no rank of the job that tune.py runs in
TAIL = 4096  # bytes of what a trial printed last


class Process(Protocol):
    """What a search needs of a process."""

    def poll(self) -> int | None:
        """The exit code; negative = the signal that ended it; None while it runs."""

    def send_signal(self, sig: int, /) -> None:
        """Ask it to stop."""

    def wait(self) -> int:
        """The exit code, when it has ended."""


def share_of_gpus(slot: int, gpus: Sequence[str]) -> dict[str, str]:
    """The environment in which the trial of place `slot` sees one of `gpus`; nothing where there are none."""
    return {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name.strip() for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def start_training(tokens: Sequence[str], log: Path, more: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start train.py; what it prints is added to `log`. Call it on the main thread: the process dies with its starter.

    Raises:
        RunError: the disk refuses the log.
    """
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before
            os._exit(EXIT_RUN_ERROR)

    with run_error(log), open(log, "ab") as output:
        return subprocess.Popen(
            [sys.executable, str(TRAIN), *tokens],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment, **more},
            preexec_fn=die_with_parent,
        )


def last_words(log: Path) -> str:
    """The last error that a trial told, or its last line."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            lines = file.read().decode("utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "it told nothing"
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it told nothing"])[-1]
