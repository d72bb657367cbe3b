"""Attention by plain operations in fp64, with a given dropout mask: what a kernel is compared with."""

from __future__ import annotations

import torch
from torch import Tensor


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None = None,
    lengths: Tensor | None = None,
    causal: bool = False,
    scale: float = 1.0,
    kept: Tensor | None = None,
) -> Tensor:
    """The arguments of `models.kernels.attention.attention`, and what dropout multiplies the probabilities by."""
    q, k, v = (part.double().transpose(1, 2) for part in (q, k, v))
    scores = scale * q @ k.transpose(2, 3)
    queries, keys = (torch.arange(n, device=q.device) for n in scores.shape[2:])
    distances = keys - queries.unsqueeze(1)
    if table is not None:
        scores = scores + table.double()[:, distances + len(queries) - 1]
    if lengths is not None:
        scores = scores.masked_fill((keys >= lengths[:, None])[:, None, None], -torch.inf)
    if causal:
        scores = scores.masked_fill(distances > 0, -torch.inf)
    probabilities = scores.softmax(-1)
    probabilities = probabilities if kept is None else probabilities * kept
    return (probabilities @ v).transpose(1, 2)


def kept_by_dropout(attention: object, q: Tensor, keys: int, dropout: float, seed: int) -> Tensor:
    """(B, H, N, M) factors of the kernel's dropout, 0 or 1 / (1 - dropout): values that are rows of 1 show them."""
    batch, _, heads, width = q.shape
    columns = []
    for start in range(0, keys, width):
        v = torch.eye(keys, dtype=q.dtype, device=q.device)[:, start : start + width]
        v = torch.nn.functional.pad(v, (0, width - v.shape[1]))[None, :, None].expand(batch, keys, heads, width)
        torch.manual_seed(seed)
        columns.append(attention(torch.zeros_like(q), torch.zeros_like(v), v, dropout=dropout))  # type: ignore[operator]
    return torch.cat(columns, -1)[..., :keys].transpose(1, 2).gt(0).double() / (1 - dropout)
