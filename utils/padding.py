"""Padding of token ids to batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IGNORE_INDEX = -100  # the label of a padded position, which no loss counts
TokenIds: TypeAlias = npt.NDArray[np.integer[Any]]


def pad_sources(sources: Sequence[np.ndarray], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(batch, source_length) ids and attention mask of encoded sources."""
    lengths = np.array([len(ids) for ids in sources])
    width = int(lengths.max())
    ids = np.full((len(sources), width), pad_token_id, dtype=np.int64)
    for row, source in enumerate(sources):
        ids[row, : len(source)] = source
    mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def _pad(
    sequences: Sequence[TokenIds], fill: int, multiple: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Give the sequences as one matrix padded with `fill` on the right, and where its tokens are."""
    lengths = np.fromiter((len(sequence) for sequence in sequences), np.int64, len(sequences))
    width = max(1, -(-int(lengths.max()) // multiple)) * multiple
    is_token = np.arange(width) < lengths[:, None]
    padded = np.full(is_token.shape, fill, np.int64)
    padded[is_token] = np.concatenate(sequences)
    return padded, is_token
