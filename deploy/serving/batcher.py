"""Requests of many clients to one thread that decodes: what waits is decoded together."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate, islice, pairwise
from typing import Any

from datamodules.json_rows import EncodedRequest
from deploy.serving.models import Options, ServedModel
from utils.console import complain
from utils.errors import RunError, UserError


class Busy(Exception):
    """So many rows wait already that a request is not taken."""


@dataclass
class Work:
    """The rows of one request and the future of their answers."""

    model: ServedModel
    rows: Sequence[Mapping[str, Any]]
    options: Options
    answers: Future[list[dict[str, Any]]] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Takes requests from any thread and answers them in one of its own.

    A batch is what waits when the one before it is done, up to `rows` rows. Clients that got their answers together
    ask again together: up to `seconds` after the first request the thread waits for as many as were answered before.
    Requests for the same model and options are decoded together, within the model's limits of tokens.

    Args:
        most: rows that may wait.
        decoded: called with the number of rows of every batch and the seconds that it took.
    """

    def __init__(self, rows: int, most: int, seconds: float, decoded: Callable[[int, float], None]) -> None:
        self.rows, self.most, self.seconds, self.decoded = rows, most, seconds, decoded
        self.waiting_rows = 0
        self._queue: deque[Work] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._expected = rows  # requests
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()

    def submit(self, work: Work) -> Future[list[dict[str, Any]]]:
        """The future of the answers; cancelling it takes a request back that is not being decoded yet.

        Raises:
            Busy: the queue is full, or closed.
        """
        with self._changed:
            if self._closing or (self._queue and self.waiting_rows + len(work.rows) > self.most):
                raise Busy
            self._queue.append(work)
            self.waiting_rows += len(work.rows)
            self._changed.notify()
        return work.answers

    def close(self) -> None:
        """Take no more, answer what was taken, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident:
            self._thread.join()

    def _run(self) -> None:
        while batch := self._taken():
            groups: dict[tuple[str, Options], list[Work]] = {}
            for work in batch:
                if work.answers.set_running_or_notify_cancel():
                    groups.setdefault((work.model.name, work.options), []).append(work)
            for group in groups.values():
                try:
                    self._answer(group)
                except Exception as error:
                    _fail(group, error)

    def _taken(self) -> list[Work]:
        """The next requests, of `rows` rows or of one request that has more; none after the last."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            while self.waiting_rows < self.rows and 0 < len(self._queue) < self._expected and not self._closing:
                left = self._queue[0].since + self.seconds - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            taken: list[Work] = []
            rows = 0
            while self._queue and (not taken or rows + len(self._queue[0].rows) <= self.rows):
                taken.append(self._queue.popleft())
                rows += len(taken[-1].rows)
            self.waiting_rows -= rows
            self._expected = len(taken)
            return taken

    def _answer(self, group: Sequence[Work]) -> None:
        model, options = group[0].model, group[0].options
        encoded = []
        for work, found in zip(group, _encoded(model, group), strict=True):
            if isinstance(found, UserError):
                work.answers.set_exception(found)
            else:
                encoded.append((work, found))
        begun = time.monotonic()
        sources = [window for _, request in encoded for row in request.sources for window in row]
        row_ids = [number for _, request in encoded for number in range(sum(map(len, request.sources)))]
        languages = [code for _, request in encoded for code in request.languages]
        predictions = iter(model.predict(row_ids, sources, languages, options))
        for work, request in encoded:
            rows = zip(request.sources, request.cut, strict=True)
            found_rows = [(list(islice(predictions, len(windows))), cut) for windows, cut in rows]
            work.answers.set_result([model.record(windows, options, cut) for windows, cut in found_rows])
        self.decoded(sum(len(request.sources) for _, request in encoded), time.monotonic() - begun)


def _encoded(model: ServedModel, group: Sequence[Work]) -> list[EncodedRequest | UserError]:
    """Token ids of the rows of each request, or why they cannot be had; in one go where no row is at fault."""
    try:
        found = model.encode([row for work in group for row in work.rows])
    except UserError as error:
        return [error] if len(group) == 1 else [one for work in group for one in _encoded(model, [work])]
    ends = accumulate((len(work.rows) for work in group), initial=0)
    return [
        EncodedRequest(found.sources[start:end], found.cut[start:end], found.languages[start:end])
        for start, end in pairwise(ends)
    ]


def _fail(group: Sequence[Work], error: Exception) -> None:
    """Tell the operator what happened, and the clients that something did."""
    if not isinstance(error, RunError):
        complain(*"".join(traceback.format_exception(error)).splitlines())
    complain(f"error: a batch of {sum(len(work.rows) for work in group)} rows was not decoded: {error}")
    for work in group:
        if not work.answers.done():
            work.answers.set_exception(RunError("the model could not answer"))
