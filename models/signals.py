"""Ctrl-C and SIGTERM as a request: the training loop stops at its next optimizer step."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any


class TrainingStopped(Exception):
    """Raised at a step boundary after the run was saved, on every rank; `signum` asked for it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignal:
    """Remembers the first SIGINT or SIGTERM; a second SIGINT leaves at once with exit code 130."""

    def __init__(self, talk: bool) -> None:
        self.received = 0
        self.talk = talk
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take over SIGINT and SIGTERM of this process."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before.setdefault(signum, signal.signal(signum, self._handle))

    def release(self) -> None:
        """Give the signals back to whoever had them: there is no training step left to stop after."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self.received and signum == signal.SIGINT:
            os._exit(128 + signum)
        self.received = self.received or signum
        if self.talk:
            name = signal.Signals(signum).name
            message = f"\n{name}: saving at the next optimizer step; Ctrl-C leaves at once\n"
            with suppress(OSError):
                os.write(sys.stdout.fileno(), message.encode())
