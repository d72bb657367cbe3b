"""The loss of a batch: one pass of the model and the sum over its target tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from models.forward import decode_teacher_forced
from models.losses.cross_entropy import token_loss_and_correct


def batch_loss(
    model: PreTrainedModel, batch: Mapping[str, Any], label_smoothing: float = 0.0, count_correct: bool = False
) -> tuple[Tensor, Tensor]:
    """Give `token_loss_and_correct` of one pass over a batch of `datamodules.collate`, on the model's device."""
    labels = batch["labels"]
    output = decode_teacher_forced(model, batch["input_ids"], batch["attention_mask"], labels)
    return token_loss_and_correct(
        output.hidden,
        output.weight,
        labels,
        target_index=batch["target_index"],
        bias=output.bias,
        scale=output.scale,
        label_smoothing=label_smoothing,
        token_weights=batch.get("token_weights"),
        count_correct=count_correct,
    )
