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


def pad_sources(sources: Sequence[TokenIds], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(batch, source_length) ids and attention mask of encoded sources."""
    ids, is_token = pad(sources, pad_token_id)
    return torch.from_numpy(ids).to(device), torch.from_numpy(is_token.astype(np.int64)).to(device)


def pad(
    sequences: Sequence[TokenIds], fill: int, multiple: int = 1
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Give the sequences as one matrix padded with `fill` on the right, and where its tokens are."""
    lengths = np.fromiter((len(sequence) for sequence in sequences), np.int64, len(sequences))
    width = max(1, -(-int(lengths.max()) // multiple)) * multiple
    is_token = np.arange(width) < lengths[:, None]
    padded = np.full(is_token.shape, fill, np.int64)
    padded[is_token] = np.concatenate(sequences)
    return padded, is_token
