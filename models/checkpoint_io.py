"""Lightning's own reads and writes of checkpoints, through ours."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from utils.files import run_error, write_file

LARGE = ("state_dict", "optimizer_states")  # entries of a checkpoint


class DurableCheckpointIO(CheckpointIO):
    """Lightning's checkpoint files, written durably.

    Args:
        resumed: the checkpoint that the run continues, as it was read and checked; nothing else can be loaded. It is
            handed over once: its weights and optimizer states are taken out of it, so that they do not stay in memory
            for the whole run.
    """

    def __init__(self, resumed: Mapping[str, Any] | None = None) -> None:
        self.resumed = resumed

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        del storage_options
        write_file(Path(path), lambda file: torch.save(checkpoint, file), needed=_tensor_bytes(checkpoint))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        del map_location, weights_only
        if self.resumed is None:
            raise RuntimeError(f"{path}: this run continues no checkpoint, or has loaded it")
        resumed, self.resumed = self.resumed, None
        loaded = dict(resumed)
        for name in LARGE:
            loaded[name] = copy.copy(resumed[name])
            resumed[name].clear()  # others hold this same object, and would for as long as the run lasts
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        with run_error(Path(path)):
            Path(path).unlink(missing_ok=True)


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_tensor_bytes, value.values()))
    return sum(map(_tensor_bytes, value)) if isinstance(value, list | tuple) else 0
