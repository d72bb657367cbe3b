"""Rows of token ids -> the padded tensors of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor

from utils.padding import IGNORE_INDEX, TokenIds, pad

Row: TypeAlias = tuple[TokenIds, TokenIds | None]


class Batch(TypedDict):
    """One batch; all tensors are int64. A dict at run time, so Lightning moves the tensors to the device."""

    input_ids: Tensor  # (batch, source_length)
    attention_mask: Tensor  # (batch, source_length) 1 = token, 0 = padding
    labels: Tensor  # (batch, target_length) padded with IGNORE_INDEX
    target_index: Tensor  # (target tokens,) places of the tokens in the flat labels: no device sync to find them
    num_target_tokens: int  # on the host: no device sync to read it
    # Of rows that hold several documents: which of them a token belongs to, from 1 on; 0 = padding.
    source_segments: NotRequired[Tensor]  # (batch, source_length)
    target_segments: NotRequired[Tensor]  # (batch, target_length)


def collate(rows: Sequence[Row], pad_token_id: int, pad_to_multiple_of: int = 1, separator: int | None = None) -> Batch:
    """Give the padded tensors of `rows`, both lengths rounded up to `pad_to_multiple_of` tokens.

    With `separator` a row holds documents that do not see each other; it is the last token of each.

    A target may hold ignored labels itself; a row without target has no others. No rows at all give one dummy row (one
    pad token that is attended to, labels ignored), so that a rank without rows still runs the step: its loss is exactly
    0 and so are its gradients.
    """
    rows = rows or [(np.array([pad_token_id]), None)]
    no_target = np.zeros(0, np.int64)
    input_ids, is_token = pad([source for source, _ in rows], pad_token_id, pad_to_multiple_of)
    targets = [no_target if target is None else target for _, target in rows]
    labels, is_target = pad(targets, IGNORE_INDEX, pad_to_multiple_of)
    target_index = np.flatnonzero(labels != IGNORE_INDEX)
    batch: Batch = {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(is_token.astype(np.int64)),
        "labels": torch.from_numpy(labels),
        "target_index": torch.from_numpy(target_index),
        "num_target_tokens": len(target_index),
    }
    if separator is not None:
        batch["source_segments"] = _segments(input_ids, is_token, separator)
        batch["target_segments"] = _segments(labels, is_target, separator)
    return batch


def _segments(ids: np.ndarray, is_token: np.ndarray, separator: int) -> Tensor:
    ends = ids == separator
    return torch.from_numpy((ends.cumsum(1) - ends + 1) * is_token)
