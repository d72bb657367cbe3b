"""Predictions for encoded rows, exactly one each, on one or several processes; what is finished is never done again.

chunks of rows, longest first -> each process claims one after the other -> a part file each -> read by row number
"""

from __future__ import annotations

import time
from pathlib import Path

from datamodules.encoding.store import EncodedSplit
from generation.batch_limits import BatchLimits
from prediction.parts import Chunks, Parts, finished_chunks
from prediction.workers.claims import Presence
from prediction.workers.processes import work_in_processes
from prediction.workers.ranks import work_with_ranks
from prediction.workers.work import Engine, PredictionJob, work
from utils.console import tell
from utils.devices import Devices
from utils.libraries import quiet_libraries
from utils.tables import counted


def predict(
    engine: Engine,
    split: EncodedSplit,
    limits: BatchLimits,
    devices: Devices,
    folder: Path,
    first: Presence | None = None,
) -> Parts:
    """A prediction for each row of `split`, by row number; the parts that are in `folder` already are kept.

    How many rows were predicted, and how fast, is told.

    Args:
        first: the sign of life of this process, the first of several that a launcher started; None = it is alone.

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
        if first:
            work_with_ranks(engine, job, first)
        elif devices.count == 1:
            quiet_libraries()
            work(engine, job, devices.device(0), first=True)
        else:
            work_in_processes(engine, job)
    rows, seconds = len(split) - job.chunks.count(finished), time.monotonic() - began
    speed = f"{rows / max(seconds, 1e-9):,.1f} {split.unit}s/s"
    tell(f"{counted(rows, split.unit)} predicted in {seconds:.1f} s, {speed}")
    return Parts(folder, job.chunks)


def finished_rows(split: EncodedSplit, limits: BatchLimits, folder: Path) -> int:
    """How many rows of a prediction that was stopped are finished."""
    chunks = Chunks.of(split.source_lengths, limits)
    return chunks.count(finished_chunks(folder, chunks)[0])
