"""Predictions for encoded rows, exactly one each, on one or several processes; what is finished is never done again.

chunks of rows, longest first -> each process claims one after the other -> a part file each -> read by row number
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from config.user_code import import_inherited
from datamodules.encoding.store import EncodedSplit
from generation.batch_limits import BatchLimits
from generation.engines.base import BatchPredictor, Prediction
from generation.incremental.compiled import compilations
from prediction.parts import Chunks, Claims, Parts, finished_chunks, part_path, write_part
from utils.console import tell
from utils.devices import Devices, is_out_of_memory, use_arithmetic, use_threads
from utils.errors import EXIT_RUN_ERROR, EXIT_USER_ERROR, RunError, UserError
from utils.libraries import quiet_libraries
from utils.progress import ProgressLine
from utils.tables import counted

REPORT_SECONDS = 5.0

Engine = Callable[[torch.device], BatchPredictor]  # called once in each process: picklable where there are several


@dataclass(frozen=True)
class PredictionJob:
    """What is predicted, by which processes, and where the part files go."""

    split: EncodedSplit
    chunks: Chunks
    devices: Devices
    folder: Path


def predict(engine: Engine, split: EncodedSplit, limits: BatchLimits, devices: Devices, folder: Path) -> Parts:
    """A prediction for each row of `split`, by row number; the parts that are in `folder` already are kept.

    How many rows were predicted, and how fast, is told.

    Raises:
        UserError: the model cannot be loaded; in a process of its own as in this one.
        RunError: a process cannot go on, or died. What was finished stays in `folder`.
    """
    began = time.monotonic()
    job = PredictionJob(split, Chunks.of(split.source_lengths, limits), devices, folder)
    finished, torn = finished_chunks(folder, job.chunks)
    for path in torn:
        tell(f"{path} was torn and is made again")
    if finished:
        done = job.chunks.count(finished)
        tell(f"{done:,} of {len(split):,} {split.unit}s were finished before, in {folder}")
    if len(finished) < len(job.chunks):
        if devices.count == 1:
            _work(0, engine, job)
        else:
            _work_together(engine, job)
    rows, seconds = len(split) - job.chunks.count(finished), time.monotonic() - began
    speed = f"{rows / max(seconds, 1e-9):,.1f} {split.unit}s/s"
    tell(f"{counted(rows, split.unit)} predicted in {seconds:.1f} s, {speed}")
    return Parts(folder, job.chunks)


def finished_rows(split: EncodedSplit, limits: BatchLimits, folder: Path) -> int:
    """How many rows of a prediction that was stopped are finished."""
    chunks = Chunks.of(split.source_lengths, limits)
    return chunks.count(finished_chunks(folder, chunks)[0])


def _work_together(engine: Engine, job: PredictionJob) -> None:
    """Run one process a device. A problem that one of them tells ends all; of one that dies the others do the work."""
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as problems:
        arguments = [(rank, engine, job, problems) for rank in range(job.devices.count)]
        workers = [context.Process(target=_work_in_process, args=given) for given in arguments]
        resource_tracker.ensure_running()  # started later, it would unblock the signal again
        # They inherit the block: Ctrl-C is for the parent, which ends them. One that comes meanwhile waits, not lost.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            try:
                for worker in workers:
                    worker.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            codes: list[int | None] = [None]
            while None in codes:
                for worker in workers:
                    worker.join(0.2)
                codes = [worker.exitcode for worker in workers]
                for rank in range(len(codes)):
                    _raise_problem(rank, problems)
        finally:
            for worker in workers:
                if worker.is_alive():
                    worker.terminate()
                if worker.pid is not None:
                    worker.join()
        for rank, code in enumerate(codes):
            if code:
                raise RunError(_death(rank, code, len(codes)))


def _death(rank: int, code: int, count: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"prediction process {rank} of {count} was ended by {name} (out of memory, perhaps)"
    return f"prediction process {rank} of {count} ended with code {code}"


def _work_in_process(rank: int, engine: Engine, job: PredictionJob, problems: str) -> None:
    """`_work` in a process of its own: what it has to tell goes to a file (`_raise_problem`)."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        import_inherited()
        _work(rank, engine, job)
    except (UserError, RunError) as error:
        told = error.problems if isinstance(error, UserError) else (str(error),)
        code = EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_RUN_ERROR
        path = _problem_path(problems, rank)
        path.with_suffix(".tmp").write_text(json.dumps([code, *told]), encoding="utf-8")
        path.with_suffix(".tmp").replace(path)
        sys.exit(code)


def _raise_problem(rank: int, problems: str) -> None:
    """Raise what a process told, if it did, as if it had happened here."""
    path = _problem_path(problems, rank)
    if path.exists():
        code, *told = json.loads(path.read_text(encoding="utf-8"))
        raise UserError(*told) if code == EXIT_USER_ERROR else RunError(*told)


def _problem_path(problems: str, rank: int) -> Path:
    return Path(problems) / f"problem{rank}.json"


def _leave_with_parent() -> NoReturn:
    """End this process when its parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(rank: int, engine: Engine, job: PredictionJob) -> None:
    """Predict chunk after chunk until none is left that nobody works on."""
    quiet_libraries()
    if job.devices.count > 1:
        use_arithmetic(job.devices)
        use_threads(job.devices)
    device = job.devices.device(rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # for what asks for the current one: kernels that are compiled, events, graphs
    with (
        _memory_errors(
            f"the model does not fit into the memory of {device}: a model larger than one GPU is out of scope"
        ),
        job.devices.autocast(),
    ):
        predictor = engine(device)
    progress = _Progress(job, enabled=rank == 0)
    with (
        closing(progress.line),  # a stop is told on a line of its own
        Claims(job.folder, rank, job.devices.count) as claims,
        job.devices.autocast(),
    ):
        work = _Fitting(predictor, job.split, device)
        for chunk in claims.open_chunks(job.chunks):
            predictions: list[Prediction] = []
            for batch in job.chunks.batches(chunk):
                predictions += work.predictions(batch)
                progress.advance(len(predictions))
            write_part(job.folder, chunk, job.chunks.rows(chunk).tolist(), predictions)
        progress.end()
        if rank == 0:
            tell(*compilations())


@dataclass
class _Fitting:
    """Predicts batches in as many parts as the memory of the device asks for; `most` is in padded source tokens."""

    predictor: BatchPredictor
    split: EncodedSplit
    device: torch.device
    most: int = sys.maxsize

    def predictions(self, batch: np.ndarray) -> list[Prediction]:
        """One for each row, the longest of which comes first.

        Raises:
            RunError: the memory is too small for a single row.
        """
        width = max(1, int(self.split.source_lengths[batch[0]]))
        found: list[Prediction] = []
        while len(found) < len(batch):
            rows = batch[len(found) : len(found) + max(1, self.most // width)]
            with _memory_errors(
                f"the memory of {self.device} is too small for a row of {width:,} tokens: give fewer beams, or a"
                " smaller -max_seq_length or -max_predict_length; -overwrite throws away what is finished"
            ):
                part = self._tried(rows, width)
            found += part or []
        return found

    def _tried(self, rows: np.ndarray, width: int) -> list[Prediction] | None:
        """None where there was no memory: from now on batches are half as large."""
        try:
            sources = [self.split.source_ids(row) for row in rows]
            return self.predictor(rows.tolist(), sources, self.split.target_languages(rows))
        except Exception as error:
            if len(rows) == 1 or not is_out_of_memory(error):
                raise
        if self.most == sys.maxsize:
            tell(
                f"the memory of {self.device} is too small for a batch of {len(rows):,} rows of up to {width:,} tokens:"
                " batches are halved until they fit; a smaller -batch_size or -max_tokens does so from the start"
            )
        self.most = len(rows) // 2 * width
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None


@contextmanager
def _memory_errors(message: str) -> Iterator[None]:
    """Raise `RunError(message)` where a device has no more memory."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(message) from error


class _Progress:
    """Rows that all processes have finished, and those of this one's chunk; told every few seconds."""

    def __init__(self, job: PredictionJob, enabled: bool) -> None:
        self.job = job
        self.enabled = enabled
        self.line = ProgressLine(
            "[PREDICT]", len(job.split), done=self._finished(), unit=job.split.unit, enabled=enabled
        )
        self.told = time.monotonic()

    def _finished(self) -> int:
        chunks = self.job.chunks
        return chunks.count(chunk for chunk in range(len(chunks)) if part_path(self.job.folder, chunk).exists())

    def advance(self, of_this_chunk: int) -> None:
        if self.enabled and time.monotonic() - self.told > REPORT_SECONDS:
            self.line.advance_to(min(self._finished() + of_this_chunk, len(self.job.split)))
            if self.line.done < len(self.job.split):  # else `end` tells it
                self.line.report()
            self.told = time.monotonic()

    def end(self) -> None:
        if self.enabled:
            self.line.advance_to(self._finished())
        self.line.report()
        self.line.close()
