"""Attention for training on CUDA in Triton: T5's bias by distance, key lengths in place of a mask, dropout inside.

Nothing of (batch, heads, queries, keys) is ever in memory. The forward pass goes over blocks of keys with a running
maximum and sum of exponentials; the backward pass computes the probabilities again (Dao 2023, "FlashAttention-2",
section 3.1). No result is added up by atomics, so that the same inputs give the same bits.

The bias of a query n and a key m is `table[head, m - n + N - 1]`; its gradient is summed along the diagonals of each
block, then over blocks and batch. Dropout draws one byte an element from Philox by the element's place, so that the
backward pass draws the same.

Shapes: B batch, H heads, N query length, M key length, D head width.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

STAGES = 2  # of loads in flight; more, or larger blocks, take more registers or memory than a multiprocessor has


def block_size(q: Tensor) -> int:
    """Queries and keys of a block: 64, for rows of more than 128 bytes 32."""
    return 64 if q.shape[-1] * q.element_size() <= 128 else 32


@triton.jit
def _rows(tensor, batch, head, rows, length, heads, WIDTH: tl.constexpr):
    """(BLOCK, D) `rows` of one head in a tensor (B, length, H, D); zeros beyond the length."""
    places = ((batch * length + rows)[:, None] * heads + head) * WIDTH + tl.arange(0, WIDTH)[None, :]
    return tl.load(tensor + places, mask=rows[:, None] < length, other=0.0)


@triton.jit
def _store_rows(tensor, values, batch, head, rows, length, heads, WIDTH: tl.constexpr):
    places = ((batch * length + rows)[:, None] * heads + head) * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(tensor + places, values.to(tensor.dtype.element_ty), mask=rows[:, None] < length)


@triton.jit
def _scores(
    q,
    k,
    table,
    head,
    rows,
    columns,
    N,
    M,
    length,
    scale,
    BIAS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(BLOCK, BLOCK) scores in fp32, -inf where a query does not look."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    seen = columns[None, :] < length
    if BIAS:
        places = head * (N + M - 1) + columns[None, :] - rows[:, None] + N - 1
        scores += tl.load(table + places, mask=seen & (rows[:, None] < N), other=0.0)
    if CAUSAL:
        seen = seen & (columns[None, :] <= rows[:, None])
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def _kept(seed, threshold, stream, rows, start, M, BLOCK: tl.constexpr):
    """(BLOCK, BLOCK) booleans: what dropout leaves of the columns from `start` on. One call of Philox gives 16."""
    groups = start // 16 + tl.arange(0, BLOCK // 16)
    counters = rows[:, None] * tl.cdiv(M, 16) + groups[None, :]
    a, b, c, d = tl.philox(seed, counters, counters * 0 + stream, counters * 0, counters * 0)
    words = tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), (BLOCK, BLOCK // 4, 1))
    shifts = (tl.arange(0, 4) * 8).to(tl.uint32)
    drawn = tl.reshape((words >> shifts[None, None, :]) & 255, (BLOCK, BLOCK))
    return drawn >= threshold


@triton.jit
def _diagonals(x, BLOCK: tl.constexpr):
    """Sums along the diagonals of a block: where column - row is 1 - BLOCK to 0, and where it is 1 to BLOCK."""
    shifted = tl.arange(0, BLOCK)[:, None] + tl.arange(0, BLOCK)[None, :] + 1  # each row begins one place further
    x = tl.gather(x, shifted % BLOCK, 1)
    return tl.sum(tl.where(shifted >= BLOCK, x, 0.0), 0), tl.sum(tl.where(shifted < BLOCK, x, 0.0), 0)


@triton.jit(do_not_specialize=["seed", "threshold"])
def _forward(
    Q,
    K,
    V,
    Table,
    Lengths,
    Out,
    LogSums,
    H,
    N,
    M,
    scale,
    seed,
    threshold,
    factor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
    PADDED: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of queries over all keys."""
    blocks = tl.cdiv(N, BLOCK)
    first, stream = tl.program_id(0) % blocks * BLOCK, tl.program_id(0) // blocks
    batch, head = (stream // H).to(tl.int64), stream % H
    rows = first + tl.arange(0, BLOCK)
    length = M
    if PADDED:
        length = tl.load(Lengths + batch)
    end = length
    if CAUSAL:
        end = tl.minimum(length, first + BLOCK)
    q = _rows(Q, batch, head, rows, N, H, WIDTH)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    context = tl.zeros((BLOCK, WIDTH), tl.float32)
    for start in range(0, end, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        k = _rows(K, batch, head, columns, M, H, WIDTH)
        v = _rows(V, batch, head, columns, M, H, WIDTH)
        scores = _scores(q, k, Table, head, rows, columns, N, M, length, scale, BIAS, CAUSAL, PRECISION)
        larger = tl.maximum(largest, tl.max(scores, 1))
        p = tl.exp(scores - larger[:, None])
        shrunk = tl.exp(largest - larger)
        total = total * shrunk + tl.sum(p, 1)
        if DROPOUT:
            p = tl.where(_kept(seed, threshold, stream, rows, start, M, BLOCK), p, 0.0)
        context = context * shrunk[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        largest = larger
    _store_rows(Out, context * (factor / total)[:, None], batch, head, rows, N, H, WIDTH)
    tl.store(LogSums + stream.to(tl.int64) * N + rows, largest + tl.log(total), mask=rows < N)


@triton.jit(do_not_specialize=["seed", "threshold"])
def _backward_of_queries(
    Q,
    K,
    V,
    Table,
    Lengths,
    Out,
    LogSums,
    GradOut,
    GradQ,
    Deltas,
    Diagonals,
    H,
    N,
    M,
    scale,
    seed,
    threshold,
    factor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
    PADDED: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of a block of queries, its part of the bias's, and what `_backward_of_keys` needs of its rows."""
    blocks = tl.cdiv(N, BLOCK)
    first, stream = tl.program_id(0) % blocks * BLOCK, tl.program_id(0) // blocks
    batch, head = (stream // H).to(tl.int64), stream % H
    rows = first + tl.arange(0, BLOCK)
    length = M
    if PADDED:
        length = tl.load(Lengths + batch)
    end = length
    if CAUSAL:
        end = tl.minimum(length, first + BLOCK)
    q = _rows(Q, batch, head, rows, N, H, WIDTH)
    grad = _rows(GradOut, batch, head, rows, N, H, WIDTH)
    out = _rows(Out, batch, head, rows, N, H, WIDTH)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(Deltas + stream.to(tl.int64) * N + rows, delta, mask=rows < N)
    log_sums = tl.load(LogSums + stream.to(tl.int64) * N + rows, mask=rows < N, other=float("inf"))
    grad_q = tl.zeros((BLOCK, WIDTH), tl.float32)
    if BIAS:
        diagonals = Diagonals + tl.program_id(0).to(tl.int64) * (blocks + tl.cdiv(M, BLOCK)) * BLOCK
        diagonals += (blocks - 1) * BLOCK - first + tl.arange(0, BLOCK)
    above = tl.zeros((BLOCK,), tl.float32)  # of the block of keys before: the diagonals that go on in this one
    for start in range(0, end, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        k = _rows(K, batch, head, columns, M, H, WIDTH)
        v = _rows(V, batch, head, columns, M, H, WIDTH)
        scores = _scores(q, k, Table, head, rows, columns, N, M, length, scale, BIAS, CAUSAL, PRECISION)
        grad_p = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            grad_p = tl.where(_kept(seed, threshold, stream, rows, start, M, BLOCK), grad_p * factor, 0.0)
        grad_scores = tl.exp(scores - log_sums[:, None]) * (grad_p - delta[:, None])
        grad_q += tl.dot(grad_scores.to(k.dtype), k, input_precision=PRECISION)
        if BIAS:
            below, next_above = _diagonals(grad_scores, BLOCK)
            tl.store(diagonals + start, above + below)
            above = next_above
    _store_rows(GradQ, grad_q * scale, batch, head, rows, N, H, WIDTH)
    if BIAS:
        tl.store(diagonals + tl.cdiv(end, BLOCK) * BLOCK, above)


@triton.jit(do_not_specialize=["seed", "threshold"])
def _backward_of_keys(
    Q,
    K,
    V,
    Table,
    Lengths,
    LogSums,
    GradOut,
    Deltas,
    GradK,
    GradV,
    H,
    N,
    M,
    scale,
    seed,
    threshold,
    factor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
    PADDED: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of a block of keys and values, over all queries; zeros beyond the length."""
    blocks = tl.cdiv(M, BLOCK)
    first, stream = tl.program_id(0) % blocks * BLOCK, tl.program_id(0) // blocks
    batch, head = (stream // H).to(tl.int64), stream % H
    columns = first + tl.arange(0, BLOCK)
    length = M
    if PADDED:
        length = tl.load(Lengths + batch)
    k = _rows(K, batch, head, columns, M, H, WIDTH)
    v = _rows(V, batch, head, columns, M, H, WIDTH)
    grad_k = tl.zeros((BLOCK, WIDTH), tl.float32)
    grad_v = tl.zeros((BLOCK, WIDTH), tl.float32)
    begin = first if CAUSAL else 0
    for start in range(begin, tl.where(first < length, N, 0), BLOCK):
        rows = start + tl.arange(0, BLOCK)
        q = _rows(Q, batch, head, rows, N, H, WIDTH)
        grad = _rows(GradOut, batch, head, rows, N, H, WIDTH)
        log_sums = tl.load(LogSums + stream.to(tl.int64) * N + rows, mask=rows < N, other=float("inf"))
        delta = tl.load(Deltas + stream.to(tl.int64) * N + rows, mask=rows < N, other=0.0)
        scores = _scores(q, k, Table, head, rows, columns, N, M, length, scale, BIAS, CAUSAL, PRECISION)
        p = tl.exp(scores - log_sums[:, None])
        dropped = p
        grad_p = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            kept = _kept(seed, threshold, stream, rows, first, M, BLOCK)
            dropped = tl.where(kept, p * factor, 0.0)
            grad_p = tl.where(kept, grad_p * factor, 0.0)
        grad_v += tl.dot(tl.trans(dropped.to(grad.dtype)), grad, input_precision=PRECISION)
        grad_scores = p * (grad_p - delta[:, None])
        grad_k += tl.dot(tl.trans(grad_scores.to(q.dtype)), q, input_precision=PRECISION)
    _store_rows(GradK, grad_k * scale, batch, head, columns, M, H, WIDTH)
    _store_rows(GradV, grad_v, batch, head, columns, M, H, WIDTH)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor | None,
        lengths: Tensor | None,
        causal: bool,
        scale: float,
        dropout: float,
    ) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        batch, queries, heads, width = q.shape
        out = torch.empty_like(q)
        log_sums = q.new_empty(batch, heads, queries, dtype=torch.float32)
        seed, fraction = torch.randint(2**31, (2,)).tolist() if dropout else (0, 0)  # on the host, nothing waits
        threshold = int(256 * dropout)
        threshold += fraction < (256 * dropout - threshold) * 2**31
        ctx.sizes = (heads, queries, k.shape[1], scale, seed, threshold, 1.0 / (1.0 - dropout))
        exact = torch.get_float32_matmul_precision() == "highest"
        ctx.options = {
            "WIDTH": width,
            "BLOCK": block_size(q),
            "BIAS": table is not None,
            "PADDED": lengths is not None,
            "CAUSAL": causal,
            "DROPOUT": dropout > 0.0,
            "PRECISION": "tf32x3" if exact else "tf32",  # of fp32: three products of TF32 are as exact
            "num_stages": STAGES,
        }
        ctx.programs, block = batch * heads, ctx.options["BLOCK"]
        table = None if table is None else table.float().contiguous()
        with torch.cuda.device_of(q):
            _forward[(ctx.programs * triton.cdiv(queries, block),)](
                q, k, v, table, lengths, out, log_sums, *ctx.sizes, **ctx.options
            )
        ctx.save_for_backward(q, k, v, table, lengths, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, table, lengths, out, log_sums = ctx.saved_tensors
        grad = grad.contiguous()
        heads, queries, keys = ctx.sizes[:3]
        block = ctx.options["BLOCK"]
        blocks, key_blocks = triton.cdiv(queries, block), triton.cdiv(keys, block)
        grads = [torch.empty_like(part) for part in (q, k, v)]
        deltas = torch.empty_like(log_sums)
        diagonals, grad_table = None, None
        if table is not None:
            diagonals = table.new_zeros(ctx.programs // heads, heads, blocks, (blocks + key_blocks) * block)
        with torch.cuda.device_of(q):
            _backward_of_queries[(ctx.programs * blocks,)](
                q, k, v, table, lengths, out, log_sums, grad, grads[0], deltas, diagonals, *ctx.sizes, **ctx.options
            )
            _backward_of_keys[(ctx.programs * key_blocks,)](
                q, k, v, table, lengths, log_sums, grad, deltas, *grads[1:], *ctx.sizes, **ctx.options
            )
        if diagonals is not None:
            begin = blocks * block - queries
            grad_table = diagonals.sum((0, 2))[:, begin : begin + queries + keys - 1]
        return *grads, grad_table, None, None, None, None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    table: Tensor | None = None,
    lengths: Tensor | None = None,
    causal: bool = False,
    scale: float = 1.0,
    dropout: float = 0.0,
) -> Tensor:
    """Give dropout(softmax(scale * q @ k.T + bias)) @ v as (B, N, H, D), with all gradients.

    Args:
        q: (B, N, H, D), k and v (B, M, H, D), of one type: fp32, bf16 or fp16; D is a power of two from 16 on.
        table: (H, N + M - 1) bias by distance, the key's place less the query's, from 1 - N to M - 1.
        lengths: (B,) int32, keys that may be looked at, at least 1; None = all.
        causal: no query looks at a later key.
        dropout: probability, drawn from torch's default generator on the CPU.
    """
    return _Attention.apply(q, k, v, table, lengths, causal, scale, dropout)  # type: ignore[no-any-return]
