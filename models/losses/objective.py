"""The loss of a batch: the pass of the model, or passes of several, and the sum over its target tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.forward import INPUTS, DecoderOutput, decode_batch, encode_batch
from models.kernels.casts import autocast_dtype
from models.losses.chunked import Criterion, chunked_loss, most_tokens, output_rows
from models.losses.cross_entropy import token_loss_and_correct
from models.losses.divergence import COPIES, Distillation, RDrop
from models.losses.soft_cap import SoftCapped
from models.meter import StepMeter, TextMeter

Forward: TypeAlias = Callable[[PreTrainedModel, Mapping[str, Any]], DecoderOutput]


@dataclass(frozen=True)
class Teacher:
    """A model that a student learns from: it is in evaluation mode, not trained, and in no checkpoint.

    Args:
        temperature: softens both distributions, above 0.
        share: of the divergence in the loss, 0 to 1; the rest is cross-entropy.
        digest: changes with the weights.
    """

    model: PreTrainedModel
    temperature: float
    share: float
    digest: str = ""


@dataclass(frozen=True)
class Objective:
    """What a training step minimizes: the cross-entropy, or with a teacher or R-Drop more than that."""

    label_smoothing: float = 0.0
    rdrop_alpha: float = 0.0
    teacher: Teacher | None = None
    z_loss: float = 0.0
    text_apart: bool = False  # batches of a validation tell the tokens of the text from sentinels and ends
    encoder_alone: bool = False  # the labels are those of the encoder's states; not with a teacher

    @property
    def forward(self) -> Forward:
        """The pass that the loss is of."""
        return encode_batch if self.encoder_alone else decode_batch

    def __call__(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor:
        """Give the loss summed over the target tokens of a batch of `datamodules.collate`, on the model's device."""
        if self.teacher is not None:
            return _distillation_loss(model, self.teacher, batch, self.label_smoothing)
        if self.rdrop_alpha:
            return _rdrop_loss(model, batch, self.rdrop_alpha, self.label_smoothing, self.forward)
        return batch_loss(model, batch, self.label_smoothing, z_loss=self.z_loss, forward=self.forward)[0]

    def begin_step(self, model: PreTrainedModel, batch: Mapping[str, Any], seed_of: Callable[[int], int]) -> None:
        """Nothing: the loss of a step is the sum of those of its micro-batches."""

    def validate(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The plain cross-entropy summed over the target tokens of a batch, how many were predicted right, and the sum
        over the tokens of the text, where they are told apart."""
        output = self.forward(model, batch)
        options = {"token_weights": batch.get("token_weights"), "count_correct": True}
        loss, correct = _token_loss(output, batch, **options)
        loss = _with_routers(loss, output, batch)
        if not self.text_apart:
            return loss, correct
        of_text, _ = _token_loss(output, batch, token_weights=batch["text_weights"], count_correct=False)
        return loss, correct, of_text

    def validation_meter(self) -> StepMeter:
        """What adds up the batches of a validation."""
        return TextMeter() if self.text_apart else StepMeter()


def batch_loss(
    model: PreTrainedModel,
    batch: Mapping[str, Any],
    label_smoothing: float = 0.0,
    count_correct: bool = False,
    z_loss: float = 0.0,
    forward: Forward = decode_batch,
) -> tuple[Tensor, Tensor]:
    """Give `token_loss_and_correct` of one pass over a batch of `datamodules.collate`, on the model's device."""
    output = forward(model, batch)
    loss, correct = _token_loss(
        output,
        batch,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        token_weights=batch.get("token_weights"),
        count_correct=count_correct,
    )
    return _with_routers(loss, output, batch), correct


def _token_loss(output: DecoderOutput, batch: Mapping[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    return token_loss_and_correct(
        output.hidden,
        output.weight,
        batch["labels"],
        target_index=batch["target_index"],
        bias=output.bias,
        scale=output.scale,
        softcap=output.softcap,
        **options,
    )


def _distillation_loss(
    model: PreTrainedModel, teacher: Teacher, batch: Mapping[str, Any], label_smoothing: float
) -> Tensor:
    index, labels = batch["target_index"], batch["labels"]
    with torch.no_grad():
        taught = decode_batch(teacher.model, batch)
        dtype = autocast_dtype(labels.device) or taught.hidden.dtype
        criterion = Distillation(
            hidden=_of_targets(taught, index).to(dtype),
            rows=output_rows(taught.weight, dtype),
            bias=_flat(taught.bias),
            temperature=teacher.temperature,
            share=teacher.share,
            label_smoothing=label_smoothing,
            token_weights=batch.get("token_weights"),
            softcap=taught.softcap,
        )
    output = decode_batch(model, batch)
    loss = _summed(output, _of_targets(output, index), labels.reshape(-1)[index], criterion)
    return _with_routers(loss, output, batch)


def _rdrop_loss(
    model: PreTrainedModel, batch: Mapping[str, Any], alpha: float, label_smoothing: float, forward: Forward
) -> Tensor:
    """Every row stands twice in one pass, so that the copies have dropout of their own."""
    index, labels = batch["target_index"], batch["labels"]
    output = forward(model, {name: batch[name].repeat(2, 1) for name in INPUTS if name in batch})
    neighbours = torch.stack((index, index + labels.numel()), 1).flatten()
    criterion = RDrop(alpha, label_smoothing, batch.get("token_weights"))
    loss = _summed(output, _of_targets(output, neighbours), labels.reshape(-1)[index], criterion)
    return _with_routers(loss, output, batch)


def _with_routers(loss: Tensor, output: DecoderOutput, batch: Mapping[str, Any]) -> Tensor:
    """The loss and that of a mixture's routers, once for each target token (with its weight) as the whole is a sum.

    So it is the library's loss where one batch is a step, and the mean of those of several, by target tokens.
    """
    if isinstance(output.router_loss, float):
        return loss
    weights = batch.get("token_weights")
    return loss + output.router_loss * (len(batch["target_index"]) if weights is None else weights.sum())


def _of_targets(output: DecoderOutput, index: Tensor) -> Tensor:
    """(places of `index`, d_model) hidden states, scaled as the logits are."""
    hidden = output.hidden.reshape(-1, output.hidden.shape[-1]).index_select(0, index)
    return hidden if output.scale == 1.0 else hidden * output.scale


def _flat(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.reshape(-1)


def _summed(output: DecoderOutput, hidden: Tensor, targets: Tensor, criterion: Criterion) -> Tensor:
    tokens = most_tokens(output.weight.shape[0], hidden.device, copies=COPIES * criterion.passes)
    if output.softcap:
        criterion = SoftCapped(criterion, output.softcap)
    return chunked_loss(hidden, output.weight, _flat(output.bias), targets, criterion, tokens)[0]
