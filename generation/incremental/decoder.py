"""The decoder of a T5, mT5, UMT5, BART or mBART as plain tensor operations, for search and for label scoring.

The modules of `transformers` spend most of a decoding step on masks, cache objects and Python calls. Here the weights
are taken out of the modules once, and a step is some thirty operations a layer. Two things differ from `generate`:

- Keys and values of the cross-attention exist once a source; its beams are queries of one attention.
- The self-attention cache is never reordered. Every step appends a column for each beam, and each beam sees the
  columns of its ancestors (`visible`). Columns that no beam sees any more are thrown out now and then.

Shapes: B sources, Q queries of a source (its beams, or the nodes of a label trie), H heads, D head width, S source
length, C columns of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from generation.incremental.weights import Linear, Norm, decoder_weights, normed
from models.forward import unread_mask

# Steps that a fresh cache has room for, and one that was just compacted; a full cache is doubled.
COLUMNS_AT_FIRST = 64
COLUMNS_TO_COME = 8
TOKENS_AT_ONCE = 1024  # that a CPU encodes together, padding included: their states stay in its cache


@dataclass
class Sources:
    """Cross-attention keys (B, H, D, S) and values (B, H, S, D) of every layer, and the additive mask (B, 1, 1, S)."""

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor | None

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


class StepModel:
    """Hidden states and logits of a decoder, many queries of every source at once.

    The weights are those at construction: make a new one after a training step. `dtype` is that of matrix products and
    caches; the residual stream and the norms stay in the model's own.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        self.encoder: Any = model.get_encoder()
        self.weights = decoder_weights(model, dtype)
        self.dtype = dtype
        self.vocabulary = len(self.weights.head)
        self._logits: Tensor | None = None

    def start(self, input_ids: Tensor, attention_mask: Tensor, beams: int) -> StepState:
        """`beams` outputs of every row of (B, S) source ids, about to begin."""
        return StepState(self, self.encode(input_ids, attention_mask), BeamCache(self, len(input_ids), beams))

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Sources:
        """What the decoder needs of (B, S) source ids."""
        encoded = self._encoded(input_ids, attention_mask).to(self.dtype)
        keys, values = [], []
        for layer in self.weights.layers:
            projected = _linear(encoded.view(-1, encoded.shape[-1]), layer.cross_key_value)
            key, value = self._heads(projected, input_ids.shape, 2)
            keys.append(key.transpose(2, 3).contiguous())
            values.append(value.contiguous())
        mask = None
        if encoded.device.type != "cpu" or not bool(attention_mask.all()):  # the host does not wait for a device
            mask = torch.zeros(attention_mask.shape, dtype=self.dtype, device=encoded.device)
            mask = mask.masked_fill_(attention_mask == 0, torch.finfo(self.dtype).min)[:, None, None]
        return Sources(keys, values, mask)

    def _encoded(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The encoder's states (B, S, width); those of padding mean nothing.

        A CPU goes through a batch in parts, each only as wide as its longest source.
        """
        if input_ids.device.type != "cpu":
            mask = unread_mask(self.encoder.config, attention_mask)
            return self.encoder(input_ids=input_ids, attention_mask=mask)[0]  # type: ignore[no-any-return]
        length = input_ids.shape[1]
        rows = max(1, TOKENS_AT_ONCE // length)
        parts = []
        for start in range(0, len(input_ids), rows):
            mask = attention_mask[start : start + rows]
            used = mask.any(0).nonzero()
            width = int(used[-1]) + 1 if len(used) else 1
            ids = input_ids[start : start + rows, :width]
            states = self.encoder(input_ids=ids, attention_mask=mask[:, :width])[0]
            parts.append(functional.pad(states, (0, 0, 0, length - width)))
        return torch.cat(parts)

    def self_bias(self, distance: Tensor, visible: Tensor | None) -> list[Tensor | None]:
        """For every layer what is added to the scores of its self-attention, (B or 1, H or 1, Q or 1, C).

        Args:
            distance: (B or 1, Q or 1, C) positions from the query back to the key.
            visible: (B or 1, Q, C), 0 where the query sees the key and -inf elsewhere; None where it sees all.
        """
        biases: list[Tensor | None] = []
        for number, layer in enumerate(self.weights.layers):
            table = layer.distance_bias
            if number and table is self.weights.layers[number - 1].distance_bias:
                biases.append(biases[-1])
                continue
            bias = None if visible is None else visible.unsqueeze(1)
            if table is not None:
                near = distance.clamp(0, table.shape[1] - 1)
                by_head = table.index_select(1, near.view(-1)).view(-1, *near.shape).transpose(0, 1)
                bias = by_head if bias is None else by_head + bias
            biases.append(bias)
        return biases

    def hidden(
        self, tokens: Tensor, positions: Tensor, biases: list[Tensor | None], memory: Memory, given: Sources
    ) -> Tensor:
        """States (B, Q, width) as they enter the output embedding, of (B, Q) tokens at (B or 1, Q or 1) positions."""
        shape, weights = tokens.shape, self.weights
        x = functional.embedding(tokens, weights.embedding)
        if weights.embedding_scale != 1.0:
            x = x * weights.embedding_scale
        if weights.positions is not None:
            x = x + functional.embedding(positions, weights.positions)
        if weights.first_norm is not None:
            x = normed(x, weights.first_norm)
        x = x.view(-1, x.shape[-1])
        for number, layer in enumerate(weights.layers):
            y = self._begin(x, layer.self_norm)
            heads = self._heads(_linear(y, layer.self_in), shape, 3)
            query, (keys, values) = heads[0], memory.extend(number, heads[1:])
            context = functional.scaled_dot_product_attention(query, keys, values, attn_mask=biases[number], scale=1.0)
            x = self._end(x, _rows(context), layer.self_out, layer.self_norm)

            y = self._begin(x, layer.cross_norm)
            query = self._heads(_linear(y, layer.cross_query), shape, 1)
            scores = torch.matmul(query[0], given.keys[number])
            if given.mask is not None:
                scores += given.mask
            context = torch.matmul(scores.softmax(-1), given.values[number])
            x = self._end(x, _rows(context), layer.cross_out, layer.cross_norm)

            y = self._begin(x, layer.ff_norm)
            inner = layer.activation(_linear(y, layer.inner))
            if layer.up is not None:
                inner = inner.mul_(_linear(y, layer.up))
            x = self._end(x, inner, layer.outer, layer.ff_norm)
        if weights.last_norm is not None:
            x = normed(x, weights.last_norm)
        return x.view(*shape, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits (..., vocabulary) of hidden states (..., width); the next call may overwrite them.

        The same memory serves every call: at 250,000 tokens, fresh pages cost more than a pass over them.
        """
        weights = self.weights
        if weights.logit_scale != 1.0:
            hidden = hidden * weights.logit_scale
        rows = hidden.to(self.dtype).reshape(-1, hidden.shape[-1])
        if self._logits is None or len(self._logits) < len(rows):
            self._logits = torch.empty(len(rows), self.vocabulary, dtype=self.dtype, device=rows.device)
        out = self._logits[: len(rows)]
        if weights.head_bias is None:
            torch.mm(rows, weights.head.t(), out=out)
        else:
            torch.addmm(weights.head_bias, rows, weights.head.t(), out=out)
        return out.float().view(*hidden.shape[:-1], -1)

    def _begin(self, x: Tensor, norm: Norm) -> Tensor:
        return (normed(x, norm) if self.weights.norm_first else x).to(self.dtype)

    def _end(self, x: Tensor, y: Tensor, linear: Linear, norm: Norm) -> Tensor:
        fused = linear.bias is None and y.dtype == x.dtype
        x = torch.addmm(x, y, linear.weight) if fused else x + _linear(y, linear)
        return x if self.weights.norm_first else normed(x, norm)

    def _heads(self, projected: Tensor, shape: torch.Size, parts: int) -> Tensor:
        """(B * N, parts * H * D) as (parts, B, H, N, D), where `shape` is (B, N)."""
        width = projected.shape[1] // (parts * self.weights.heads)
        return projected.view(*shape, parts, self.weights.heads, width).permute(2, 0, 3, 1, 4)


class BeamCache:
    """Self-attention keys and values of the beams of B sources, a column for each beam and step.

    `visible` (B, beams, C) is 0 where a beam sees a column and -inf elsewhere; `positions` (B, C) is a column's step.
    """

    def __init__(self, model: StepModel, sources: int, beams: int) -> None:
        weights = model.weights
        device = weights.head.device
        width = len(weights.layers[0].self_out.weight) // weights.heads
        shape = 2, sources, weights.heads, COLUMNS_AT_FIRST * beams, width  # keys and values of a layer
        self.layers = [torch.empty(shape, dtype=model.dtype, device=device) for _ in weights.layers]
        self.beams = beams
        self.used = 0
        self.own = torch.full((beams, beams), float("-inf"), dtype=model.dtype, device=device).fill_diagonal_(0.0)
        self.visible = torch.empty(sources, beams, 0, dtype=model.dtype, device=device)
        self.positions = torch.empty(sources, 0, dtype=torch.long, device=device)

    def open(self, step: int) -> None:
        """Add the columns of a step, each seen by its own beam; `extend` fills them."""
        if self.used + self.beams > self.layers[0].shape[3]:
            self.layers = [_doubled(kept, self.used) for kept in self.layers]
        self.used += self.beams
        sources = len(self.visible)
        self.visible = torch.cat((self.visible, self.own.expand(sources, -1, -1)), dim=2)
        self.positions = torch.cat((self.positions, self.positions.new_full((sources, self.beams), step)), dim=1)

    def extend(self, layer: int, new: Tensor) -> Tensor:
        kept = self.layers[layer]
        kept[:, :, :, self.used - self.beams : self.used] = new
        return kept[:, :, :, : self.used]

    def follow(self, parents: Tensor) -> None:
        """Let beam j of a source see what its beam `parents[source, j]` saw."""
        self.visible = self.visible.gather(1, parents.unsqueeze(2).expand(-1, -1, self.used))

    def seen(self) -> Tensor:
        """(B,) columns that a beam of each source still sees."""
        return (self.visible == 0.0).any(1).sum(1)

    def compact(self, rows: Tensor, count: int | None = None) -> None:
        """Keep the sources of these row numbers, and of their columns those that a beam still sees.

        Args:
            count: the most of a source; None = they are counted, and the host waits.
        """
        visible, positions = self.visible[rows], self.positions[rows]
        seen = (visible == 0.0).any(1)
        count = int(seen.sum(1).max()) if count is None else count
        columns = seen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
        self.visible = visible.gather(2, columns.unsqueeze(1).expand(-1, self.beams, -1))
        self.positions = positions.gather(1, columns)
        self.used = count
        columns = functional.pad(columns, (0, COLUMNS_TO_COME * self.beams))  # by copies of column 0: room to fill
        _, sources, heads, capacity, _ = self.layers[0].shape
        first = torch.arange(2, device=rows.device)[:, None] * sources + rows
        first = first.unsqueeze(2) * heads + torch.arange(heads, device=rows.device)
        index = (first * capacity).unsqueeze(3) + columns.unsqueeze(1)  # (2, rows, H, columns) into the flat cache
        self.layers = [_picked(kept, index) for kept in self.layers]


class StepState:
    """The beams of B sources under one model: gives the logits of their next tokens, and follows the search."""

    def __init__(self, model: StepModel, sources: Sources, cache: BeamCache) -> None:
        self.model = model
        self.sources = sources
        self.cache = cache
        self.dtype = model.dtype

    def logits(self, tokens: Tensor, step: int) -> Tensor:
        """(B, beams, vocabulary) after the last tokens (B, beams), which are those of `step`."""
        cache = self.cache
        cache.open(step)
        visible = None if cache.beams == 1 else cache.visible
        biases = self.model.self_bias(step - cache.positions.unsqueeze(1), visible)
        position = torch.full((1, 1), step, device=tokens.device)
        return self.model.logits(self.model.hidden(tokens, position, biases, cache, self.sources))

    def follow(self, parents: Tensor) -> None:
        """Beam j of a source goes on from what its beam `parents[source, j]` has written."""
        self.cache.follow(parents)

    def columns(self) -> Tensor:
        """(B,) cache columns that are still seen of each source."""
        return self.cache.seen()

    def keep(self, rows: Tensor, columns: int | None) -> None:
        """Go on with the sources of these row numbers, and only the cache columns that are still seen."""
        if len(rows) < len(self.cache.visible):
            self.sources = self.sources.select(rows)
        self.cache.compact(rows, columns)


def _picked(kept: Tensor, index: Tensor) -> Tensor:
    return kept.view(-1, kept.shape[-1]).index_select(0, index.view(-1)).view(*index.shape, -1)


def _doubled(kept: Tensor, used: int) -> Tensor:
    larger = kept.new_empty(*kept.shape[:3], 2 * kept.shape[3], kept.shape[4])
    larger[:, :, :, :used] = kept[:, :, :, :used]
    return larger


def _rows(context: Tensor) -> Tensor:
    """(B, H, Q, D) as (B * Q, H * D)."""
    batch, heads, length, width = context.shape
    return context.transpose(1, 2).reshape(batch * length, heads * width)


def _linear(x: Tensor, linear: Linear) -> Tensor:
    """Of rows (N, in)."""
    return torch.mm(x, linear.weight) if linear.bias is None else torch.addmm(linear.bias, x, linear.weight)


class EnsembleState:
    """`StepState` for several models. The search normalises the mean again, so that it is a distribution."""

    def __init__(self, states: Sequence[StepState]) -> None:
        self.states = states
        self.dtype = states[0].dtype

    def logits(self, tokens: Tensor, step: int) -> Tensor:
        return torch.stack([state.logits(tokens, step).log_softmax(2) for state in self.states]).mean(0)

    def follow(self, parents: Tensor) -> None:
        for state in self.states:
            state.follow(parents)

    def columns(self) -> Tensor:
        return self.states[0].columns()

    def keep(self, rows: Tensor, columns: int | None) -> None:
        for state in self.states:
            state.keep(rows, columns)


def start(
    models: Sequence[StepModel], input_ids: Tensor, attention_mask: Tensor, beams: int
) -> StepState | EnsembleState:
    """`beams` outputs of every row of (batch, source_length) ids under one model or several."""
    states = [model.start(input_ids, attention_mask, beams) for model in models]
    return states[0] if len(states) == 1 else EnsembleState(states)
