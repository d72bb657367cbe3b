"""Who started this process: the environment of torchrun and SLURM, ranks, and the queue of the job."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from utils.errors import RunError, raise_if_any

NUMBERS = (  # of processes and machines, as torchrun and srun set them
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"),
    "SLURM_NNODES",
)
COUNTS = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_NNODES")
OWN_ADDRESSES = ("localhost", "127.0.0.1", "::1")


def check_environment() -> None:
    """Raise `UserError` for an environment in which no command can work."""
    problems = [
        f"{name}={os.environ[name]} in the environment: a whole number expected, as torchrun and srun set it; unset it"
        for name in NUMBERS
        if not os.environ.get(name, "0").isdecimal()
    ]
    numbers = {name: int(os.environ[name]) for name in NUMBERS if os.environ.get(name, "").isdecimal()}
    problems += [f"{name}=0 in the environment: at least 1 expected" for name in COUNTS if numbers.get(name) == 0]
    if numbers.get("MASTER_PORT", 1) not in range(1, 1 << 16):
        problems.append(f"MASTER_PORT={numbers['MASTER_PORT']} in the environment: a port is 1 to 65535")
    pairs = (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")) if "RANK" in numbers else ()
    problems += [
        f"{rank}={numbers[rank]} and {count}={numbers[count]} in the environment:"
        " a rank is below its number of processes"
        for rank, count in pairs
        if 0 < numbers.get(count, 0) <= numbers.get(rank, 0)
    ]
    if sys.flags.optimize > 1:
        problems.append("PYTHONOPTIMIZE=2 or -OO takes away the docstrings that transformers reads; leave it out")
    raise_if_any(problems)


def in_job() -> bool:
    """Whether this process belongs to a SLURM job."""
    return "SLURM_JOB_ID" in os.environ


def step_tasks() -> int:
    """The tasks that srun started together with this one; 1 where none did (a batch script, a login shell).

    SLURM_NTASKS does not tell: a batch script has it too, for what the job asked for.
    """
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) if in_job() else 1


def job_id() -> str:
    """The number that scontrol knows this job by; that of one task of an array is ARRAY_TASK."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def requeue() -> str:
    """Put this job into the queue once more; returns what to tell.

    Raises:
        RunError: scontrol refused; with its reason.
    """
    command = ["scontrol", "requeue", job_id()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RunError(f"-requeue: {' '.join(command)} could not be run ({error}); the run is saved") from error
    if done.returncode:
        raise RunError(f"-requeue: {' '.join(command)} failed: {done.stderr.strip()}; the run is saved")
    return f"requeued: {' '.join(command)}"


def is_first_process() -> bool:
    """Whether this is the process of global rank 0, or a command that has not started others yet."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    # A process that Lightning started inside one SLURM task has that task's SLURM_PROCID, and a LOCAL_RANK of its own.
    names = ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)


def local_rank() -> int:
    """Which of the processes on its machine this one is."""
    by_srun = "RANK" not in os.environ and step_tasks() > 1
    return int(os.environ.get("SLURM_LOCALID" if by_srun else "LOCAL_RANK", "0"))


def started_by_launcher() -> bool:
    """Whether torchrun, or srun with several tasks, started this process together with others."""
    return "RANK" in os.environ or step_tasks() > 1


def world_size() -> int:
    """How many processes the launcher started, on all machines; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else step_tasks()


def local_world_size() -> int:
    """How many processes the launcher started on this machine; 1 without one."""
    if "RANK" in os.environ:
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    return -(-step_tasks() // nodes)


def global_rank() -> int:
    """Which of all processes of the launcher this one is."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) if world_size() > 1 else 0


def is_first_rank() -> bool:
    """Whether this process prepares and writes what all processes of the launcher work on."""
    return global_rank() == 0


def launch_id() -> str:
    """What the processes of one launch have in common, and those of another launch do not, as far as that is known."""
    of_torchrun = ["TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"]
    of_srun = ["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"]
    names = of_torchrun if "RANK" in os.environ else of_srun
    # torchrun names the launches of one machine alike on every machine.
    own = [socket.gethostname()] if "RANK" in os.environ and os.environ.get("MASTER_ADDR") in OWN_ADDRESSES else []
    return " ".join([*(os.environ.get(name, "-") for name in names), *own])
