"""Signals as requests: the training loop stops, or saves, at its next optimizer step."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any

PROCESS_BEGAN = time.monotonic()  # this module is among the first that train.py imports
STOPPING = (signal.SIGINT, signal.SIGTERM)


class TrainingStopped(Exception):
    """Raised at a step boundary after the run was saved, on every rank.

    Args:
        signum: the signal that asked for it; 0 = a limit of the flags was reached.
        reason: what to tell the user.
    """

    def __init__(self, signum: int, reason: str) -> None:
        super().__init__(reason)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """128 + signal, as shells have it; 0 for a limit, which is no failure."""
        return 128 + self.signum if self.signum else 0


class StopSignal:
    """Remembers the first SIGINT or SIGTERM, and SIGUSR1; a second SIGINT leaves at once with exit code 130.

    SIGUSR1 asks for a save; with `requeue` it asks to stop as well (SLURM sends it ahead of the time limit).
    """

    def __init__(self, talk: bool, requeue: bool = False) -> None:
        self.received = 0
        self.save_requested = False
        self.talk = talk
        self.requeue = requeue
        self._before: dict[int, Any] = {}

    def watch_saves(self) -> None:
        """Take over SIGUSR1, which would end a process that does not handle it, for good."""
        signal.signal(signal.SIGUSR1, self._handle)

    def install(self) -> None:
        """Take over SIGINT and SIGTERM."""
        for signum in STOPPING:
            self._before.setdefault(signum, signal.signal(signum, self._handle))

    def release(self) -> None:
        """Give SIGINT and SIGTERM back to whoever had them: there is no training step left to stop after."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self.received and signum == signal.SIGINT:
            os._exit(128 + signum)
        if signum == signal.SIGUSR1 and not self.requeue:
            self.save_requested = True
            self._say("SIGUSR1: saving at the next optimizer step, and going on")
            return
        self.received = self.received or signum
        self._say(f"{signal.Signals(signum).name}: saving at the next optimizer step; Ctrl-C leaves at once")

    def _say(self, message: str) -> None:
        if self.talk:
            with suppress(OSError):
                os.write(sys.stdout.fileno(), f"\n{message}\n".encode())
