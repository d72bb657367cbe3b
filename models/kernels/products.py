"""Products with an output embedding: rows that GPUs read fast, and results that are not rounded below fp32."""

from __future__ import annotations

import torch
from torch import Tensor

ALIGNMENT = 64  # rows of an output embedding, and so columns of logits


def aligned_rows(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` (vocabulary, width) in `dtype`, with rows of zeros up to a multiple of 64.

    The rows of logits then begin at addresses that the fast kernels of cuBLAS take, whatever the vocabulary.
    """
    missing = -len(weight) % ALIGNMENT
    if not missing:
        return weight.to(dtype)
    rows = weight.new_zeros(len(weight) + missing, weight.shape[1], dtype=dtype)
    rows[: len(weight)].copy_(weight)
    return rows


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Give left @ right in `dtype`; on CUDA (not ROCm) products of bf16 and fp16 are not rounded before."""
    if left.dtype != dtype and left.is_cuda and torch.version.hip is None:
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)
