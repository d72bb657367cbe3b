"""Cross-entropy summed over target tokens, straight from the decoder's hidden states.

The caller divides the sum by the number of target tokens of the whole optimizer step over all ranks (known from the
`BatchPlan`), so gradient accumulation and more devices give the gradient of one big batch.

Only positions with a label are projected on the vocabulary. Where their logits would be many (mT5: 250,112 a token),
loss and gradient are computed chunk by chunk, and one chunk of logits is all that is ever alive.

Label smoothing: (1 - s) * -log p(target) + s * mean over the vocabulary of -log p, that is, a target distribution
mixed with the uniform one (Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7), as in
`torch.nn.functional.cross_entropy` and transformers' `LabelSmoother`. fairseq's `label_smoothed_cross_entropy` gives
the target no part of the uniform share: its s is this s * (V - 1) / V.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from models.forward import decode_teacher_forced
from utils.padding import IGNORE_INDEX

MAX_LOGITS_CPU = 2**25  # logits alive at a time: 128 MiB in fp32
MAX_LOGITS_ACCELERATOR = 2**28  # 1 GiB; a chunk also costs a pass over the gradient of the output embedding


def token_loss_sum(hidden: Tensor, weight: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """Give the loss of `token_loss_and_correct`, which has the same options, without counting."""
    return token_loss_and_correct(hidden, weight, labels, count_correct=False, **options)[0]


def token_loss_and_correct(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    target_index: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
    label_smoothing: float = 0.0,
    token_weights: Tensor | None = None,
    max_logits: int | None = None,
    count_correct: bool = True,
) -> tuple[Tensor, Tensor]:
    """Give the cross-entropy summed over the labels that are not -100, and how many of them have the largest logit.

    The loss is a scalar in fp32 (fp64 for fp64 input), the count an int64 scalar. Logits are
    `scale * hidden @ weight.T + bias`; T5 with `config.scale_decoder_outputs` needs `scale=d_model**-0.5`, BART has
    `bias=final_logits_bias`. Without any label the loss is exactly 0, and so are the gradients.

    Args:
        hidden: (batch, target_length, d_model) the decoder's last hidden states.
        weight: (vocabulary, d_model) the output embedding.
        labels: (batch, target_length) target ids, -100 where there is none.
        target_index: (target tokens,) flat places of the labels that are not -100; without it they are searched for,
            which synchronises with a GPU.
        bias: (vocabulary,) or (1, vocabulary).
        label_smoothing: share of the uniform distribution, 0 = off.
        token_weights: (target tokens,) factors of the tokens' cross-entropies; None = all 1.
        max_logits: tokens * vocabulary above which the work is done in chunks of that size; None = by device.
        count_correct: for validation; without it the count is 0.
    """
    labels = labels.reshape(-1)
    if target_index is None:
        target_index = torch.nonzero(labels != IGNORE_INDEX).squeeze(1)
    targets = labels.index_select(0, target_index)
    hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, target_index)  # (target tokens, d_model)
    if scale != 1.0:
        hidden = hidden * scale
    bias = None if bias is None else bias.reshape(-1)
    if max_logits is None:
        max_logits = MAX_LOGITS_CPU if hidden.device.type == "cpu" else MAX_LOGITS_ACCELERATOR
    chunk_tokens = max(1, max_logits // weight.shape[0])
    if len(targets) > chunk_tokens:
        with_gradient = torch.is_grad_enabled()
        loss, correct = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, targets, label_smoothing, token_weights, chunk_tokens, with_gradient, count_correct
        )
        return loss, correct
    logits = _logits(hidden, weight, bias)
    if token_weights is None:
        loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    else:
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
        loss = (losses * token_weights).sum()
    correct = (logits.detach().argmax(-1) == targets).sum() if count_correct else targets.new_zeros(())
    return loss, correct


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


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Project on the vocabulary, in autocast's precision where it is on; the result is fp32 (or fp64)."""
    logits = F.linear(hidden, weight)
    logits = logits.to(_accumulation_dtype(logits))
    return logits if bias is None else logits + bias


def _accumulation_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class _ChunkedLoss(torch.autograd.Function):
    """The loss of `token_loss_and_correct` over chunks of tokens; the gradient is computed along with the loss.

    The loss is the root of the graph but for a factor, so its gradient is known up to that factor in the forward
    pass: d loss / d logits = softmax - target distribution. `backward` only multiplies.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        label_smoothing: float,
        token_weights: Tensor | None,
        chunk_tokens: int,
        with_gradient: bool,
        count_correct: bool,
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        matmul_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        total_dtype = _accumulation_dtype(hidden)
        needs = [with_gradient and needed for needed in ctx.needs_input_grad[:3]]
        grad_hidden = torch.empty_like(hidden) if needs[0] else None
        grad_weight = torch.zeros_like(weight, dtype=total_dtype) if needs[1] else None
        grad_bias = torch.zeros_like(bias, dtype=total_dtype) if needs[2] and bias is not None else None
        loss = hidden.new_zeros((), dtype=total_dtype)
        correct = targets.new_zeros(())
        with torch.autocast(device, enabled=False):
            cast_weight = weight.to(matmul_dtype)
            for start in range(0, len(targets), chunk_tokens):
                chunk = hidden[start : start + chunk_tokens].to(matmul_dtype)
                target = targets[start : start + chunk_tokens]
                logits = (chunk @ cast_weight.T).to(total_dtype)  # (chunk tokens, vocabulary)
                if bias is not None:
                    logits += bias
                if count_correct:
                    correct += (logits.argmax(-1) == target).sum()
                factors = None if token_weights is None else token_weights[start : start + chunk_tokens]
                loss += _to_gradient(logits, target, label_smoothing, factors)
                if grad_bias is not None:
                    grad_bias += logits.sum(0)
                cast_gradient = logits.to(matmul_dtype)
                if grad_hidden is not None:
                    grad_hidden[start : start + chunk_tokens] = cast_gradient @ cast_weight
                if grad_weight is not None and matmul_dtype == total_dtype:
                    grad_weight.addmm_(cast_gradient.T, chunk)
                elif grad_weight is not None:
                    grad_weight += cast_gradient.T @ chunk
        ctx.save_for_backward(
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _grad_correct: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if saved is None else saved * grad_loss.to(saved.dtype) for saved in ctx.saved_tensors)
        return (*gradients, None, None, None, None, None, None)


def _to_gradient(logits: Tensor, target: Tensor, label_smoothing: float, factors: Tensor | None) -> Tensor:
    """Give the summed loss of one chunk, and turn `logits` in place into the loss's gradient with respect to them.

    Args:
        factors: (tokens,) weights of the tokens; None = all 1.
    """
    column = target.unsqueeze(1)
    log_normalizer = logits.logsumexp(-1, keepdim=True)  # (tokens, 1)
    losses = [(log_normalizer - logits.gather(1, column)) * (1.0 - label_smoothing)]
    if label_smoothing:
        losses.append((log_normalizer - logits.mean(-1, keepdim=True)) * label_smoothing)
    logits.sub_(log_normalizer).exp_()
    if label_smoothing:
        logits.sub_(label_smoothing / logits.shape[1])
    logits.scatter_(1, column, logits.gather(1, column) - (1.0 - label_smoothing))
    if factors is not None:
        losses = [part * factors.unsqueeze(1) for part in losses]
        logits.mul_(factors.unsqueeze(1))
    return torch.stack([part.sum() for part in losses]).sum() if label_smoothing else losses[0].sum()
