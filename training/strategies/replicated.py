"""Every process holds the whole model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from checkpoints.saved_run import SavedRun, read_run
from training.lightning_loop import OurDDP, checkpoint_of, write_checkpoint
from training.process_watch import PARENT_VARIABLE
from training.strategies.cluster import checked_once
from utils.devices import Devices, all_finite
from utils.digests import file_states

CHECKED_VARIABLE = "S2S_CHECKED"  # the checkpoint whose bytes the first process has checked, for those that it starts


class Replicated:
    """Every process holds the whole model: DDP, or plain on one device.

    Args:
        plain_on_one: no DDP where there is one device only.
    """

    sharded = False
    gives_weights = False  # DDP gives those of the first process alone
    largest_batch_first = True

    def __init__(self, plain_on_one: bool) -> None:
        self.plain_on_one = plain_on_one

    def check(self, config: PreTrainedConfig, devices: Devices) -> None:
        """Refuse nothing."""

    def lightning(self, devices: Devices, compressed: bool) -> Any:
        """What Lightning is given as its strategy."""
        if self.plain_on_one and devices.world_size == 1:
            return "auto"
        backend = "gloo" if devices.accelerator == "cpu" else "nccl"
        # No buffer of an encoder-decoder changes in training: nothing is to be synchronised before a forward pass.
        return OurDDP(
            compressed, process_group_backend=backend, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def whole(self, module: nn.Module) -> AbstractContextManager[None]:
        """While it lasts, every process holds the whole weights, as always."""
        del module
        return nullcontext()

    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The whole weights, on the first process at least; every process calls it."""
        return model.state_dict()

    def grad_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm of the whole gradient, the same on every process."""
        return torch.nn.utils.get_total_norm(gradients)

    def all_finite(self, parameters: Iterable[Tensor]) -> bool:
        """Whether no weight is NaN or infinite, the same on every process; waits for the device."""
        return all_finite([parameter.detach() for parameter in parameters])

    def state(self, trainer: pl.Trainer) -> Any:
        """What this process writes of a checkpoint, in the memory that training uses; every process calls it."""
        checkpoint = checkpoint_of(trainer)
        return checkpoint if trainer.is_global_zero else None

    def write(self, state: Any, path: Path) -> None:
        """Write a checkpoint, a file here, of a copy of `state`; every process calls it, beside the training."""
        if state is not None:
            write_checkpoint(state, path)

    def load(self, path: Path) -> SavedRun:
        """The run of a checkpoint; raises as `read_run` does."""
        return load_run(path)


def load_run(path: Path) -> SavedRun:
    """The run of a checkpoint; raises as `read_run` does.

    The first process of a machine checks every byte; those that it or a launcher starts there take its word while
    the file is the same. Its tensors are pages of the file, which all of them share.
    """
    state = f"{path.resolve()} {file_states(path)}"
    if PARENT_VARIABLE in os.environ:
        return read_run(path, checked=os.environ.get(CHECKED_VARIABLE) == state)
    run = checked_once(state, lambda checked: read_run(path, checked=checked))
    os.environ[CHECKED_VARIABLE] = state
    return run
