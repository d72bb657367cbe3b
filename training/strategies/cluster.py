"""Who starts the processes of a run on a cluster."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from torch.distributed.rendezvous import rendezvous

from training.lightning_loop import meeting
from utils.devices import Devices
from utils.launch import global_rank, in_job, local_rank, started_by_launcher, step_tasks, world_size

LAUNCH = (  # what tells the processes of one machine and one start apart from others there
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT", "GROUP_RANK"),
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "SLURM_NODEID"),
)
SECONDS_FOR_THE_FIRST = 60.0  # to start, before a process checks by itself
WHOLE, OTHER = b"1", b"0"
Checked = TypeVar("Checked")


def cluster_environment(devices: Devices) -> ClusterEnvironment | None:
    """Who starts the processes in a SLURM job: srun, or else this process; None where Lightning finds that out itself.

    Lightning takes the number of tasks that the job asked for as that of the processes, whether srun started them or
    not: a run without srun would be a part of a run that never begins, or one process where several were asked for.
    """
    if not in_job() or "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    if step_tasks() == 1:
        return LightningEnvironment()
    # check_launcher saw to it that there is a task for each device; Lightning wants it to be asked for in these words.
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices.count))
    return SLURMEnvironment(auto_requeue=False)


def checked_once(subject: str, read: Callable[[bool], Checked]) -> Checked:
    """What `read(checked)` gives; of the processes that a launcher started on a machine, the first alone checks.

    The others wait until it says that the subject is whole. Where it says otherwise, or nothing, they check too. It
    answers over an abstract Unix socket, which needs no file and closes with the process.

    Args:
        subject: names what is checked, and its state.
        read: reads the subject, without checks where `checked` is true.
    """
    if not started_by_launcher():
        return read(False)
    start = " ".join([str(os.getuid()), *(os.environ.get(name, "") for name in LAUNCH), subject])
    address = "\0s2s-" + hashlib.blake2b(start.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    if local_rank() != 0:
        return read(_word_of_the_first(address) == WHOLE)
    listener = socket.socket(socket.AF_UNIX)
    with suppress(OSError):  # the others do not reach us then
        listener.bind(address)
        listener.listen(64)
    word = OTHER
    try:
        result = read(False)
        word = WHOLE
    finally:
        threading.Thread(target=_answer, args=(listener, word), name="checked", daemon=True).start()
    return result


def words_of_all(devices: Devices, subject: str, word: str) -> list[str]:
    """What every process says about a subject, by rank, before they have a process group; each waits for all.

    They meet where they will later: at torchrun's store, or at one of the first process. A process that starts those
    of its machine itself speaks for them.

    Raises:
        RunError: they do not find each other, or one of them ended without a word.
    """
    if started_by_launcher():
        rank, count = global_rank(), world_size()
    else:
        rank, count = int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))), devices.num_nodes
    if count == 1:
        return [word]
    if isinstance(environment := cluster_environment(devices), SLURMEnvironment):
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    with meeting():
        store = _store(rank, count)
        store.set(f"{subject} {rank}", word)
        words = [store.get(f"{subject} {other}").decode() for other in range(count)]
        store.set(f"{subject} read by {rank}", "")
        if rank == 0:  # the store may end with this process
            store.wait([f"{subject} read by {other}" for other in range(count)])
    return words


@cache  # a store of this process lasts as long as it
def _store(rank: int, count: int) -> Any:
    return next(rendezvous("env://", rank, count))[0]


def _answer(listener: socket.socket, word: bytes) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(word)


def _word_of_the_first(address: str) -> bytes:
    began = time.monotonic()
    while time.monotonic() - began < SECONDS_FOR_THE_FIRST:
        with socket.socket(socket.AF_UNIX) as other, suppress(OSError):
            other.connect(address)
            _, user, _ = struct.unpack("3i", other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return other.recv(1) if user == os.getuid() else OTHER
        time.sleep(0.1)
    return OTHER
