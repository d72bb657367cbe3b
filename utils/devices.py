"""Which devices a run uses, in what arithmetic, and with how many threads."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence, Set
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.launch import local_world_size, step_tasks

CONTROL_GROUPS = {  # by their name in /proc/self/cgroup: where they lie, files of limit and use, entry of memory.stat
    "": (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    "memory": (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}
WATCH_SECONDS = 0.5
NO_MEMORY = ("allocate memory", "out of memory", "STATUS_ALLOC_FAILED")  # in messages of torch, CUDA, its libraries
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_FIXED = (":4096:8", ":16:8")  # its values with which products are added in the same order every time
ARITHMETIC = {"32-true": "32", "bf16-mixed": "bf16", "16-mixed": "fp16"}  # by Lightning's word


@dataclass(frozen=True)
class Devices:
    """What Lightning is told: `precision` is its word (32-true, bf16-mixed, 16-mixed)."""

    accelerator: str  # cpu or cuda
    count: int  # processes on this machine
    num_nodes: int
    precision: str
    tf32: bool = False  # products of fp32 matrices on a GPU: ten bits of mantissa, twice the speed
    deterministic: bool = False  # sums are added in the same order every time

    @property
    def world_size(self) -> int:
        """Processes over all machines."""
        return self.count * self.num_nodes

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The type of the arithmetic, or None for plain fp32."""
        return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)

    def describe(self) -> str:
        """Devices and arithmetic in words: `2 x cuda, bf16`."""
        return f"{self.count} x {self.accelerator}, {'fp32' if self.arithmetic == '32' else self.arithmetic}"

    @property
    def arithmetic(self) -> str:
        """The value of -float_precision that names it: 32, tf32, bf16 or fp16."""
        return "tf32" if self.tf32 else arithmetic_of(self.precision)

    def device(self, rank: int) -> torch.device:
        """The device of a process on this machine."""
        return torch.device("cuda", rank) if self.accelerator == "cuda" else torch.device("cpu")

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which a model computes in the precision that was asked for."""
        return torch.autocast(self.accelerator, self.autocast_dtype) if self.autocast_dtype else nullcontext()


def arithmetic_of(precision: str) -> str:
    """The value of -float_precision for Lightning's word, which checkpoints of older versions hold."""
    return ARITHMETIC.get(precision, precision)


def resolve_devices(
    gpus: int,
    cpu_processes: int,
    float_precision: str,
    overflowing: str,
    num_nodes: int = 1,
    deterministic: bool = False,
) -> Devices:
    """The devices that the flags ask for.

    Args:
        overflowing: the type of the model if it is one whose activations overflow in fp16, else empty.

    Raises:
        UserError: more GPUs than are visible; fp16 on a T5 (its activations overflow) or on a CPU.
    """
    visible = torch.cuda.device_count()
    if gpus > visible:
        raise UserError(f"-gpus {gpus}: {visible} GPUs are visible here; -gpus 0 uses the CPU")
    count = visible if gpus < 0 and not cpu_processes else max(gpus, 0)
    accelerator = "cuda" if count else "cpu"
    precision = _precision(float_precision, accelerator, overflowing)
    tf32 = float_precision == "tf32" and accelerator == "cuda"
    return Devices(accelerator, count or max(cpu_processes, 1), num_nodes, precision, tf32, deterministic)


def launched_devices(devices: Devices, asked: bool) -> Devices:
    """Those of a prediction whose processes a launcher started: each of them has one.

    Args:
        asked: whether flags ask for a number of devices.

    Raises:
        UserError: other numbers of processes, devices or flags; names both.
    """
    count = local_world_size()
    started = f"the launcher started {count} process{'' if count == 1 else 'es'} on this machine"
    if asked and devices.count != count:
        raise UserError(f"{started}, and -gpus or -cpu_processes ask for {devices.count}: leave the flag out")
    if devices.accelerator == "cuda" and devices.count != count and (devices.count > 1 or "RANK" in os.environ):
        raise UserError(
            f"{started}, and visible GPUs: {devices.count}; start as many processes as GPUs, or give -gpus 0"
        )
    return replace(devices, count=count)


def use_arithmetic(devices: Devices) -> None:
    """Make this process compute as the flags say.

    Products of fp32 matrices keep all their bits unless TF32 was asked for. cuDNN's attention is left out: it makes a
    plan for every new shape, which costs 20 to 40 ms (every decoding step has one), and its backward pass with a mask
    can give NaN (PyTorch issue 196678).

    With deterministic kernels the attention of the others adds in one order too. cuBLAS reads its workspaces when its
    first product is asked for; other values than these two torch refuses.
    """
    torch.set_float32_matmul_precision("high" if devices.tf32 else "highest")
    torch.backends.cuda.enable_cudnn_sdp(False)
    if devices.deterministic:
        if os.environ.get(CUBLAS_WORKSPACE) not in CUBLAS_FIXED:
            os.environ[CUBLAS_WORKSPACE] = CUBLAS_FIXED[0]
        torch.use_deterministic_algorithms(True)
        # Nothing of ours reads what was not written. (The attribute is a property that the module makes of itself.)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def limit_memory(device: torch.device, limit: float) -> None:
    """Let this process take no more of a GPU than so many GiB; 0 = no limit. Nothing is done on a CPU."""
    if limit and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit * 2**30 / total), device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left; for the CPU, and some libraries of a GPU, there is no class."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def all_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether no number of the tensors, all on one device, is NaN or infinite; waits for the device."""
    sums = torch.stack([tensor.sum() for tensor in tensors])  # quick, and not finite if a number is not; may overflow
    return bool(sums.isfinite().all() or torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def free_host_memory() -> int:
    """Bytes of memory that this process may still take: of the machine, and of its group (a container, a SLURM job)."""
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, kind, path = line.split(":", 2)
            if kind in CONTROL_GROUPS:
                root, *names = CONTROL_GROUPS[kind]
                group = root / path.removeprefix("/")
                free += [
                    _free_of_group(place, *names) for place in (group, *group.parents) if place.is_relative_to(root)
                ]
        return min(free)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_of_group(group: Path, limit: str, used: str, of_files: str) -> int:
    """Bytes below the limit of a control group; what files take is given back."""
    with suppress(OSError, ValueError):
        entries = dict(map(str.split, (group / "memory.stat").read_text().splitlines()))
        return int((group / limit).read_text()) - int((group / used).read_text()) + int(entries.get(of_files, 0))
    return sys.maxsize  # it has no limit, or is not shown


def check_launcher(devices: Devices) -> None:
    """Refuse a run whose launcher (torchrun, srun) started other processes than the flags ask for.

    Raises:
        UserError: names both numbers.
    """
    if "RANK" in os.environ:
        wanted = (devices.world_size, devices.count)
        started = tuple(
            int(os.environ.get(name, number))
            for name, number in zip(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), wanted, strict=True)
        )
        if started != wanted:
            raise UserError(
                f"the launcher started {started[0]} processes, {started[1]} of them on this machine, and -gpus,"
                f" -cpu_processes and -num_nodes make {wanted[0]}, {wanted[1]} on each: give the same numbers (torchrun"
                f" --nnodes {devices.num_nodes} --nproc-per-node {devices.count})"
            )
        return
    tasks, nodes = step_tasks(), int(os.environ.get("SLURM_NNODES", "1"))
    if tasks == 1:
        return
    if (tasks, nodes) != (devices.world_size, devices.num_nodes):
        raise UserError(
            f"srun started {tasks} tasks on {nodes} nodes, and -gpus, -cpu_processes and -num_nodes make"
            f" {devices.world_size} on {devices.num_nodes}: give the same numbers, or start one task on one node, which"
            " starts the others itself"
        )
    if int(os.environ.get("SLURM_LOCALID", "0")) >= devices.count:
        raise UserError(f"srun started more tasks on one node than on another: srun --ntasks-per-node={devices.count}")


def _precision(float_precision: str, accelerator: str, overflowing: str) -> str:
    if float_precision in ("32", "tf32") or (float_precision == "auto" and accelerator == "cpu"):
        return "32-true"
    bf16 = accelerator == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if float_precision == "auto":
        return "bf16-mixed" if bf16 else "32-true"
    if float_precision == "bf16" and not bf16:
        raise UserError("-float_precision bf16: this GPU has no bf16; use 32")
    if float_precision == "bf16" or (float_precision == "16" and bf16):
        return "bf16-mixed"
    if overflowing:
        raise UserError(
            f"-float_precision {float_precision}: a {overflowing} model overflows in fp16 and gives NaN; use bf16 or 32"
        )
    if accelerator == "cpu":
        raise UserError("-float_precision fp16: only on a GPU; on the CPU use bf16 or 32")
    return "16-mixed"


def use_threads(devices: Devices, resumed: int = 0) -> int:
    """Share the processors of this machine among its processes; returns the threads of each.

    Args:
        resumed: the threads of the run that is continued on a CPU: with another number sums are rounded differently.
    """
    given, on_cpu = "OMP_NUM_THREADS" in os.environ, devices.accelerator == "cpu"
    if resumed:
        torch.set_num_threads(resumed)
    elif devices.count > 1 and (on_cpu or not given):  # on the CPU torchrun's own choice of 1 is not taken over
        torch.set_num_threads(max(1, len(_cores()) // devices.count))
    elif on_cpu and not given:
        torch.set_num_threads(len(_cores()))
    if on_cpu and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        share_cores(torch.get_num_threads())
    return torch.get_num_threads()


def _cores() -> Set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


@cache
def share_cores(threads: int) -> None:
    """Watch, until this process ends, whether others need the cores on which our `threads` wait for each other."""
    if threads > 1 and os.path.exists("/proc/stat"):
        threading.Thread(target=_watch_cores, args=(ShortWaits(len(_cores()) - threads),), daemon=True).start()


class ShortWaits:
    """Makes OpenMP threads sleep when they wait for each other, instead of spinning, while other processes are busy.

    Spinning is fastest on a quiet machine. Beside a busy process it keeps from its core the very thread that is waited
    for. GCC's OpenMP (libgomp manual, GOMP_SPINCOUNT) spins 300,000 turns, but only 100 while there are more OpenMP
    threads than cores: one more thread with a team of its own, asleep, is enough to switch, and no result changes.

    Args:
        spare: the cores that our threads leave to others.
    """

    def __init__(self, spare: int) -> None:
        self.spare = spare
        self.over: threading.Event | None = None  # set to end the extra thread

    def update(self, others: float) -> None:
        """Choose by the number of cores that other processes took lately."""
        if self.over is None and others > self.spare + 0.3:
            self.over = threading.Event()
            threading.Thread(target=_hold_team, args=(self.over,), name="extra team", daemon=True).start()
        elif self.over is not None and others < self.spare + 0.15:
            self.over.set()
            self.over = None


def _hold_team(over: threading.Event) -> None:
    torch.ones(1 << 20).add_(1)  # large enough for all threads
    over.wait()


def _watch_cores(waits: ShortWaits) -> None:
    cores = _cores()
    with suppress(OSError, ValueError):  # a system whose /proc is another is not watched
        before = (time.monotonic(), _busy_seconds(cores), time.process_time())
        while True:
            time.sleep(WATCH_SECONDS)
            now = (time.monotonic(), _busy_seconds(cores), time.process_time())
            seconds, busy, ours = (after - since for after, since in zip(now, before, strict=True))
            waits.update((busy - ours) / seconds)
            before = now


def _busy_seconds(cores: Set[int]) -> float:
    """Seconds that some cores have worked since the machine started, for whomever, the host's other guests too."""
    ticks = 0
    with open("/proc/stat", encoding="ascii") as lines:
        for name, *times in map(str.split, lines):
            if name[:3] == "cpu" and name[3:].isdecimal() and int(name[3:]) in cores:
                user, nice, system, _idle, _waiting, *more = map(int, times[:8])
                ticks += user + nice + system + sum(more)
    return ticks / os.sysconf("SC_CLK_TCK")
