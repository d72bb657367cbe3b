"""Signals as requests: the training loop stops, or saves, at its next optimizer step."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from config.flags.train import TrainConfig
from config.parser import flag_specs, without_flags
from utils.console import STANDARD_STREAMS, give_up_if_full, say
from utils.errors import Terminated
from utils.escapes import shell_command
from utils.launch import is_first_process, requeue, started_by_launcher

PROCESS_BEGAN = time.monotonic()  # this module is among the first that train.py imports
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Request:
    """What the ranks agreed on after an optimizer step, or between two batches of a validation."""

    signum: int = 0  # to stop on
    out_of_time: bool = False  # -max_hours
    timed_save: bool = False
    save: bool = False  # SIGUSR1
    failed: bool = False  # the latest save

    def __or__(self, other: Request) -> Request:
        return Request(
            self.signum or other.signum,
            self.out_of_time or other.out_of_time,
            self.timed_save or other.timed_save,
            self.save or other.save,
            self.failed or other.failed,
        )


class TrainingStopped(Exception):
    """Raised at a step boundary after the run was saved, on every rank; and when the test rows are not scored.

    Args:
        words: what was stopped, and where.
        signum: the signal that asked for it; 0 = a limit of the flags was reached.
        limit: that limit, flag and value.
    """

    def __init__(self, words: str, signum: int, limit: str = "") -> None:
        super().__init__(f"{limit} is reached: {words}" if limit else words)
        self.signum = signum
        self.limit = limit

    @property
    def exit_code(self) -> int:
        """128 + signal, as shells have it; 0 for a limit, which is no failure."""
        return 128 + self.signum if self.signum else 0

    @property
    def steps_are_done(self) -> bool:
        """Whether -max_steps was the limit: the same command line again would train no step."""
        return self.limit.startswith("-max_steps ")

    @property
    def out_of_time(self) -> bool:
        """Whether the time was the reason, the job's (SIGUSR1) or -max_hours: more of it trains on."""
        return self.signum == signal.SIGUSR1 or self.limit.startswith("-max_hours ")


def after_stop(stopped: TrainingStopped, config: TrainConfig, argv: list[str]) -> int:
    """Say how to go on, or put the job into the queue again; returns the exit code."""
    if not is_first_process():
        return 0
    folder = Path(config.run.save_path)
    if (folder / "last").exists() and not (folder / "best").exists():
        say(f"no validation was reached, so there is no best/ yet; -model {folder / 'last'} predicts with this state")
    command = resume_command(argv, config.run.seed, stopped.steps_are_done)
    if started_by_launcher():
        say(f"{stopped}; started as before with these flags it goes on:", "  " + shell_command(command[2:]))
    else:
        say(f"{stopped}; this resumes it:", "  " + shell_command(command))
    if config.run.requeue and stopped.out_of_time:
        say(requeue())
    return stopped.exit_code


def resume_command(argv: list[str], seed: int, steps_are_done: bool = False) -> list[str]:
    """The words of the command line that continues this run.

    Args:
        seed: the one in force where -seed below 0 drew one.
        steps_are_done: switches off -max_steps, which would end the run at once, also that of config.json.
    """
    once = [spec.name for spec in flag_specs(TrainConfig) if spec.resume == "once"]
    kept = without_flags(argv, [*once, "seed", *(["max_steps"] if steps_are_done else [])])
    more = ["-max_steps", "0"] if steps_are_done else []
    return ["python", sys.argv[0], *kept, *more, "-seed", str(seed), "-resume_checkpoint", "last"]


class StopSignal:
    """Remembers the first SIGINT, SIGTERM or SIGHUP, and SIGUSR1; a second SIGINT leaves at once with exit code 130.

    SIGUSR1 asks for a save; with `requeue` it asks to stop as well (SLURM sends it ahead of the time limit).
    """

    def __init__(self, talk: bool, requeue: bool = False) -> None:
        self.received = 0
        self.save_requested = False
        self.talk = talk
        self.requeue = requeue
        self._process = os.getpid()
        self._unwinds = False
        self._before: dict[int, Any] = {}

    def watch_saves(self) -> None:
        """Take over SIGUSR1, which would end a process that does not handle it."""
        signal.signal(signal.SIGUSR1, self._handle)

    def install(self) -> None:
        """Take over SIGINT, SIGTERM and SIGHUP; what nohup has switched off stays so."""
        for signum in STOPPING:
            if signal.getsignal(signum) == signal.SIG_IGN:
                continue
            self._before.setdefault(signum, signal.signal(signum, self._handle))

    def release(self) -> None:
        """Give SIGINT, SIGTERM and SIGHUP back to whoever had them, and ignore SIGUSR1: no training step is left."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    @contextmanager
    def ending_at_once(self, words: str) -> Iterator[None]:
        """Within it a signal that stops has no step to wait for.

        Raises:
            TrainingStopped: with `words`; also for a signal that came earlier.
        """
        before: dict[int, Any] = {}
        self._unwinds = True
        try:
            for signum in (*STOPPING, signal.SIGUSR1) if self.requeue else STOPPING:
                before[signum] = signal.signal(signum, self._unwind)
            if self.received:
                raise Terminated
            yield
        except Terminated:
            raise TrainingStopped(words, self.received) from None
        finally:
            self._unwinds = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def _unwind(self, signum: int, _: FrameType | None) -> None:
        if self.received and signum == signal.SIGINT:
            os._exit(128 + signum)
        if self._unwinds and not self.received:
            self.received = signum
            raise Terminated

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader process inherits the handler; it lives as long as its parent
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return
        if self.received and signum == signal.SIGINT:
            os._exit(128 + signum)
        if signum == signal.SIGUSR1 and not self.requeue:
            self.save_requested = True
            self._say("SIGUSR1: saving at the next optimizer step, and going on")
            return
        self.received = self.received or signum
        give_up_if_full(*STANDARD_STREAMS)
        self._say(f"{signal.Signals(signum).name}: saving at the next optimizer step; Ctrl-C leaves at once")

    def _say(self, message: str) -> None:
        if self.talk:
            with suppress(OSError):
                os.write(sys.stdout.fileno(), f"\n{message}\n".encode())
