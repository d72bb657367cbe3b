"""Processes of one machine, one a device, that a command starts itself."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NoReturn

import torch

from config.user_code import import_inherited
from prediction.workers.work import Engine, PredictionJob, work
from utils.devices import use_arithmetic, use_threads
from utils.errors import EXIT_RUN_ERROR, EXIT_USER_ERROR, RunError, UserError
from utils.files import write_json
from utils.libraries import quiet_libraries


def work_in_processes(engine: Engine, job: PredictionJob) -> None:
    """Run one process a device. A problem that one of them tells ends all; of one that dies the others do the work."""
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as problems:
        arguments = [(rank, engine, job, Path(problems)) for rank in range(job.devices.count)]
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
                    raise_problem(Path(problems), rank)
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


def _work_in_process(rank: int, engine: Engine, job: PredictionJob, problems: Path) -> None:
    """`work` in a process of its own: what it has to tell goes to a file (`raise_problem`)."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        import_inherited()
        quiet_libraries()
        use_arithmetic(job.devices)
        use_threads(job.devices)
        work(engine, job, job.devices.device(rank), first=rank == 0)
    except (UserError, RunError) as error:
        sys.exit(leave_problem(problems, rank, error))


def leave_problem(folder: Path, rank: int, error: UserError | RunError) -> int:
    """Write down what a process cannot go on for, for `raise_problem` in another one; returns the exit code."""
    told = error.problems if isinstance(error, UserError) else (str(error),)
    code = EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_RUN_ERROR
    write_json(folder / f"problem-{rank}.json", [code, *told])
    return code


def raise_problem(folder: Path, rank: int) -> None:
    """Raise what a process told, if it did, as if it had happened here."""
    path = folder / f"problem-{rank}.json"
    if path.exists():
        code, *told = json.loads(path.read_text(encoding="utf-8"))
        raise UserError(*told) if code == EXIT_USER_ERROR else RunError(*told)


def _leave_with_parent() -> NoReturn:
    """End this process when its parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
