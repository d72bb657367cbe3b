"""Multi-head attention with its projections, dropout and residual as one autograd function for the CPU.

See `models.fused_blocks` for why this is faster than the modules of `transformers`, whose values and gradients it has.
PyTorch's own CPU kernel takes neither dropout nor a position bias that needs a gradient: T5 gets its slow path.

Shapes: B batch, H heads, N query length, M key length, D head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.kernels.feed_forward import Scratch, chunks, inverse_rms, keep_mask, linear, masked, norm_backward

MASKED = torch.finfo(torch.float32).min


class AttentionWeights(NamedTuple):
    """Parameters of an attention sub-layer, as the four linear layers hold them."""

    norm: Tensor | None  # (width,) weight of an RMS norm on the input
    query: Tensor  # (H * D, width)
    key: Tensor
    value: Tensor
    outer: Tensor  # (width, H * D)
    query_bias: Tensor | None = None
    key_bias: Tensor | None = None
    value_bias: Tensor | None = None
    outer_bias: Tensor | None = None


class AttentionSettings(NamedTuple):
    """What an attention sub-layer is told besides its parameters."""

    heads: int
    scale: float  # of the query
    eps: float  # of the RMS norm
    p_scores: float  # dropout of the attention probabilities
    p_outer: float  # dropout of the result
    causal: bool = False


class _Projections(NamedTuple):
    """The projections of one input, stacked so that one matmul does them all."""

    weight: Tensor  # (parts * H * D, width)
    bias: Tensor | None
    first: int  # index of the first part in (query, key, value)
    parts: int


def _stack(weights: AttentionWeights, scale: float, first: int, parts: int, norm: Tensor | None) -> _Projections:
    last = first + parts
    matrices = [weights.query * scale if scale != 1.0 else weights.query, weights.key, weights.value][first:last]
    vectors = [weights.query_bias, weights.key_bias, weights.value_bias][first:last]
    if first == 0 and vectors[0] is not None:
        vectors[0] = vectors[0] * scale
    weight = torch.cat(matrices)
    bias = None
    if any(vector is not None for vector in vectors):
        bias = torch.cat([torch.zeros(len(m)) if v is None else v for v, m in zip(vectors, matrices, strict=True)])
    return _Projections(weight if norm is None else weight.mul_(norm), bias, first, parts)


def _score_bias(bias: Tensor | None, causal: bool, n: int, m: int) -> Tensor | None:
    """What is added to the scores of every row: (H or 1, N, M)."""
    if not causal or n == 1:
        return bias
    ahead = torch.full((n, m), MASKED).triu_(1)
    return ahead.unsqueeze(0) if bias is None else torch.where(ahead == 0, bias, ahead)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        source: Tensor | None,
        bias: Tensor | None,
        mask: Tensor | None,
        settings: AttentionSettings,
        *params: Tensor,
    ) -> Tensor:
        weights = AttentionWeights(*params)
        batch, n, width = x.shape
        keys = x if source is None else source
        m, heads, inner = keys.shape[1], settings.heads, weights.query.shape[0]
        rstd = None if weights.norm is None else inverse_rms(x, settings.eps)
        own = _stack(weights, settings.scale, 0, 3 if source is None else 1, weights.norm)
        other = None if source is None else _stack(weights, settings.scale, 1, 2, None)
        outer = weights.outer / ((1.0 - settings.p_scores) * (1.0 - settings.p_outer))
        outer_bias = None if weights.outer_bias is None else weights.outer_bias / (1.0 - settings.p_outer)
        mask_scores = keep_mask((batch, heads, n, m), settings.p_scores) if settings.p_scores else None
        mask_outer = keep_mask((batch, n, width), settings.p_outer) if settings.p_outer else None
        d = inner // heads
        projected = [torch.empty(batch, heads, length, d) for length in (n, m, m)]  # query, key, value
        scores, context = torch.empty(batch, heads, n, m), torch.empty(batch, n, inner)
        out, scratch = torch.empty(batch, n, width), Scratch()
        added = _score_bias(bias, settings.causal, n, m)
        blocked = None if mask is None else (mask < 0).flatten(1).any(1).expand(batch).tolist()
        for s in chunks(batch, width, max(n, m)):
            normed = x[s] if rstd is None else torch.mul(x[s], rstd[s], out=scratch("x", *x[s].shape))
            _project(normed, own, projected, s, scratch)
            if other is not None:
                _project(keys[s], other, projected, s, scratch)
            q, k, v = (part[s].flatten(0, 1) for part in projected)
            p = scores[s]
            torch.bmm(q, k.transpose(1, 2), out=p.view(-1, n, m))
            if added is not None:
                p.add_(added)
            if mask is not None and any(blocked[s]):  # type: ignore[index]
                p.add_((mask if mask.shape[0] == 1 else mask[s]).unsqueeze(1))
            torch.softmax(p, -1, out=p)
            kept = masked(p, mask_scores, s, scratch("kept", *p.shape)).view(-1, n, m)
            heads_out = torch.bmm(kept, v, out=scratch("heads", *q.shape))
            context[s].view(-1, n, heads, d).copy_(heads_out.view(-1, heads, n, d).transpose(1, 2))
            linear(context[s].flatten(0, 1), outer, outer_bias, out[s].flatten(0, 1))
            if mask_outer is not None:
                out[s].mul_(mask_outer[s])
            out[s].add_((x if residual is None else residual)[s])
        ctx.save_for_backward(
            x, source, rstd, scores, context, mask_scores, mask_outer, *projected,
            own.weight, None if other is None else other.weight, outer, *params,
        )  # fmt: skip
        ctx.settings, ctx.own_residual = settings, residual is None
        ctx.bias_shape = None if bias is None else bias.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, source, rstd, scores, context, mask_scores, mask_outer, q, k, v, own, other, outer, *params = (
            ctx.saved_tensors
        )
        settings, weights = ctx.settings, AttentionWeights(*params)
        batch, heads, n, m = scores.shape
        d, scratch = q.shape[-1], Scratch()
        train = any(ctx.needs_input_grad[6:])
        grad_x = torch.empty(x.shape)
        grad_source = torch.empty(source.shape) if source is not None else None
        grad_bias = torch.zeros(ctx.bias_shape) if ctx.needs_input_grad[3] else None
        sums = _Sums(weights, own, other, train)
        for s in chunks(batch, x.shape[2], max(n, m)):
            normed = x[s] if rstd is None else torch.mul(x[s], rstd[s], out=scratch("x", *x[s].shape))
            rows = normed.flatten(0, 1)
            d_out = masked(grad[s], mask_outer, s, scratch("out", *x[s].shape)).reshape(rows.shape)
            sums.outer_(d_out, context[s].flatten(0, 1))
            d_context = torch.mm(d_out, outer, out=scratch("context", *context[s].shape).flatten(0, 1))
            d_heads = scratch("heads", *q[s].shape)
            d_heads.copy_(d_context.view(-1, n, heads, d).transpose(1, 2))
            d_heads, p = d_heads.view(-1, n, d), scores[s]
            kept = masked(p, mask_scores, s, scratch("kept", *p.shape))
            drop = None if mask_scores is None else mask_scores[s]
            parts = _attend_backward(p, kept, d_heads, drop, (q[s], k[s], v[s]), scratch)
            if grad_bias is not None:
                grad_bias.add_(scratch("scores", *p.shape).sum(0))
            d_own = _merge(parts[: 3 if source is None else 1], heads, scratch("own_rows", len(rows), own.shape[0]))
            sums.own_(d_own, rows)
            d_x = torch.mm(d_own, own, out=grad_x[s].flatten(0, 1))
            if rstd is not None:
                norm_backward(d_x, rows, rstd[s].flatten(0, 1))
            if ctx.own_residual:
                grad_x[s].add_(grad[s])
            if source is not None:
                keys = source[s].flatten(0, 1)
                d_other = _merge(parts[1:], heads, scratch("other_rows", len(keys), other.shape[0]))
                sums.other_(d_other, keys)
                torch.mm(d_other, other, out=grad_source[s].flatten(0, 1))  # type: ignore[index]
        grad_residual = None if ctx.own_residual else grad
        return grad_x, grad_residual, grad_source, grad_bias, None, None, *sums.gradients(weights, settings)


def _project(x: Tensor, projections: _Projections, projected: list[Tensor], s: slice, scratch: Scratch) -> None:
    """Fill rows `s` of the query, key and value tensors (B, H, length, D) that `projections` serves."""
    b, length, _ = x.shape
    stacked = scratch("rows", b * length, projections.weight.shape[0])
    linear(x.flatten(0, 1), projections.weight, projections.bias, stacked)
    heads, d = projected[0].shape[1], projected[0].shape[3]
    views = stacked.view(b, length, projections.parts, heads, d).permute(2, 0, 3, 1, 4)
    for part in range(projections.parts):
        projected[projections.first + part][s].copy_(views[part])


def _merge(parts: list[Tensor], heads: int, out: Tensor) -> Tensor:
    """Gradients of projections, each (B * H, length, D), side by side as rows (B * length, parts * H * D)."""
    _, length, d = parts[0].shape
    rows = out.view(-1, length, len(parts), heads, d)
    for i, part in enumerate(parts):
        rows[:, :, i].copy_(part.view(-1, heads, length, d).transpose(1, 2))
    return out


def _attend_backward(
    p: Tensor, kept: Tensor, d_heads: Tensor, mask: Tensor | None, projected: tuple[Tensor, ...], scratch: Scratch
) -> list[Tensor]:
    """Gradients of query, key and value, each (B * H, length, D); leaves that of the scores in scratch "scores"."""
    _, _, n, m = p.shape
    q, k, v = (part.flatten(0, 1) for part in projected)
    d_v = torch.bmm(kept.view(-1, n, m).transpose(1, 2), d_heads, out=scratch("dv", *v.shape))
    d_p, d_scores = scratch("dp", *p.shape), scratch("scores", *p.shape)
    torch.bmm(d_heads, v.transpose(1, 2), out=d_p.view(-1, n, m))
    if mask is not None:
        d_p.mul_(mask)
    torch.ops.aten._softmax_backward_data.out(d_p, p, -1, torch.float32, grad_input=d_scores)
    flat = d_scores.view(-1, n, m)
    d_q = torch.bmm(flat, k, out=scratch("dq", *q.shape))
    d_k = torch.bmm(flat.transpose(1, 2), q, out=scratch("dk", *k.shape))
    return [d_q, d_k, d_v]


class _Sums:
    """Gradients of the parameters, added up over the chunks."""

    def __init__(self, weights: AttentionWeights, own: Tensor, other: Tensor | None, train: bool) -> None:
        self.train = train
        if not train:
            return
        biased = weights.query_bias is not None or weights.key_bias is not None or weights.value_bias is not None
        self.own, self.outer = torch.zeros_like(own), torch.zeros_like(weights.outer)
        self.other = None if other is None else torch.zeros_like(other)
        self.own_bias = torch.zeros(own.shape[0]) if biased else None
        self.other_bias = torch.zeros(other.shape[0]) if biased and other is not None else None
        self.outer_bias = None if weights.outer_bias is None else torch.zeros_like(weights.outer_bias)

    def outer_(self, gradient: Tensor, value: Tensor) -> None:
        if self.train:
            self.outer.addmm_(gradient.t(), value)
            if self.outer_bias is not None:
                self.outer_bias.add_(gradient.sum(0))

    def own_(self, gradient: Tensor, value: Tensor) -> None:
        if self.train:
            self.own.addmm_(gradient.t(), value)
            if self.own_bias is not None:
                self.own_bias.add_(gradient.sum(0))

    def other_(self, gradient: Tensor, value: Tensor) -> None:
        if self.train and self.other is not None:
            self.other.addmm_(gradient.t(), value)
            if self.other_bias is not None:
                self.other_bias.add_(gradient.sum(0))

    def gradients(self, weights: AttentionWeights, settings: AttentionSettings) -> list[Tensor | None]:
        """In the order of `AttentionWeights`, for the unscaled parameters."""
        if not self.train:
            return [None] * len(weights)
        inner, scale = weights.query.shape[0], settings.scale
        norm = None
        if weights.norm is not None:
            stacked = [weights.query * scale, weights.key, weights.value]
            stacked = stacked[: self.own.shape[0] // inner]
            norm = torch.linalg.vecdot(self.own, torch.cat(stacked), dim=0)
            self.own.mul_(weights.norm)
        matrices = self.own if self.other is None else torch.cat([self.own, self.other])
        query, key, value = matrices.split(inner)  # type: ignore[no-untyped-call]
        outer = self.outer.div_((1.0 - settings.p_scores) * (1.0 - settings.p_outer))
        biases: list[Tensor | None] = [None, None, None]
        if self.own_bias is not None:
            vectors = self.own_bias if self.other_bias is None else torch.cat([self.own_bias, self.other_bias])
            given = (weights.query_bias, weights.key_bias, weights.value_bias)
            biases = [g if w is not None else None for g, w in zip(vectors.split(inner), given, strict=True)]  # type: ignore[no-untyped-call]
            if biases[0] is not None:
                biases[0].mul_(scale)
        outer_bias = None if self.outer_bias is None else self.outer_bias.div_(1.0 - settings.p_outer)
        return [norm, query * scale, key, value, outer, *biases, outer_bias]


def attention(
    x: Tensor,
    residual: Tensor | None,
    source: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    weights: AttentionWeights,
    settings: AttentionSettings,
) -> Tensor:
    """residual + dropout(outer(attention(x))), x (B, N, width) first RMS-normed when `weights.norm` is given.

    A `residual` of None stands for `x` itself. Keys and values come from `source` (B, M, width), from `x` if None.
    `bias` (H, N, M) is added to the scores and gets a gradient; `mask` (B or 1, N or 1, M) is 0 where a query may look
    and `MASKED` elsewhere.
    """
    return _Attention.apply(x, residual, source, bias, mask, settings, *weights)  # type: ignore[no-any-return,no-untyped-call]
