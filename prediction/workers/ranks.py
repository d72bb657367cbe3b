"""Processes that torchrun or srun started, on one or several machines: they share a folder, and nothing else.

the first one prepares, and leaves each prediction there as a job; all of them work on it, chunk by chunk
the first one writes the output, and says that it is done; the others end
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch

from checkpoints.run_folder import LOCK_NAME, run_lock
from prediction.workers.claims import BEAT_SECONDS, POLL_SECONDS, Presence, lives, read_presence
from prediction.workers.processes import leave_problem, raise_problem
from prediction.workers.work import Engine, PredictionJob, work
from utils.console import tell
from utils.devices import Devices, use_arithmetic, use_threads
from utils.errors import RunError, UserError
from utils.files import TEMPORARY_SUFFIX, write_file
from utils.launch import global_rank, launch_id, local_rank, world_size

FOLDER_SUFFIX = ".ranks"
FIRST, ROWS = "first.json", "rows"
MEETING_SECONDS = 300.0  # in which the first process, its imports and its checks of the flags are awaited
LEAVING_SECONDS = 60.0  # in which the others must come and go when all is done
OUR_NAMES = re.compile(rf"{FIRST}|{ROWS}|(rank|left|job)-\d+|problem-\d+\.json|{re.escape(LOCK_NAME)}|\..*\.tmp")


@dataclass(frozen=True)
class Shared:
    """A temporary folder, and the sign of life of this process, the first of several; None where it is alone."""

    folder: Path
    first: Presence | None = None


@contextmanager
def shared_temporary(output: str) -> Iterator[Shared]:
    """A temporary folder: where a launcher started several processes, one that they share, beside the output.

    There the others see this process, the first one, until the block ends; without an error, it then waits for them.

    Raises:
        UserError: a folder of that name that is not ours; another process predicts for the same output.
    """
    if world_size() == 1:
        with tempfile.TemporaryDirectory() as temporary:
            yield Shared(Path(temporary))
        return
    folder, flag = ranks_folder(output), f"-save_output {output}"
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or not _is_ours(folder)):
        raise UserError(f"{flag}: {folder} is in the way and no folder of ours; choose another name")
    with run_lock(folder, flag, "predicts for this output"):
        _clear(folder)
        (folder / ROWS).mkdir()
        try:
            with Presence(folder / FIRST, launch=launch_id(), jobs=0, ended=0, done=False) as presence:
                yield Shared(folder / ROWS, presence)
                presence.update(done=True)
                _see_them_off(folder, presence)
        finally:
            _clear(folder)
    with suppress(OSError):  # one that a killed process left
        folder.rmdir()


def ranks_folder(output: str) -> Path:
    path = Path(output).absolute()
    return path.with_name(path.name + FOLDER_SUFFIX)


def _is_ours(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return all(
            OUR_NAMES.fullmatch(entry.name) and (entry.name == ROWS or not entry.is_dir(follow_symlinks=False))
            for entry in entries
        )


def _clear(folder: Path) -> None:
    """Remove all but the lock."""
    shutil.rmtree(folder / ROWS, ignore_errors=True)
    for path in folder.iterdir():
        if path.name != LOCK_NAME:
            path.unlink(missing_ok=True)


def _see_them_off(folder: Path, presence: Presence) -> None:
    """Wait until each of the others has seen that all is done, or has died, or did not come."""
    until = time.monotonic() + LEAVING_SECONDS
    others = {*range(1, world_size())}
    while time.monotonic() < until:
        gone = {rank for rank in others if (folder / f"left-{rank}").exists() or _has_died(folder, rank, presence)}
        if others == gone:
            return
        time.sleep(POLL_SECONDS)


def _has_died(folder: Path, rank: int, presence: Presence) -> bool:
    path = folder / f"rank-{rank}"
    return path.exists() and not lives(path, presence.now())


def work_with_ranks(engine: Engine, job: PredictionJob, first: Presence) -> None:
    """Leave a job for the other processes, and work on it with them until all parts are there.

    Raises:
        UserError, RunError: also what one of the others could not go on for.
    """
    folder, number = first.path.parent, first.content["jobs"] + 1
    content = pickle.dumps((engine, replace(job, folder=job.folder.absolute())))

    def write(file: BinaryIO) -> None:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)

    write_file(folder / f"job-{number}", write, needed=len(content))
    first.update(jobs=number)
    tell(f"{world_size()} processes of the launcher share the rows")

    def raise_problems() -> None:
        for rank in range(1, world_size()):
            raise_problem(folder, rank)

    work(engine, job, own_device(job.devices), first=True, waiting=raise_problems)
    first.update(ended=number)  # before the parts go: the others must not take them for missing ones


def work_for_first(output: str) -> None:
    """Work on the jobs that the first process leaves, until it says that all is done.

    Raises:
        RunError: no first process is seen: the folder is not shared, or that process has failed; or it has ended.
    """
    rank, folder = global_rank(), ranks_folder(output)
    first = _await_first(folder, output)
    with Presence(folder / f"rank-{rank}") as presence:
        try:
            number = 1
            while not (found := _first_now(folder, first, presence))["done"]:
                if found["ended"] >= number:  # the others had done it all before this process came
                    number += 1
                elif found["jobs"] >= number:
                    _work_on(folder, number, first, presence)
                    number += 1
                else:
                    time.sleep(POLL_SECONDS)
        except (UserError, RunError) as error:
            if folder.exists():
                leave_problem(folder, rank, error)
            raise
        finally:
            with suppress(OSError):  # the first one waited long enough, and has gone
                (folder / f"left-{rank}").touch()


def _await_first(folder: Path, output: str) -> str:
    """Which process the first one is, when it is there."""
    until = time.monotonic() + MEETING_SECONDS
    while time.monotonic() < until:
        found = read_presence(folder / FIRST)
        with suppress(FileNotFoundError):  # the first one clears the folder when it begins
            if found and found.get("launch") == launch_id() and lives(folder / FIRST, _now(folder), 3 * BEAT_SECONDS):
                return str(found["id"])
        time.sleep(POLL_SECONDS)
    raise RunError(
        f"-save_output {output}: process {global_rank()} of the launcher has seen nothing of process 0 in {folder} for"
        f" {MEETING_SECONDS:g} s: give a folder that all machines share, or see what process 0 told"
    )


def _now(folder: Path) -> float:
    """The time by the clock of the file system, in seconds."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=TEMPORARY_SUFFIX) as file:
        return os.fstat(file.fileno()).st_mtime


def _first_now(folder: Path, first: str, presence: Presence) -> dict[str, Any]:
    """What the first process says; raises `RunError` when it, or its run, is no more."""
    found = read_presence(folder / FIRST)
    if found and found["id"] == first and (found["done"] or lives(folder / FIRST, presence.now())):
        return found
    raise RunError(
        f"process 0 of the launcher has ended, and process {global_rank()} ends too; what is finished is kept, and the"
        " same command goes on from there"
    )


class _Ended(Exception):
    """All parts of the job were there."""


def _work_on(folder: Path, number: int, first: str, presence: Presence) -> None:
    engine, job = _read_job(folder / f"job-{number}", presence)
    use_arithmetic(job.devices)
    use_threads(job.devices)

    def waiting() -> None:
        if _first_now(folder, first, presence)["ended"] >= number:
            raise _Ended

    try:
        work(engine, job, own_device(job.devices), first=False, waiting=waiting)
    except _Ended:
        pass
    except (RunError, FileNotFoundError):  # the parts go while this process looks for one
        if _first_now(folder, first, presence)["ended"] < number:
            raise


def _read_job(path: Path, presence: Presence) -> tuple[Engine, PredictionJob]:
    """What the first process left. Of nobody else is it read: reading a pickle runs what it says."""
    with open(path, "rb") as file:
        found, owner = os.fstat(file.fileno()), os.stat(presence.path).st_uid
        if found.st_uid != owner or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise RunError(f"{path} is of another user, or others may write it: it is not read")
        engine, job = pickle.load(file)
    return engine, job


def own_device(devices: Devices) -> torch.device:
    """The device of this process.

    Raises:
        RunError: the machine does not have it.
    """
    if devices.accelerator == "cpu":
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    number = local_rank() if visible > 1 else 0  # srun may show each task its own GPU alone
    if number >= visible:
        raise RunError(f"process {global_rank()} of the launcher needs GPU {number}, and {visible} are visible there")
    return torch.device("cuda", number)
