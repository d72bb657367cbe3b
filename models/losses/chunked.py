"""A loss of logits that are computed chunk by chunk of tokens, with its gradient, so that one chunk is ever alive."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.kernels.casts import autocast_dtype
from models.kernels.products import aligned_rows, product

MAX_LOGITS_CPU = 2**25  # logits alive at a time: 128 MiB in fp32
MAX_LOGITS_ACCELERATOR = 2**28  # 1 GiB; a chunk also costs a pass over the gradient of the output embedding
FP16_FACTOR = 2.0**10  # of gradients in fp16: probabilities from 6e-11 count, and token weights up to 63 fit


class Criterion(Protocol):
    """What is computed of the logits of some tokens."""

    @property
    def passes(self) -> int:
        """Hidden states of each token, one after the other."""

    def __call__(
        self, logits: Tensor, target: Tensor, vocabulary: int, places: slice, *, with_gradient: bool
    ) -> Tensor:
        """Give the summed loss, and turn `logits` in place into its gradient where that is asked for.

        Args:
            logits: (tokens * passes, vocabulary or more), what is more is -inf; its gradient is 0.
            target: (tokens,) ids.
            places: of the tokens among all of the batch.
        """


def most_tokens(vocabulary: int, device: torch.device, max_logits: int | None = None, copies: int = 1) -> int:
    """The tokens of a chunk; `max_logits` None = by device. `copies` of their logits are alive at a time."""
    if max_logits is None:
        max_logits = MAX_LOGITS_CPU if device.type == "cpu" else MAX_LOGITS_ACCELERATOR
    return max(1, max_logits // (vocabulary * copies))


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """The type of logits and sums: fp32, or fp64 for fp64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def output_rows(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The output embedding as it is multiplied with: (vocabulary and what aligns it, width) in `dtype`."""
    # A copy on CUDA is aligned; one for that alone, in fp32, would cost more memory than it is worth.
    copied = weight.is_cuda and weight.dtype != dtype
    return aligned_rows(weight, dtype) if copied else weight.to(dtype)


def logits_of(hidden: Tensor, rows: Tensor, bias: Tensor | None, vocabulary: int, dtype: torch.dtype) -> Tensor:
    """(tokens, vocabulary and what aligns it) logits in `dtype`; what is more than the vocabulary is -inf."""
    logits = product(hidden, rows.T, dtype)
    if logits.shape[1] > vocabulary:
        logits[:, vocabulary:] = -torch.inf
    if bias is not None:
        logits[:, :vocabulary] += bias
    return logits


def chunked_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    criterion: Criterion,
    chunk_tokens: int,
    count_correct: bool = False,
) -> tuple[Tensor, Tensor]:
    """Give the sum of a criterion over all tokens, and how many of them have the largest logit (0 if not counted).

    Args:
        hidden: (target tokens * passes, d_model), scaled as the logits are.
        weight: (vocabulary, d_model) the output embedding.
        bias: (vocabulary,) or None.
        targets: (target tokens,) ids.
    """
    with_gradient = torch.is_grad_enabled()
    loss, correct = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, criterion, chunk_tokens, with_gradient, count_correct
    )
    return loss, correct


class _ChunkedLoss(torch.autograd.Function):
    """The loss of `chunked_loss`; the gradient is computed along with it.

    The loss is the root of the graph but for a factor, so its gradient is known up to that factor in the forward
    pass. `backward` only multiplies, in place, and so runs once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        criterion: Criterion,
        chunk_tokens: int,
        with_gradient: bool,
        count_correct: bool,
    ) -> tuple[Tensor, Tensor]:
        device, vocabulary, passes = hidden.device.type, weight.shape[0], criterion.passes
        matmul_dtype = autocast_dtype(hidden.device) or hidden.dtype
        total_dtype = accumulation_dtype(hidden)
        needs = [with_gradient and needed for needed in ctx.needs_input_grad[:3]]
        grad_hidden = torch.empty_like(hidden, dtype=total_dtype) if needs[0] else None
        grad_weight: Tensor | None = None
        grad_bias = torch.zeros_like(bias, dtype=total_dtype) if needs[2] and bias is not None else None
        loss = hidden.new_zeros((), dtype=total_dtype)
        correct = targets.new_zeros(())
        with torch.autocast(device, enabled=False):
            rows = output_rows(weight, matmul_dtype)
            for start in range(0, max(1, len(targets)), chunk_tokens):
                places = slice(start, start + chunk_tokens)
                of_hidden = slice(passes * start, passes * (start + chunk_tokens))
                chunk, target = hidden[of_hidden].to(matmul_dtype), targets[places]
                logits = logits_of(chunk, rows, bias, vocabulary, total_dtype)
                if count_correct:
                    correct += (logits.argmax(-1) == target).sum()
                loss += criterion(logits, target, vocabulary, places, with_gradient=any(needs))
                if any(needs):
                    gradient = (logits.mul_(FP16_FACTOR) if matmul_dtype == torch.float16 else logits).to(matmul_dtype)
                    if grad_bias is not None:
                        grad_bias += logits[:, :vocabulary].sum(0)
                    if grad_hidden is not None:
                        grad_hidden[of_hidden] = product(gradient, rows, total_dtype)
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
        return (*found, None, None, None, None, None)


def _plus_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Give total + left @ right, in place where there is a total yet."""
    if total is None:
        return product(left, right, dtype)
    return total.addmm_(left, right) if left.dtype == dtype else total.add_(product(left, right, dtype))
