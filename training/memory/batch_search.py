"""-batch_size 0 and -max_tokens -1: the largest batch that fits, found by training steps of the longest rows.

one row, or the tokens of the longest row -> doubled until it does not fit -> the gap halved, to a 32nd
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from config.flags.run import automatic
from config.flags.train import TrainConfig
from datamodules.batching import evaluation_plan
from models.optimizers.build import state_memory
from models.seq2seq_module import Seq2SeqModule
from training.process_watch import PARENT_VARIABLE
from training.setup import Prepared
from training.strategies.cluster import words_of_all
from training.strategies.registry import STRATEGIES
from training.trainer import build_module
from utils.console import say
from utils.devices import is_out_of_memory
from utils.errors import UserError, raise_if_any
from utils.launch import local_rank, started_by_launcher

VARIABLE = "S2S_BATCH"  # what the first process has found, for those that it starts
MARGIN = 0.1  # of the memory, that is left free: batches of other shapes cut it up in other ways
PRECISION = 32  # parts of the number found
GIB = 2**30


def with_found_batch(prepared: Prepared) -> Prepared:
    """`prepared`, with the number of -batch_size or -max_tokens where it is to be found; the number is printed.

    Raises:
        UserError: not a single row fits.
    """
    config = prepared.config
    batch = config.batch
    name = automatic(batch)
    if not name:
        return prepared
    if PARENT_VARIABLE in os.environ:
        found = int(os.environ[VARIABLE])
    else:
        found = _agreed(prepared, name)
        os.environ[VARIABLE] = str(found)
    return replace(prepared, config=replace(config, batch=replace(batch, **{name: found})))


def largest(fits: Callable[[int], bool], start: int, most: int) -> tuple[int, int | None]:
    """The largest number from `start` to `most` that fits, to a 32nd of it, and the smallest that was seen not to.

    The first is 0 where `start` does not fit, the second None where `most` does.
    """
    good, size = 0, min(start, most)
    while fits(size):
        good = size
        if size == most:
            return good, None
        size = min(2 * size, most)
    bad = size
    while good and bad - good > max(1, good // PRECISION):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good, bad


def _agreed(prepared: Prepared, name: str) -> int:
    """The number that fits on every device of the run; `UserError` on every process where one finds no room."""
    try:
        word = str(_found_on_devices(prepared, name))
    except UserError as error:
        word = str(error)
    words = words_of_all(prepared.devices, f"-{name}", word)
    raise_if_any(dict.fromkeys(word for word in words if not word.isdecimal()))
    found = min(map(int, words))
    if len(words) > 1:
        say(f"batch size: {found:,}, the smallest number that {len(words)} processes found")
    return found


def _found_on_devices(prepared: Prepared, name: str) -> int:
    """The number that fits on every device that this process tries: its own, or all of its machine."""
    devices, config = prepared.devices, prepared.config
    strategy = STRATEGIES[config.device.strategy]
    module = build_module(config, prepared.model, prepared.tokenizer, 1, strategy, teacher=prepared.teacher)
    prepared.model.train()
    first = local_rank()
    count = devices.count if devices.accelerator == "cuda" and not started_by_launcher() else 1
    numbers = [_found_on(prepared, module, name, devices.device(rank)) for rank in range(first, first + count)]
    module.to(devices.device(first))
    return min(numbers)


def _found_on(prepared: Prepared, module: Seq2SeqModule, name: str, device: torch.device) -> int:
    config = prepared.config
    try:
        module.to(device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"-{name}: the model does not fit into the memory of {device}") from error
    trial = _Trial(prepared, module, name, device)
    good, bad = largest(trial.fits, trial.start, trial.most)
    _empty(device)
    unit = "rows" if name == "batch_size" else "padded tokens"
    room = f"{1 - MARGIN:.0%} of {trial.memory / GIB:.2f} GiB of {device}"
    if not good:
        source, target = (int(lengths.max(initial=0)) for lengths in trial.lengths)
        raise UserError(
            f"-{name} {getattr(config.batch, name)}: not even one row of up to {source:,} source and {target:,} target"
            f" tokens fits into {room}: give {', or '.join(_ways(config))}"
        )
    more = f"{bad:,} do not fit into {room}" if bad else "an optimizer step takes all rows then"
    say(f"batch size: {good:,} {unit} found, {more}; {trial.count} batches tried")
    return good


def _ways(config: TrainConfig) -> list[str]:
    """What makes a row smaller."""
    ways = ["a smaller -max_seq_length or -max_target_length"]
    ways += [] if config.model.gradient_checkpointing else ["-gradient_checkpointing"]
    ways += [] if config.optim.optim == "adafactor" else ["-optim adafactor"]
    return ways


class _Trial:
    """Training steps of the largest batches of a size, and the memory that they take."""

    def __init__(self, prepared: Prepared, module: Seq2SeqModule, name: str, device: torch.device) -> None:
        self.prepared, self.module, self.name, self.device = prepared, module, name, device
        self.data = prepared.data_module()
        rows = self.data.train
        self.lengths = rows.source_lengths, rows.target_lengths
        share = prepared.devices.world_size * prepared.config.batch.grad_acc
        of_rows = (self.lengths[0] + self.lengths[1]).astype("int64")
        self.start = 1 if name == "batch_size" else int(of_rows.max(initial=1))
        whole = len(of_rows) if name == "batch_size" else int(of_rows.sum())
        self.most = max(self.start, -(-whole // share))  # an optimizer step then takes all rows
        self.memory = _memory(device, prepared.config.device.memory_limit)
        self.count = 0

    def fits(self, size: int) -> bool:
        """Whether training steps of the largest batches of this size fit, with the margin."""
        limit = (1 - MARGIN) * self.memory
        return all(peak is not None and peak <= limit for peak in map(self._peak, self._largest(size)))

    def _largest(self, size: int) -> list[Any]:
        """Rows of the batch with the most padded tokens, and of that with the most target tokens, where it is another.

        Every alignment of the batches is possible in some epoch; here they begin with the longest row.
        """
        options = replace(self.data.batch_options, **{"batch_size": 0, "max_tokens": 0, self.name: size})
        plan = evaluation_plan(*self.lengths, options, 1)
        targets = [
            len(rows) * int(self.lengths[1][rows].max(initial=0))
            for rows in (plan.batch(0, index) for index in range(plan.batches_per_rank))
        ]
        indices = dict.fromkeys((plan.largest_batch(0), targets.index(max(targets))))
        return [plan.batch(0, index) for index in indices]

    def _peak(self, rows: Any) -> int | None:
        """Bytes that a training step of a batch took at most; None where the memory ended."""
        self.count += 1
        batch = self.data.batch_of(rows)
        peak = None
        _empty(self.device)
        try:
            self._go_through(batch)
            peak = _peak_memory(self.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self.module.zero_grad(set_to_none=True)
        return peak

    def _go_through(self, batch: dict[str, Any]) -> None:
        """A training step, in a call of its own: when it fails, no local variable keeps memory."""
        moved = {name: part.to(self.device) if isinstance(part, torch.Tensor) else part for name, part in batch.items()}
        with self.prepared.devices.autocast():
            self.module.go_through(moved, state_memory(self.module.model, self.module.optim))


def _memory(device: torch.device, limit: float) -> int:
    """Bytes that this process may take on a device: all that others leave, or the limit in GiB where that is less."""
    if device.type != "cuda":
        return round(limit * GIB)
    free, _ = torch.cuda.mem_get_info(device)
    there = free + torch.cuda.memory_reserved(device)
    return min(there, round(limit * GIB)) if limit else there


def _empty(device: torch.device) -> None:
    """Give cached memory back to the device or the system, and start a new peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held since `_empty`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
