"""What a strategy gives to the rest of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
from torch import Tensor, nn
from transformers import PreTrainedConfig

from checkpoints.saved_run import SavedRun
from utils.devices import Devices


class Strategy(Protocol):
    """How the processes of a run share its weights."""

    # Whether each process holds a part only of the weights, all of which it has within `whole`, or of the optimizer.
    sharded: bool
    gives_weights: bool  # whether it writes them into models built empty: of the first process, or of a checkpoint
    largest_batch_first: bool  # whether a trial before the first step leaves nothing behind

    def check(self, config: PreTrainedConfig, devices: Devices) -> None:
        """Refuse a model, a device or an arithmetic that it cannot train with, before anything is read.

        Raises:
            UserError: names the flag.
        """

    def lightning(self, devices: Devices, compressed: bool) -> Any:
        """What Lightning is given as its strategy.

        Args:
            compressed: gradients go from process to process in bf16 (-gradient_compression).
        """

    def whole(self, module: nn.Module) -> AbstractContextManager[None]:
        """While it lasts, every process holds the whole weights; every process enters and leaves it."""

    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The whole weights, on the first process at least; every process calls it."""

    @property
    def grad_norm(self) -> Callable[[Sequence[Tensor]], Tensor] | None:
        """Gives the norm of the whole gradient, the same on every process, of what a process has of it; None = the
        strategy's own step measures and clips the gradient."""

    def all_finite(self, parameters: Iterable[Tensor]) -> bool:
        """Whether no weight is NaN or infinite, the same on every process; waits for the device."""

    def state(self, trainer: pl.Trainer) -> Any:
        """What this process writes of a checkpoint, in the memory that training uses; every process calls it."""

    def write(self, state: Any, path: Path) -> None:
        """Write a checkpoint, a file or a folder, of a copy of `state`; every process calls it, beside the training.

        The processes go on meanwhile: a collective has to be of a group of its own.
        """

    def load(self, path: Path) -> SavedRun:
        """The run of a checkpoint of any strategy; raises as `read_run` does."""
