"""What one process does: chunk after chunk, in batches that fit into the memory of its device, and their progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datamodules.encoding.store import EncodedSplit
from generation.engines.base import BatchPredictor, Prediction
from generation.incremental.compiled import compilations
from prediction.parts import Chunks, part_path, write_part
from prediction.workers.claims import Claims
from utils.console import tell
from utils.devices import Devices, is_out_of_memory
from utils.errors import RunError
from utils.progress import ProgressLine

REPORT_SECONDS = 5.0

Engine = Callable[[torch.device], BatchPredictor]  # called once in each process: picklable where there are several


@dataclass(frozen=True)
class PredictionJob:
    """What is predicted, by which processes, and where the part files go."""

    split: EncodedSplit
    chunks: Chunks
    devices: Devices
    folder: Path


def work(
    engine: Engine, job: PredictionJob, device: torch.device, first: bool, waiting: Callable[[], None] | None = None
) -> None:
    """Predict chunk after chunk until none is left that nobody works on.

    Args:
        first: whether this process tells the progress of all.
        waiting: called between chunks and while others work, until all parts are there; None = do not wait for others.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # for what asks for the current one: kernels that are compiled, events, graphs
    with (
        _memory_errors(
            f"the model does not fit into the memory of {device}: a model larger than one GPU is out of scope"
        ),
        job.devices.autocast(),
    ):
        predictor = engine(device)
    progress = _Progress(job, enabled=first)
    with (
        closing(progress.line),  # a stop is told on a line of its own
        Claims(job.folder) as claims,
        job.devices.autocast(),
    ):
        fitting = _Fitting(predictor, job.split, device)
        if waiting:
            waiting()  # reading the model may have taken long
        for chunk in claims.open_chunks(job.chunks, waiting):
            predictions: list[Prediction] = []
            for batch in job.chunks.batches(chunk):
                predictions += fitting.predictions(batch)
                progress.advance(len(predictions))
            claims.worker.now()  # raises where another run has taken over
            write_part(job.folder, chunk, job.chunks.rows(chunk).tolist(), predictions)
            if waiting:
                waiting()
        progress.end()
        if first:
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
