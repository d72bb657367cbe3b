"""`train.py` or, by its name in COMMAND, `pretrain.py`, which saves the gradient of each optimizer step, and tries the
largest batch first as on a GPU: run by test_gradients.py."""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from training import fit
from training.checkpointing import Checkpointer
from utils.console import run_command


def save_gradient(self: Checkpointer, trainer: Any, pl_module: Any, optimizer: Any) -> None:
    del self, optimizer
    if trainer.is_global_zero:
        gradients = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
        torch.save(gradients, Path(os.environ["GRADIENT_FOLDER"]) / f"step{trainer.global_step}.pt")


Checkpointer.on_before_optimizer_step = save_gradient  # type: ignore[method-assign]
fit.LargestBatchFirst = partial(fit.LargestBatchFirst, on_cpu=True)  # type: ignore[misc,assignment]

if __name__ == "__main__":
    run_command(import_module(os.environ["COMMAND"]).main)
