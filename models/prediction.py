"""Predictions for encoded rows: one a row, in the order of the rows, on one or several processes.

sort the rows by length, longest first; cut them into batches; worker k of n takes the batches k, k + n, ...
every worker writes the predictions of its batches to a part file; the parts are merged by row and counted
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
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from datamodules.encoded_split import EncodedSplit
from errors import EXIT_RUN_ERROR, EXIT_USER_ERROR, RunError, UserError
from models.batch_predictor import PredictionJob, batch_predictor
from models.devices import Devices
from models.environment import quiet_libraries
from models.generation import DecodingOptions
from models.label_prediction import LabelDecoding
from models.predictions import Prediction
from models.progress import ProgressLine

REPORT_SECONDS = 5.0


def length_sorted_batches(split: EncodedSplit, batch_size: int) -> list[np.ndarray]:
    """Every row once, like lengths together, longest first."""
    order = np.argsort(-split.source_lengths.astype(np.int64), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def predict(
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    split: EncodedSplit,
    batch_size: int,
    options: DecodingOptions,
    devices: Devices,
    labels: LabelDecoding | None = None,
) -> list[Prediction]:
    """One prediction for each row of `split`, in its order; only labels come out if `labels` are given.

    Args:
        load: gives the model and tokenizer; called once in each worker, so it must be picklable for several.

    Raises:
        UserError: the model cannot be loaded; in a worker as in this process.
        RunError: a worker cannot go on, or died; nothing is returned then.
    """
    job = PredictionJob(load, split, batch_size, options, devices, labels=labels)
    with tempfile.TemporaryDirectory() as folder:
        if devices.count == 1:
            _work(0, job, folder)
        else:
            _work_together(job, folder)
        return _merge(folder, len(split))


def _work_together(job: PredictionJob, folder: str) -> None:
    """Run one worker a device; any that fails ends the whole prediction."""
    context = torch.multiprocessing.get_context("spawn")
    arguments = [(rank, job, folder) for rank in range(job.devices.count)]
    workers = [context.Process(target=_work_in_process, args=given) for given in arguments]
    resource_tracker.ensure_running()  # started later, it would unblock the signal again
    # Workers inherit the block: Ctrl-C is for the parent, which ends them. One that comes meanwhile waits, not lost.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        try:
            for worker in workers:
                worker.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        running = True
        while running:
            for worker in workers:
                worker.join(0.2)
            codes = [worker.exitcode for worker in workers]
            for rank, code in enumerate(codes):
                if code:
                    _raise_problem(rank, code, folder)
            running = None in codes
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
            if worker.pid is not None:
                worker.join()


def _work_in_process(rank: int, job: PredictionJob, folder: str) -> None:
    """`_work` in a process of its own: a problem goes to a file and the exit code tells its kind (`_raise_problem`)."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        _work(rank, job, folder)
    except (UserError, RunError) as error:
        told = error.problems if isinstance(error, UserError) else (str(error),)
        _problem_path(folder, rank).write_text(json.dumps(told), encoding="utf-8")
        sys.exit(EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_RUN_ERROR)


def _raise_problem(rank: int, code: int, folder: str) -> NoReturn:
    """Raise what a failed worker told, as if it had happened here; of one that told nothing, say how it ended."""
    path = _problem_path(folder, rank)
    if not path.exists():
        raise RunError(f"prediction process {rank} ended with code {code}; nothing was written")
    told = json.loads(path.read_text(encoding="utf-8"))
    raise UserError(*told) if code == EXIT_USER_ERROR else RunError(*told)


def _problem_path(folder: str, rank: int) -> Path:
    return Path(folder) / f"problem{rank}.json"


def _leave_with_parent() -> None:
    """End this worker when its parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(rank: int, job: PredictionJob, folder: str) -> None:
    """Predict the batches of one worker and write them to its part file."""
    quiet_libraries()
    devices = job.devices
    if devices.accelerator == "cpu" and devices.count > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // devices.count))
    predictor = batch_predictor(job, rank)
    progress = ProgressLine("[PREDICT]", len(job.split), unit="row", enabled=rank == 0)
    told = time.monotonic()
    done = 0
    with open(Path(folder) / f"part{rank}.jsonl", "w", encoding="utf-8") as part:
        for rows in length_sorted_batches(job.split, job.batch_size)[rank :: devices.count]:
            sources = [job.split.source_ids(int(row)) for row in rows]
            for row, prediction in zip(rows.tolist(), predictor(rows.tolist(), sources), strict=True):
                part.write(json.dumps([row, prediction.text, prediction.score, prediction.label_probabilities]) + "\n")
            done = min(done + len(rows) * devices.count, len(job.split))
            progress.advance_to(done)
            if time.monotonic() - told > REPORT_SECONDS:
                progress.report()
                told = time.monotonic()
    progress.report()
    progress.close()


def _merge(folder: str, count: int) -> list[Prediction]:
    """The predictions of all part files by row; every row exactly once."""
    found: list[Prediction | None] = [None] * count
    for part in sorted(Path(folder).glob("part*.jsonl")):
        with open(part, encoding="utf-8") as lines:
            for line in lines:
                row, text, score, probabilities = json.loads(line)
                if found[row] is not None:
                    raise RunError(f"row {row} was predicted twice; nothing was written")
                found[row] = Prediction(text, score, label_probabilities=probabilities and tuple(probabilities))
    missing = sum(prediction is None for prediction in found)
    if missing:
        raise RunError(f"{missing} of {count} rows got no prediction; nothing was written")
    return [prediction for prediction in found if prediction is not None]
