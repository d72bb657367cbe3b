"""The decoder of the families of T5 and BART for search and for label scoring.

Two things differ from `generate`:

- Keys and values of the cross-attention exist once a source; its beams are queries of one attention.
- The self-attention cache is never reordered. Every step appends a column for each beam, and each beam sees the
  columns of its ancestors (`visible`). Columns that no beam sees any more are thrown out now and then.

Shapes: B sources, Q queries of a source (its beams, or the nodes of a label trie), H heads, D head width, S source
length, C columns of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from generation.incremental.layers import (
    Memory,
    NoMemory,
    Sources,
    cross_keys_values,
    logits_of,
    self_bias,
    states,
    without_autocast,
)
from generation.incremental.weights import Tables, decoder_weights, encoder_weights, head_weights
from models.adapters.virtual_tokens import count_of

# Steps that a fresh cache has room for, and one that was just compacted; a full cache is doubled.
COLUMNS_AT_FIRST = 64
COLUMNS_TO_COME = 8
TOKENS_AT_ONCE = 1024  # that a CPU encodes together, padding included: their states stay in its cache


class StepModel:
    """Sources, hidden states and logits of a model, many queries of every source at once.

    The weights are those at construction: make a new one after a training step. `dtype` is that of matrix products and
    caches; the residual stream and the norms stay in the model's own. A CPU encodes with the library's encoder.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        tables = Tables(dtype)
        self.device = model.device
        self.in_front = count_of(model.get_encoder())  # virtual tokens, which ids and masks are without
        self.encoder: Any = model.get_encoder() if self.device.type == "cpu" else None
        self.encoder_weights = None if self.encoder else encoder_weights(model, tables)
        self.weights = decoder_weights(model, tables)
        self.head = head_weights(model, tables)
        self.dtype = dtype
        self.vocabulary = len(self.head.weight)  # with padding
        self._room: Tensor | None = None

    def start(self, input_ids: Tensor, attention_mask: Tensor, beams: int) -> StepState:
        """`beams` outputs of every row of (B, S) source ids, about to begin."""
        return StepState(self, self.encode(input_ids, attention_mask), BeamCache(self, len(input_ids), beams))

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Sources:
        """What the decoder needs of (B, S) source ids."""
        with without_autocast(self.device) if self.encoder is None else nullcontext():
            encoded = self._encoded(input_ids, attention_mask).to(self.dtype)
        attention_mask = self._seen(attention_mask)
        crosses = [layer.cross for layer in self.weights.layers if layer.cross is not None]
        pairs = [cross_keys_values(self.weights, cross, encoded) for cross in crosses]
        mask = None
        if self.device.type != "cpu" or not bool(attention_mask.all()):  # the host does not wait for a device
            mask = self._additive(attention_mask)[:, None, None]
        keys, values = zip(*pairs, strict=True)
        return Sources(list(keys), list(values), mask)

    def _seen(self, attention_mask: Tensor) -> Tensor:
        """The mask with the virtual tokens in front."""
        return functional.pad(attention_mask, (self.in_front, 0), value=1)

    def _additive(self, attention_mask: Tensor) -> Tensor:
        mask = torch.zeros(attention_mask.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(attention_mask == 0, torch.finfo(self.dtype).min)

    def _encoded(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The encoder's states (B, virtual tokens + S, width); those of padding mean nothing.

        A CPU goes through a batch in parts, each only as wide as its longest source.
        """
        length = input_ids.shape[1]
        if self.encoder_weights is not None:
            places = torch.arange(self.in_front + length, device=self.device)
            blocked = self._additive(self._seen(attention_mask)).unsqueeze(1)
            biases = self_bias(self.encoder_weights, (places.unsqueeze(1) - places).unsqueeze(0), blocked)
            return states(self.encoder_weights, input_ids, places.unsqueeze(0), biases, NoMemory())
        rows = max(1, TOKENS_AT_ONCE // length)
        parts = []
        for start in range(0, len(input_ids), rows):
            mask = attention_mask[start : start + rows]
            used = mask.any(0).nonzero()
            width = int(used[-1]) + 1 if len(used) else 1
            ids = input_ids[start : start + rows, :width]
            encoded = self.encoder(input_ids=ids, attention_mask=self._seen(mask[:, :width]))[0]
            parts.append(functional.pad(encoded, (0, 0, 0, length - width)))
        return torch.cat(parts)

    def self_bias(self, distance: Tensor, visible: Tensor | None) -> list[Tensor | None]:
        """What the decoder adds to the scores of self-attention, see `layers.self_bias`."""
        return self_bias(self.weights, distance, visible)

    def hidden(
        self, tokens: Tensor, positions: Tensor, biases: list[Tensor | None], memory: Memory, given: Sources
    ) -> Tensor:
        """States (B, Q, width) as they enter the output embedding, of (B, Q) tokens at (B or 1, Q or 1) positions."""
        return states(self.weights, tokens, positions, biases, memory, given)

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits (..., vocabulary) of hidden states (..., width); the next call may overwrite them.

        On a CPU the same memory serves every call: at 250,000 tokens, fresh pages cost more than a pass over them.
        """
        rows = hidden.shape[:-1].numel()
        if self.device.type == "cpu" and (self._room is None or len(self._room) < rows):
            self._room = torch.empty(rows, self.vocabulary, dtype=self.dtype)
        return logits_of(self.head, hidden, self._room)

    def release(self, model: PreTrainedModel) -> None:
        """Take from `model` the parameters that this does not use: it cannot be called, trained or saved any more."""
        used = {id(parameter) for parameter in self.encoder.parameters()} if self.encoder else set()
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in used:
                    setattr(module, name, nn.Parameter(parameter.new_empty(0), requires_grad=False))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class BeamCache:
    """Self-attention keys and values of the beams of B sources, a column for each beam and step.

    `visible` (B, beams, C) is 0 where a beam sees a column and -inf elsewhere; `positions` (B, C) is a column's step.
    """

    def __init__(self, model: StepModel, sources: int, beams: int) -> None:
        weights, device = model.weights, model.device
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

    def rows_kept(self, going_on: int) -> int:
        """How many rows the search keeps where so many go on: those that are done leave at once."""
        return going_on

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

    def rows_kept(self, going_on: int) -> int:
        return self.states[0].rows_kept(going_on)

    def keep(self, rows: Tensor, columns: int | None) -> None:
        for state in self.states:
            state.keep(rows, columns)


class Starts(Protocol):
    """A model that begins outputs, as `StepModel` does."""

    def start(self, input_ids: Tensor, attention_mask: Tensor, beams: int) -> Any: ...


def start(models: Sequence[Starts], input_ids: Tensor, attention_mask: Tensor, beams: int) -> Any:
    """`beams` outputs of every row of (batch, source_length) ids under one model or several."""
    states = [model.start(input_ids, attention_mask, beams) for model in models]
    return states[0] if len(states) == 1 else EnsembleState(states)
