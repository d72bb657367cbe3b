"""Cross-entropy summed over target tokens, straight from the decoder's hidden states.

The caller divides the sum by the number of target tokens of the whole optimizer step over all ranks (known from the
`BatchPlan`), so gradient accumulation and more devices give the gradient of one big batch.

Only positions with a label are projected on the vocabulary. Where their logits would be many (mT5: 250,112 a token)
and on a GPU always, loss and gradient are computed chunk by chunk, in place: one chunk of logits is all that is ever
alive. There, products of bf16 and fp16 stay in fp32 until the loss is computed.

Label smoothing: (1 - s) * -log p(target) + s * mean over the vocabulary of -log p, that is, a target distribution
mixed with the uniform one (Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7), as in
`torch.nn.functional.cross_entropy` and transformers' `LabelSmoother`. fairseq's `label_smoothed_cross_entropy` gives
the target no part of the uniform share: its s is this s * (V - 1) / V.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses.chunked import Criterion, accumulation_dtype, chunked_loss, most_tokens
from models.losses.soft_cap import SoftCapped
from models.losses.z_loss import WithZLoss
from utils.padding import IGNORE_INDEX


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
    softcap: float = 0.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    token_weights: Tensor | None = None,
    max_logits: int | None = None,
    count_correct: bool = True,
) -> tuple[Tensor, Tensor]:
    """Give the cross-entropy summed over the labels that are not -100, and how many of them have the largest logit.

    The loss is a scalar in fp32 (fp64 for fp64 input), the count an int64 scalar. Logits are
    `scale * hidden @ weight.T + bias`; T5 with `config.scale_decoder_outputs` needs `scale=d_model**-0.5`, BART has
    `bias=final_logits_bias`; `softcap` bounds them, 0 = off. Without any label the loss is exactly 0, and so are the
    gradients.

    Args:
        hidden: (batch, target_length, d_model) the decoder's last hidden states.
        weight: (vocabulary, d_model) the output embedding.
        labels: (batch, target_length) target ids, -100 where there is none.
        target_index: (target tokens,) flat places of the labels that are not -100; without it they are searched for,
            which synchronises with a GPU.
        bias: (vocabulary,) or (1, vocabulary).
        label_smoothing: share of the uniform distribution, 0 = off.
        z_loss: weight of `z_loss.WithZLoss`, 0 = off.
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
    chunk_tokens = most_tokens(weight.shape[0], hidden.device, max_logits)
    if hidden.device.type != "cpu" or len(targets) > chunk_tokens or z_loss:
        criterion: Criterion = CrossEntropy(label_smoothing, token_weights)
        criterion = WithZLoss(criterion, z_loss, token_weights) if z_loss else criterion
        criterion = SoftCapped(criterion, softcap) if softcap else criterion
        return chunked_loss(hidden, weight, bias, targets, criterion, chunk_tokens, count_correct)
    logits = _logits(hidden, weight, bias)
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    if token_weights is None:
        loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    else:
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
        loss = (losses * token_weights).sum()
    correct = (logits.detach().argmax(-1) == targets).sum() if count_correct else targets.new_zeros(())
    return loss, correct


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Project on the vocabulary, in autocast's precision where it is on; the result is fp32 (or fp64)."""
    logits = F.linear(hidden, weight)
    logits = logits.to(accumulation_dtype(logits))
    return logits if bias is None else logits + bias


@dataclass(frozen=True)
class CrossEntropy:
    """The criterion of `chunked_loss` that is the cross-entropy.

    Args:
        token_weights: (target tokens,) factors; None = all 1.
    """

    label_smoothing: float = 0.0
    token_weights: Tensor | None = None
    passes: int = 1

    def __call__(
        self, logits: Tensor, target: Tensor, vocabulary: int, places: slice, *, with_gradient: bool
    ) -> Tensor:
        """See `Criterion`."""
        factors = None if self.token_weights is None else self.token_weights[places]
        return cross_entropy_in_place(logits, target, vocabulary, self.label_smoothing, factors, with_gradient)


def cross_entropy_in_place(
    logits: Tensor,
    target: Tensor,
    vocabulary: int,
    label_smoothing: float,
    factors: Tensor | None,
    with_gradient: bool = True,
) -> Tensor:
    """Give the summed loss of (tokens, vocabulary or more) logits, and turn them into its gradient: softmax - target
    distribution; without a gradient into probabilities. `factors` are (tokens,) weights; None = all 1."""
    loss = _to_probabilities(logits, target, vocabulary, label_smoothing, factors)
    if with_gradient:
        _to_gradient(logits, target, vocabulary, label_smoothing, factors)
    return loss


def _to_probabilities(
    logits: Tensor, target: Tensor, vocabulary: int, label_smoothing: float, factors: Tensor | None
) -> Tensor:
    """Give the summed loss of one chunk, and turn `logits` in place into probabilities.

    The normalizer is had from the softmax: of the largest logit the probability is at least 1 / vocabulary, so that
    largest logit - log(its probability) is as exact as a pass of its own, without the second copy of the logits that
    `logsumexp` makes.

    Args:
        logits: (tokens, vocabulary or more), what is more is -inf.
        factors: (tokens,) weights of the tokens; None = all 1.
    """
    chosen = logits.gather(1, target.unsqueeze(1))  # (tokens, 1)
    mean = logits[:, :vocabulary].mean(-1, keepdim=True) if label_smoothing else None
    largest = logits.amax(-1, keepdim=True)
    torch.softmax(logits, -1, out=logits)
    log_normalizer = largest - logits.amax(-1, keepdim=True).log_()
    losses = log_normalizer - chosen
    if mean is not None:
        losses = losses * (1.0 - label_smoothing) + (log_normalizer - mean) * label_smoothing
    return (losses if factors is None else losses * factors.unsqueeze(1)).sum()


def _to_gradient(
    probabilities: Tensor, target: Tensor, vocabulary: int, label_smoothing: float, factors: Tensor | None
) -> None:
    """Turn probabilities in place into the gradient of the summed loss with respect to the logits."""
    if label_smoothing:
        probabilities[:, :vocabulary].sub_(label_smoothing / vocabulary)
    column = target.unsqueeze(1)
    probabilities.scatter_(1, column, probabilities.gather(1, column) - (1.0 - label_smoothing))
    if factors is not None:
        probabilities.mul_(factors.unsqueeze(1))
