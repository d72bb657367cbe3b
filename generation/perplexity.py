"""Perplexity of references: how well a model foresees their tokens."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from datamodules.batching import BatchOptions, evaluation_plan
from datamodules.collate import collate
from datamodules.encoding.store import EncodedSplit
from generation.batch_limits import BatchLimits
from metrics.registry import Figure
from models.losses.objective import batch_loss
from utils.tables import counted


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel, split: EncodedSplit, pad_token_id: int, limits: BatchLimits, device: torch.device
) -> Figure:
    """exp of the mean cross-entropy of a target token under teacher forcing: of the `val_loss` of these rows.

    Rows without a target are left out; NaN without any.

    Args:
        model: in evaluation mode, on `device`.
        limits: of a batch; where there is one of tokens, the targets' count too, and rows are not counted.
    """
    split = split.subset(np.flatnonzero(split.target_lengths))
    multiple = 8 if device.type == "cuda" else 1
    rows_at_once = 0 if limits.tokens else limits.rows
    options = BatchOptions(rows_at_once, limits.tokens, accumulate=1, pad_to_multiple_of=multiple)
    plan = evaluation_plan(split.source_lengths, split.target_lengths, options, 1)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for index in range(plan.batches_per_rank if len(split) else 0):
        rows = [(split.source_ids(int(row)), split.target_ids(int(row))) for row in plan.batch(0, index)]
        batch = collate(rows, pad_token_id, multiple)
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        total += batch_loss(model, moved)[0].double()
    tokens = int(split.target_lengths.sum())
    value = math.exp(float(total) / tokens) if tokens else math.nan
    return Figure(value, f"of {counted(tokens, 'token')} of the references, teacher-forced")
