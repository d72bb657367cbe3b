"""Ctrl-C and SIGTERM as a request: the training loop stops at its next optimizer step."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


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

    def install(self) -> None:
        """Take over SIGINT and SIGTERM of this process."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._handle)

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self.received and signum == signal.SIGINT:
            os._exit(128 + signum)
        self.received = self.received or signum
        if self.talk:
            name = signal.Signals(signum).name
            os.write(
                sys.stdout.fileno(), f"\n{name}: saving after this optimizer step; again to leave at once\n".encode()
            )
