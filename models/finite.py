"""Refuses scores that are NaN or infinite, before anything that was predicted by them is written."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.errors import RunError


def require_finite(broken: Tensor, dtype: torch.dtype) -> None:
    """Raise when the 0-dim bool `broken` is true; waits for the device, so it is called once a batch.

    Args:
        dtype: of the arithmetic that gave the scores.

    Raises:
        RunError: names what -float_precision to take instead.
    """
    if not bool(broken):
        return
    if dtype == torch.float16:
        found = "the activations overflow in fp16; use -float_precision bf16 or 32"
    elif dtype == torch.bfloat16:
        found = "in bf16; use -float_precision 32, and if that fails too, another checkpoint"
    else:
        found = "at -float_precision 32, so that the activations themselves overflow; use another checkpoint"
    raise RunError(f"the model's scores of a batch are NaN or infinite, and nothing of it is written: {found}")
