"""Transformer sub-layers as single autograd functions for the CPU: `feed_forward` and `attention`.

Each computes `residual + dropout(sub-layer(norm(x)))` with the same values and gradients as the modules of
`transformers` in fp32. They are faster because the work goes through the cache in chunks of rows (an elementwise
operation on 1 MB costs a third of the same operation on 10 MB), because scalings are folded into the weights (the RMS
norm's weight, the query scale, the dropout scales, GELU's half: a weight is smaller than an activation), because the
backward pass is written out by hand and recomputes what is cheaper to compute than to load, and because a dropout
mask takes one byte of randomness an element instead of a double.

Shapes: `x` (batch, length, width); B batch, H heads, N query length, M key length, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Floats of the residual stream in one chunk, for each thread: a dozen such buffers should stay near a 2 MB L2 cache.
CHUNK_ELEMENTS = 65_536
CHUNK_MIN_ROWS = 256  # below this the matmuls lose more than the cache wins
MIN_DROPOUT = 1 / 64  # below this, and above 1 - it, a byte of randomness is too coarse: PyTorch's own dropout is used

GELU_LINEAR = math.sqrt(2.0 / math.pi)
GELU_CUBIC = GELU_LINEAR * 0.044715
ACTIVATIONS = ("gelu_tanh", "gelu", "relu", "silu")


def dropout_supported(p: float) -> bool:
    """True when `keep_mask` can serve a dropout probability `p` (0 needs no mask)."""
    return p == 0.0 or MIN_DROPOUT <= p <= 1.0 - MIN_DROPOUT


def keep_mask(shape: tuple[int, ...], p: float) -> Tensor:
    """A uint8 tensor of `shape` on the CPU: 0 with probability `p` exactly, else 1, from torch's default generator.

    One random byte an element is compared with a threshold of 256 p; the fraction of that threshold is drawn once
    a call, so each element's probability is `p` and not its nearest 256th.
    """
    count = math.prod(shape)
    words = torch.empty(count // 8 + 2, dtype=torch.int64).random_(-(2**63), None)
    threshold = int(256 * p)
    if int(words[-1].item()) & 0xFFFFFF < (256 * p - threshold) * 2**24:
        threshold += 1
    return words.view(torch.uint8)[:count].view(shape).ge_(threshold)


class FeedForwardWeights(NamedTuple):
    """Parameters of a feed-forward sub-layer; `up` is the linear branch of a gated one."""

    norm: Tensor | None  # (width,) weight of an RMS norm on the input
    inner: Tensor  # (hidden, width)
    inner_bias: Tensor | None
    up: Tensor | None  # (hidden, width)
    outer: Tensor  # (width, hidden)
    outer_bias: Tensor | None


class Scratch:
    """Buffers that the chunks of one call share: `scratch("name", rows, width)` is an uninitialised tensor."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        count = math.prod(shape)
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < count:
            buffer = self.buffers[name] = torch.empty(count)
        return buffer[:count].view(shape)


def chunks(count: int, width: int, rows_each: int = 1) -> Iterator[slice]:
    """Slices over `count` items of `rows_each` rows such that a slice holds CHUNK_ELEMENTS floats a thread."""
    rows = max(CHUNK_MIN_ROWS, CHUNK_ELEMENTS * torch.get_num_threads() // width)
    parts = max(1, round(count * rows_each / rows))
    size = -(-count // parts)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last dimension, kept."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # type: ignore[no-any-return]


def norm_backward(grad: Tensor, normed: Tensor, rstd: Tensor) -> Tensor:
    """Turn the gradient of `normed` = x * rstd into that of x, in place."""
    mean = torch.linalg.vecdot(grad, normed).unsqueeze_(-1).div_(-grad.shape[-1])
    return grad.addcmul_(normed, mean).mul_(rstd)


def _activate(kind: str, a: Tensor, out: Tensor, scratch: Scratch) -> Tensor:
    """out = f(a), and returned; for "gelu_tanh" it is 2 f(a), and scratch "tanh" keeps the tanh."""
    if kind == "gelu_tanh":
        tanh = scratch("tanh", *a.shape)
        torch.mul(a, a, out=out).mul_(GELU_CUBIC).add_(GELU_LINEAR)
        torch.mul(out, a, out=tanh).tanh_()
        return torch.addcmul(a, a, tanh, out=out)
    if kind == "gelu":
        return torch.ops.aten.gelu.out(a, out=out)  # type: ignore[no-any-return]
    if kind == "relu":
        return torch.clamp_min(a, 0.0, out=out)
    return torch.ops.aten.silu.out(a, out=out)  # type: ignore[no-any-return]


def _activate_backward(kind: str, grad: Tensor, a: Tensor, scratch: Scratch) -> Tensor:
    """grad * f'(a) (2 f' for "gelu_tanh", which needs scratch "tanh" from `_activate`), in `grad` where possible."""
    if kind == "gelu_tanh":
        tanh, slope, part = (scratch(name, *a.shape) for name in ("tanh", "slope", "part"))
        torch.mul(a, a, out=slope).mul_(3 * GELU_CUBIC).add_(GELU_LINEAR).mul_(a)  # a * d(tanh's argument) / da
        torch.mul(slope, tanh, out=part)
        slope.addcmul_(part, tanh, value=-1.0).add_(tanh).add_(1.0)
        return grad.mul_(slope)
    if kind == "gelu":
        return torch.ops.aten.gelu_backward(grad, a)  # type: ignore[no-any-return]
    if kind == "relu":
        return torch.ops.aten.threshold_backward(grad, a, 0.0)  # type: ignore[no-any-return]
    return torch.ops.aten.silu_backward(grad, a)  # type: ignore[no-any-return]


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        kind: str,
        eps: float,
        p_inner: float,
        p_outer: float,
        *params: Tensor,
    ) -> Tensor:
        weights = FeedForwardWeights(*params)
        width, hidden = x.shape[-1], weights.inner.shape[0]
        rows = x.reshape(-1, width)
        rest = rows if residual is None else residual.reshape(-1, width)
        count = rows.shape[0]
        factor = (0.5 if kind == "gelu_tanh" else 1.0) / ((1.0 - p_inner) * (1.0 - p_outer))
        outer = weights.outer * factor
        bias = None if weights.outer_bias is None else weights.outer_bias / (1.0 - p_outer)
        inner = weights.inner if weights.norm is None else weights.inner * weights.norm
        up = None if weights.up is None or weights.norm is None else weights.up * weights.norm
        up = weights.up if up is None else up
        rstd = None if weights.norm is None else inverse_rms(rows, eps)
        mask_inner = keep_mask((count, hidden), p_inner) if p_inner else None
        mask_outer = keep_mask((count, width), p_outer) if p_outer else None
        a = torch.empty(count, hidden)
        gate = None if up is None else torch.empty(count, hidden)
        out, scratch = torch.empty(count, width), Scratch()
        for s in chunks(count, width):
            normed = rows[s] if rstd is None else torch.mul(rows[s], rstd[s], out=scratch("x", *rows[s].shape))
            linear(normed, inner, weights.inner_bias, a[s])
            h = scratch("h", *a[s].shape)
            _activate(kind, a[s], h, scratch)
            if gate is not None and up is not None:
                factor_h = torch.mm(normed, up.t(), out=gate[s])
                h.mul_(factor_h if mask_inner is None else factor_h.mul_(mask_inner[s]))
            elif mask_inner is not None:
                h.mul_(mask_inner[s])
            linear(h, outer, bias, out[s])
            if mask_outer is not None:
                out[s].mul_(mask_outer[s])
            out[s].add_(rest[s])
        ctx.save_for_backward(rows, rstd, a, gate, mask_inner, mask_outer, inner, up, outer, *params)
        ctx.settings = kind, p_outer, factor, x.shape, residual is None
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, rstd, a, gate, mask_inner, mask_outer, inner, up, outer, *params = ctx.saved_tensors
        kind, p_outer, factor, shape, own_residual = ctx.settings
        scratch = Scratch()
        train = any(ctx.needs_input_grad[6:])
        grad_rows = grad.reshape(rows.shape)
        grad_x = torch.empty_like(rows)
        sums: list[Any] = [None if w is None else torch.zeros_like(w) for w in params]
        sums[0] = None
        for s in chunks(rows.shape[0], rows.shape[1]):
            normed = rows[s] if rstd is None else torch.mul(rows[s], rstd[s], out=scratch("x", *rows[s].shape))
            d_out = masked(grad_rows[s], mask_outer, s, scratch("out", *normed.shape))
            h, d_h = scratch("h", *a[s].shape), scratch("dh", *a[s].shape)
            torch.mm(d_out, outer, out=d_h)
            _activate(kind, a[s], h, scratch)
            d_up = None
            if gate is not None:  # which already holds the dropout mask
                d_up = torch.mul(d_h, h, out=scratch("up", *h.shape))
                d_h.mul_(gate[s])
                h.mul_(gate[s])
            if mask_inner is not None:
                (d_h if d_up is None else d_up).mul_(mask_inner[s])
                if d_up is None:
                    h.mul_(mask_inner[s])
            d_a = _activate_backward(kind, d_h, a[s], scratch)
            if train:
                accumulate(sums, ((1, d_a, normed), (3, d_up, normed), (4, d_out, h)), ((2, d_a), (5, d_out)))
            d_x = torch.mm(d_a, inner, out=grad_x[s])
            if d_up is not None:
                d_x.addmm_(d_up, up)
            if rstd is not None:
                norm_backward(d_x, normed, rstd[s])
            if own_residual:
                d_x.add_(grad_rows[s])
        if train:
            sums[0] = unfold_norm(sums, (1, 3), params)
            sums[4].mul_(factor)
            if sums[5] is not None:
                sums[5].div_(1.0 - p_outer)
        grad_residual = None if own_residual else grad
        return grad_x.view(shape), grad_residual, None, None, None, None, *(sums if train else [None] * len(params))


def masked(grad: Tensor, mask: Tensor | None, s: slice, out: Tensor) -> Tensor:
    return grad if mask is None else torch.mul(grad, mask[s], out=out)


def accumulate(sums: list[Any], products: Any, biases: Any) -> None:
    """Add `gradient^T @ input` of each (index, gradient, input) and the column sums of each (index, gradient)."""
    for index, gradient, value in products:
        if sums[index] is not None:
            sums[index].addmm_(gradient.t(), value)
    for index, gradient in biases:
        if sums[index] is not None:
            sums[index].add_(gradient.sum(0))


def unfold_norm(sums: list[Any], indices: tuple[int, ...], params: list[Tensor]) -> Tensor | None:
    """Turn gradients of `weight * norm` into those of the weights (in place) and return that of the norm."""
    norm = params[0]
    if norm is None:
        return None
    total = torch.zeros_like(norm)
    for index in indices:
        gradient = sums[index]
        if gradient is not None:
            total += torch.linalg.vecdot(gradient, params[index], dim=0)
            gradient.mul_(norm)
    return total


def feed_forward(
    x: Tensor,
    residual: Tensor | None,
    weights: FeedForwardWeights,
    kind: str,
    eps: float,
    p_inner: float,
    p_outer: float,
) -> Tensor:
    """residual + dropout(outer(dropout(f(inner x) [* up x]))), x first RMS-normed when `weights.norm` is given.

    A `residual` of None stands for `x` itself. `kind` is one of `ACTIVATIONS`; `p_inner` and `p_outer` are dropout
    probabilities (0 in evaluation).
    """
    return _FeedForward.apply(x, residual, kind, eps, p_inner, p_outer, *weights)  # type: ignore[no-any-return,no-untyped-call]
