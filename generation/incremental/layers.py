"""The layers of the families of T5 and BART as plain tensor operations, on weights taken out of the modules once.

The modules of `transformers` spend most of a decoding step on masks, cache objects and Python calls; here a step is
some twenty operations a layer. Every operand has its type: callers leave autocast out (`without_autocast`).

Shapes: B sources, Q queries of a source (its beams, the nodes of a label trie, or its own tokens), H heads, D head
width, S source length, C columns that self-attention looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from generation.incremental.weights import Cross, Head, Layer, Linear, Norm, Stack, normed
from models.kernels.products import product
from models.switch.modeling_switch_t5 import choose, through_all

ALIGNED_COLUMNS = 16  # fused attention on a device copies a mask whose rows are not aligned so, in every layer


Source: TypeAlias = tuple[Tensor, Tensor, Tensor | None]  # keys, values and mask of a layer's cross-attention


@dataclass
class Sources:
    """Keys and values of every layer's cross-attention, and the additive mask (B, 1, 1, S or more).

    Values are (B, H, S, D); keys too, but (B, H, D, S) on a CPU.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor | None

    def of(self, layer: int) -> Source:
        """What the cross-attention of a layer looks at."""
        return self.keys[layer], self.values[layer], self.mask

    def select(self, rows: Tensor) -> Sources:
        """The sources of these row numbers."""
        mask = None if self.mask is None else self.mask[rows]
        return Sources([keys[rows] for keys in self.keys], [values[rows] for values in self.values], mask)


class Memory(Protocol):
    """Where self-attention finds its keys and values."""

    def extend(self, layer: int, new: Tensor) -> Tensor:
        """All keys and values (2, B, H, C, D) of a layer, after the new ones (2, B, H, Q, D) have been added."""


class NoMemory:
    """Queries see each other only: for one pass over whole sequences."""

    def extend(self, layer: int, new: Tensor) -> Tensor:  # noqa: ARG002
        return new


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Where nothing is cast because of autocast, which would look at every operation and cast softmax and norms."""
    return torch.autocast(device.type, enabled=False)


def self_bias(stack: Stack, distance: Tensor, visible: Tensor | None) -> list[Tensor | None]:
    """For every layer what is added to the scores of its self-attention, (B or 1, H or 1, Q or 1, C).

    Args:
        distance: (B or 1, Q or 1, C) positions from the query back to the key.
        visible: (B or 1, Q or 1, C), 0 where the query sees the key and a large negative number elsewhere; None where
            it sees all.
    """
    biases: list[Tensor | None] = []
    for number, layer in enumerate(stack.layers):
        table = layer.distance_bias
        if number and table is stack.layers[number - 1].distance_bias:
            biases.append(biases[-1])
            continue
        bias = None if visible is None else visible.unsqueeze(1)
        if table is not None:
            near = distance.clamp(stack.nearest, stack.nearest + table.shape[1] - 1)
            near = near - stack.nearest if stack.nearest else near
            by_head = table.index_select(1, near.view(-1)).view(-1, *near.shape).transpose(0, 1)
            bias = by_head if bias is None else by_head + bias
        biases.append(bias if bias is None or bias.device.type == "cpu" else _aligned(bias))
    return biases


def _aligned(mask: Tensor) -> Tensor:
    """`mask` (..., C), with rows that begin at multiples of `ALIGNED_COLUMNS` elements in memory."""
    columns = mask.shape[-1]
    missing = -columns % ALIGNED_COLUMNS
    return functional.pad(mask, (0, missing))[..., :columns] if missing else mask


def embedded(stack: Stack, tokens: Tensor, positions: Tensor) -> Tensor:
    """States (B * Q, width) as they enter the first layer, of (B, Q) tokens at (B or 1, Q or 1) positions.

    Positions, and states, are also of the virtual tokens that a stack has in front.
    """
    x = functional.embedding(tokens, stack.embedding).to(stack.layers[0].self_norm.weight.dtype)
    if stack.embedding_scale != 1.0:
        x = x * stack.embedding_scale
    if stack.in_front is not None:
        x = torch.cat((stack.in_front.to(x.dtype).expand(len(tokens), -1, -1), x), 1)
    if stack.positions is not None:
        x = x + functional.embedding(positions, stack.positions)
    if stack.first_norm is not None:
        x = normed(x, stack.first_norm)
    return x.view(-1, x.shape[-1])


def states(
    stack: Stack,
    tokens: Tensor,
    positions: Tensor,
    biases: Sequence[Tensor | None],
    memory: Memory,
    given: Sources | None = None,
) -> Tensor:
    """Last states (B, Q, width) of (B, Q) tokens at (B or 1, Q or 1) positions; the residual stream is not in `dtype`.

    Args:
        given: the sources of a decoder.
    """
    in_front = 0 if stack.in_front is None else len(stack.in_front)
    shape = torch.Size((len(tokens), in_front + tokens.shape[1]))
    x = embedded(stack, tokens, positions)
    for number, layer in enumerate(stack.layers):
        source = None if given is None else given.of(number)
        x = through_layer(stack, layer, x, shape, biases[number], partial(memory.extend, number), source)
    return finished(stack, x, shape)


def through_layer(
    stack: Stack,
    layer: Layer,
    x: Tensor,
    shape: torch.Size,
    bias: Tensor | None,
    extend: Callable[[Tensor], Tensor],
    source: Source | None,
) -> Tensor:
    """States (B * Q, width) behind a layer; `shape` is (B, Q), `extend` that of a `Memory`."""
    y = _begin(stack, x, layer.self_norm)
    projected = _heads(_linear(y, layer.self_in), shape, 3, stack.heads)
    query, (keys, values) = projected[0], extend(projected[1:])
    context = functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=1.0)
    x = _end(stack, x, _rows(context), layer.self_out, layer.self_norm)

    if layer.cross is not None:
        assert source is not None
        y = _begin(stack, x, layer.cross.norm)
        query = _heads(_linear(y, layer.cross.query), shape, 1, stack.heads)[0]
        x = _end(stack, x, _rows(_cross_attention(query, *source)), layer.cross.out, layer.cross.norm)

    if layer.sparse is not None:  # of T5's family
        y = normed(x, layer.sparse.norm)
        x = x + through_all(y.to(stack.dtype), choose(y, layer.sparse.experts), layer.sparse.experts)
    if layer.dense is None:
        return x
    y = _begin(stack, x, layer.dense.norm)
    inner = layer.dense.activation(_linear(y, layer.dense.inner))
    if layer.dense.up is not None:
        inner = inner.mul_(_linear(y, layer.dense.up))
    return _end(stack, x, inner, layer.dense.outer, layer.dense.norm)


def finished(stack: Stack, x: Tensor, shape: torch.Size) -> Tensor:
    """Last states (B, Q, width) of those behind the last layer."""
    if stack.last_norm is not None:
        x = normed(x, stack.last_norm)
    return x.view(*shape, -1)


def cross_keys_values(stack: Stack, cross: Cross, encoded: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer of `Sources` holds, of encoded sources (B, S, width)."""
    projected = _linear(encoded.view(-1, encoded.shape[-1]), cross.key_value)
    key, value = _heads(projected, encoded.shape[:2], 2, stack.heads)
    if key.device.type != "cpu":
        return key, value
    return key.transpose(2, 3).contiguous(), value.contiguous()


def _cross_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H, Q, D). On a CPU three plain operations are the faster, on a device one that keeps scores in fp32."""
    if query.device.type != "cpu":
        mask = None if mask is None else mask[..., : keys.shape[2]]
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=1.0)
    scores = torch.matmul(query, keys)
    if mask is not None:
        scores += mask
    return torch.matmul(scores.softmax(-1), values)


def logits_of(head: Head, hidden: Tensor, room: Tensor | None) -> Tensor:
    """fp32 logits (..., vocabulary or more) of hidden states (..., width); those past the vocabulary are -inf.

    Args:
        room: on a CPU, memory of at least that many rows of a vocabulary, in the type of the products.
    """
    if head.scale != 1.0:
        hidden = hidden * head.scale
    rows = hidden.to(head.weight.dtype).reshape(-1, hidden.shape[-1])
    if room is not None:
        out = room[: len(rows)]
        if head.bias is None:
            torch.mm(rows, head.weight.t(), out=out)
        else:
            torch.addmm(head.bias.to(out.dtype), rows, head.weight.t(), out=out)
        return out.float().view(*hidden.shape[:-1], -1)
    logits = product(rows, head.weight.t(), torch.float32)
    if head.bias is not None:
        logits[:, : head.vocabulary] += head.bias
    if head.vocabulary < logits.shape[1]:
        logits[:, head.vocabulary :] = float("-inf")
    return logits.view(*hidden.shape[:-1], -1)


def _begin(stack: Stack, x: Tensor, norm: Norm) -> Tensor:
    return (normed(x, norm) if stack.norm_first else x).to(stack.dtype)


def _end(stack: Stack, x: Tensor, y: Tensor, out: Linear, norm: Norm) -> Tensor:
    fused = out.bias is None and y.dtype == x.dtype
    x = torch.addmm(x, y, out.weight) if fused else x + _linear(y, out)
    return x if stack.norm_first else normed(x, norm)


def _heads(projected: Tensor, shape: torch.Size, parts: int, count: int) -> Tensor:
    """(B * N, parts * H * D) as (parts, B, H, N, D), where `shape` is (B, N)."""
    width = projected.shape[1] // (parts * count)
    return projected.view(*shape, parts, count, width).permute(2, 0, 3, 1, 4)


def _rows(context: Tensor) -> Tensor:
    """(B, H, Q, D) as (B * Q, H * D)."""
    batch, count, length, width = context.shape
    return context.transpose(1, 2).reshape(batch * length, count * width)


def _linear(x: Tensor, projection: Linear) -> Tensor:
    """Of rows (N, in)."""
    if projection.bias is None:
        return torch.mm(x, projection.weight)
    return torch.addmm(projection.bias, x, projection.weight)
