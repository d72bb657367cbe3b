"""A logger that cannot stop or slow a run: it works in a thread of its own, and is left out from its first failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Thread
from typing import Any

from training.loggers.base import RunLogger, Samples, Start, figures_of
from utils.console import tell

SECONDS = 30.0  # that a run waits for the start, and at its end for the rest
MOST_WAITING = 10_000  # calls that a tracker has not answered


class Tracker:
    """Hands calls to a `RunLogger` in their order, without waiting for any but the first and the last.

    A service takes nothing back, so that of what comes again after a resume it keeps what it has.

    Args:
        name: a value of -logger.
        has: phase -> the latest optimizer step that an earlier process logged.
    """

    def __init__(self, name: str, logger: RunLogger, has: Mapping[str, int]) -> None:
        self.name = name
        self.logger = logger
        self.has = has
        self.failure = ""
        self._told = False
        self._calls: Queue[Callable[[], Any] | None] = Queue(MOST_WAITING)
        self._answers: Queue[str] = Queue()
        self._thread = Thread(target=self._work, name=f"-logger {name}", daemon=True)

    def start(self, start: Start) -> str:
        """Begin, or go on; returns the tracker's id of the run, empty where it has none or fails."""
        self._thread.start()
        self._call(lambda: self._answers.put(self.logger.start(start)))
        try:
            run_id = self._answers.get(timeout=SECONDS)
        except Empty:
            run_id, self.failure = "", f"no answer in {SECONDS:g} seconds"
        self._tell_failure()
        if not start.run_id:
            self._call(partial(replay, self.logger, start.lines))
        return run_id

    def scalars(self, step: int, phase: str, figures: Mapping[str, float]) -> None:
        if step > self.has.get(phase, -1):
            self._call(partial(self.logger.scalars, step, phase, dict(figures)))

    def samples(self, step: int, name: str, samples: Samples) -> None:
        if step > self.has.get("valid", -1):
            self._call(partial(self.logger.samples, step, name, list(samples)))

    def file(self, path: Path) -> None:
        self._call(partial(self.logger.file, path))

    def close(self, succeeded: bool) -> None:
        """End it, and wait for that, but not for ever."""
        self._call(partial(self.logger.close, succeeded))
        with suppress(Full):
            self._calls.put_nowait(None)
        self._thread.join(0.0 if self.failure else SECONDS)
        if self._thread.is_alive() and not self.failure:
            self.failure = f"no answer in {SECONDS:g} seconds"
        self._tell_failure()

    def _call(self, call: Callable[[], Any]) -> None:
        self._tell_failure()
        if self.failure:
            return
        try:
            self._calls.put_nowait(call)
        except Full:
            self.failure = f"{MOST_WAITING:,} calls without an answer"

    def _tell_failure(self) -> None:
        """By the thread that trains: between its lines, not in one."""
        if self.failure and not self._told:
            self._told = True
            tell(f"-logger {self.name}: {self.failure}; the run goes on without it")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None and not self.failure:
            try:
                call()
            except BaseException as error:  # of any kind, SystemExit too: it ends the tracker, not the run
                self.failure = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                self._answers.put("")  # for who waits for the start


def replay(logger: RunLogger, lines: Sequence[Mapping[str, Any]]) -> None:
    """Show what was trained before the logger began."""
    for line in lines:
        logger.scalars(line["step"], str(line.get("phase")), figures_of(line))
