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

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.kernels.casts import autocast_dtype
from models.kernels.products import aligned_rows, product
from utils.padding import IGNORE_INDEX

MAX_LOGITS_CPU = 2**25  # logits alive at a time: 128 MiB in fp32
MAX_LOGITS_ACCELERATOR = 2**28  # 1 GiB; a chunk also costs a pass over the gradient of the output embedding
FP16_FACTOR = 2.0**10  # of gradients in fp16: probabilities from 6e-11 count, and token weights up to 63 fit


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
    if hidden.device.type != "cpu" or len(targets) > chunk_tokens:
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
    pass: d loss / d logits = softmax - target distribution. `backward` only multiplies, in place, and so runs once.
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
        device, vocabulary = hidden.device.type, weight.shape[0]
        matmul_dtype = autocast_dtype(hidden.device) or hidden.dtype
        total_dtype = _accumulation_dtype(hidden)
        needs = [with_gradient and needed for needed in ctx.needs_input_grad[:3]]
        grad_hidden = torch.empty_like(hidden, dtype=total_dtype) if needs[0] else None
        grad_weight: Tensor | None = None
        grad_bias = torch.zeros_like(bias, dtype=total_dtype) if needs[2] and bias is not None else None
        loss = hidden.new_zeros((), dtype=total_dtype)
        correct = targets.new_zeros(())
        with torch.autocast(device, enabled=False):
            # A copy on CUDA is aligned; one for that alone, in fp32, would cost more memory than it is worth.
            copied = weight.is_cuda and weight.dtype != matmul_dtype
            rows = aligned_rows(weight, matmul_dtype) if copied else weight.to(matmul_dtype)
            for start in range(0, max(1, len(targets)), chunk_tokens):
                places = slice(start, start + chunk_tokens)
                chunk, target = hidden[places].to(matmul_dtype), targets[places]
                factors = None if token_weights is None else token_weights[places]
                logits = product(chunk, rows.T, total_dtype)  # (chunk tokens, vocabulary and what aligns it)
                if logits.shape[1] > vocabulary:
                    logits[:, vocabulary:] = -torch.inf
                if bias is not None:
                    logits[:, :vocabulary] += bias
                if count_correct:
                    correct += (logits.argmax(-1) == target).sum()
                loss += _to_probabilities(logits, target, vocabulary, label_smoothing, factors)
                if any(needs):
                    _to_gradient(logits, target, vocabulary, label_smoothing, factors)
                    gradient = (logits.mul_(FP16_FACTOR) if matmul_dtype == torch.float16 else logits).to(matmul_dtype)
                    if grad_bias is not None:
                        grad_bias += logits[:, :vocabulary].sum(0)
                    if grad_hidden is not None:
                        grad_hidden[places] = product(gradient, rows, total_dtype)
                    if needs[1]:
                        grad_weight = _plus_product(grad_weight, gradient[:, :vocabulary].T, chunk, total_dtype)
                    del gradient
                del logits  # before the next chunk has its own
        ctx.gradients = [grad_hidden, grad_weight, grad_bias]
        ctx.dtypes = [hidden.dtype, weight.dtype, None if bias is None else bias.dtype]
        ctx.divisor = FP16_FACTOR if matmul_dtype == torch.float16 else 1.0
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _grad_correct: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradient of this loss was taken already")
        gradients, ctx.gradients = ctx.gradients, None  # no reference is left, so autograd keeps them without a copy
        factor = grad_loss if ctx.divisor == 1.0 else grad_loss / ctx.divisor
        found = [
            None if gradient is None else gradient.mul_(factor).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*found, None, None, None, None, None, None)


def _plus_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Give total + left @ right, in place where there is a total yet."""
    if total is None:
        return product(left, right, dtype)
    return total.addmm_(left, right) if left.dtype == dtype else total.add_(product(left, right, dtype))


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
