"""`-compile`: decoding steps of few shapes, their layers through `torch.compile`, which makes CUDA graphs on a GPU.

Everything that a layer reads and writes lies in buffers that stay where they are, one set for each bucket: sources in
powers of two, source and output lengths in multiples of 64. The batch shrinks to the next bucket only, and the cache is
written in place; what is not there yet is masked. One compilation serves all layers and nearly all buckets.

Shapes: R sources of a bucket, k beams, S source length of a bucket, C columns of the cache: k for each step.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from generation.incremental.decoder import StepModel
from generation.incremental.layers import (
    Sources,
    embedded,
    finished,
    logits_of,
    self_bias,
    through_layer,
)
from generation.incremental.weights import Layer
from models.kernels.compiled import PADDED_TO, compiled_for, graphs
from utils.tables import counted

NEVER = float("-inf")
FIRST_STEPS: list[float] = []  # seconds that the first step of every bucket took in this process


def compilations() -> list[str]:
    """What -compile cost in this process, in a line; none where nothing was compiled."""
    count = graphs() if FIRST_STEPS else 0
    buckets = f"the first steps of {counted(len(FIRST_STEPS), 'bucket')} of shapes"
    return [f"-compile: {counted(count, 'compilation')} took {sum(FIRST_STEPS):,.1f} s, {buckets}"] if count else []


def bucket(count: int) -> int:
    """The power of two that holds so many sources."""
    return 1 << (count - 1).bit_length()


class CompiledModel:
    """A `StepModel` whose steps are compiled; `beams` outputs of every source."""

    def __init__(self, model: StepModel, beams: int) -> None:
        self.model = model
        self.beams = beams
        self.dtype = model.dtype
        device = model.device
        self.own = torch.full((beams, beams), NEVER, dtype=self.dtype, device=device).fill_diagonal_(0.0)
        cuda_graphs: dict[str, Any] = {"mode": "reduce-overhead"} if device.type == "cuda" else {}
        self.layer = compiled_for(device.type, self._layer, dynamic=True, **cuda_graphs)
        self.buffers: dict[tuple[str, int, int], list[Tensor]] = {}
        self.seen: set[tuple[int, int, int]] = set()
        for tensor in _tensors((model.weights, model.head, self.own)):
            torch._dynamo.mark_static_address(tensor, guard=False)

    def start(self, input_ids: Tensor, attention_mask: Tensor, beams: int) -> CompiledState:  # noqa: ARG002
        """`beams` outputs of every row of (B, S) source ids, about to begin."""
        missing = (0, self._source_length(input_ids.shape[1]) - input_ids.shape[1])
        ids, mask = functional.pad(input_ids, missing), functional.pad(attention_mask, missing)
        for key in [*self.buffers]:  # batches come by falling length: those of longer sources are over
            if key[0] == "sources" and key[2] != ids.shape[1]:
                del self.buffers[key]
        sources = self.model.encode(ids, mask)
        if sources.mask is None:
            sources.mask = torch.zeros(len(ids), 1, 1, ids.shape[1], dtype=self.dtype, device=ids.device)
        return CompiledState(self, sources)

    def _source_length(self, length: int) -> int:
        """That of the bucket for sources of so many tokens; no more than the encoder has positions."""
        rounded, stack = -(-length // PADDED_TO) * PADDED_TO, self.model.encoder_weights
        return rounded if stack is None or stack.positions is None else min(rounded, len(stack.positions))

    def held(self, kind: str, like: list[Tensor], rows: int, length: int) -> list[Tensor]:
        """The buffers of a bucket, made when they are asked for first: as `like`, with so many rows."""
        if (kind, rows, length) not in self.buffers:
            device = self.model.device
            made = [torch.zeros(_with_rows(tensor, rows), dtype=tensor.dtype, device=device) for tensor in like]
            for tensor in made:
                torch._dynamo.mark_static_address(tensor, guard=False)
            self.buffers[kind, rows, length] = made
        return self.buffers[kind, rows, length]

    def step(
        self, tokens: Tensor, step: Tensor, cache: list[Tensor], visible: Tensor, sources: list[Tensor], mask: Tensor
    ) -> Tensor:
        """(R, k, vocabulary) logits after the tokens (R, k) of a step, a number on the device."""
        places = torch.arange(visible.shape[2], device=tokens.device)
        columns = step * self.beams + torch.arange(self.beams, device=tokens.device)
        visible.index_copy_(2, columns, self.own.expand(len(tokens), -1, -1))
        distance = (step - places // self.beams).view(1, 1, -1)
        biases = self_bias(self.model.weights, distance, visible)
        x = embedded(self.model.weights, tokens, step.view(1, 1))
        half = len(sources) // 2
        pairs = zip(sources[:half], sources[half:], strict=True)
        for layer, kept, bias, pair in zip(self.model.weights.layers, cache, biases, pairs, strict=True):
            assert bias is not None
            x = self.layer(layer, x, bias, kept, columns, *pair, mask)
        return logits_of(self.model.head, finished(self.model.weights, x, tokens.shape), None)

    def _layer(
        self,
        layer: Layer,
        x: Tensor,
        bias: Tensor,
        kept: Tensor,
        columns: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
    ) -> Tensor:
        shape = torch.Size((kept.shape[1], self.beams))

        def extend(new: Tensor) -> Tensor:
            return kept.index_copy_(3, columns, new)

        return through_layer(self.model.weights, layer, x, shape, bias, extend, (keys, values, mask))


class CompiledState:
    """The beams of B sources, as `StepState`."""

    def __init__(self, compiled: CompiledModel, sources: Sources) -> None:
        assert sources.mask is not None
        self.compiled = compiled
        self.dtype = compiled.dtype
        self.rows = len(sources.mask)
        self.length = sources.mask.shape[3]
        self.capacity = 0
        self.cache: list[Tensor] = []
        self._take(
            [*sources.keys, *sources.values, sources.mask], torch.arange(self.rows, device=compiled.model.device)
        )

    def _take(self, sources: list[Tensor], rows: Tensor) -> None:
        """Go on in the buffers of the bucket with these rows of the sources and, if it is there, of the cache."""
        size = bucket(len(rows))
        held = self.compiled.held("sources", sources, size, self.length)
        self.sources = _filled(held, sources, rows)
        if self.capacity:
            self.cache = _filled(self._cache_buffers(size, self.capacity), self.cache, rows)
        self.rows, self.size = len(rows), size

    def _cache_buffers(self, size: int, capacity: int) -> list[Tensor]:
        """Keys and values (2, R, H, C, D) of every layer, and who sees whom (R, k, C), last."""
        model, beams = self.compiled.model, self.compiled.beams
        weights = model.weights
        width = len(weights.layers[0].self_out.weight) // weights.heads
        options: dict[str, Any] = {"dtype": self.dtype, "device": "meta"}
        like = [torch.empty(2, 1, weights.heads, capacity * beams, width, **options) for _ in weights.layers]
        return self.compiled.held("cache", [*like, torch.empty(1, beams, capacity * beams, **options)], size, capacity)

    def logits(self, tokens: Tensor, step: int) -> Tensor:
        """(B, beams, vocabulary) after the last tokens (B, beams), which are those of `step`."""
        if step == self.capacity:
            self._widen()
        began, key = time.monotonic(), (self.size, self.length, self.capacity)
        tokens = functional.pad(tokens, (0, 0, 0, self.size - self.rows))
        place = torch.full((), step, device=tokens.device)
        *layers, visible = self.cache
        *sources, mask = self.sources
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        logits = self.compiled.step(tokens, place, layers, visible, sources, mask)
        if key not in self.compiled.seen:
            self.compiled.seen.add(key)
            FIRST_STEPS.append(time.monotonic() - began)
        return logits[: self.rows]

    def _widen(self) -> None:
        """Have room for more steps."""
        old, self.capacity = self.cache, self.capacity + PADDED_TO
        self.cache = self._cache_buffers(self.size, self.capacity)
        self.cache[-1].fill_(NEVER)
        for new, kept in zip(self.cache, old, strict=bool(old)):
            columns = kept.shape[-1] if kept is old[-1] else kept.shape[3]
            (new[..., :columns] if kept is old[-1] else new[:, :, :, :columns]).copy_(kept)

    def follow(self, parents: Tensor) -> None:
        """Beam j of a source goes on from what its beam `parents[source, j]` has written."""
        visible = self.cache[-1][: self.rows]
        visible.copy_(visible.gather(1, parents.unsqueeze(2).expand(-1, -1, visible.shape[2])))

    def columns(self) -> Tensor:
        """(B,) nothing: columns stay where they are."""
        return torch.zeros(self.rows, dtype=torch.long, device=self.compiled.model.device)

    def rows_kept(self, going_on: int) -> int:
        """How many rows the search keeps where so many go on."""
        return min(self.rows, bucket(going_on))

    def keep(self, rows: Tensor, columns: int | None) -> None:  # noqa: ARG002 (none is thrown out)
        """Go on with the sources of these row numbers."""
        if len(rows) < self.rows:
            self._take(self.sources, rows)


def _with_rows(tensor: Tensor, rows: int) -> tuple[int, ...]:
    """The shape of a cache's layer (2, R, ...) or of anything else (R, ...) with so many rows."""
    shape = list(tensor.shape)
    shape[_rows_dim(tensor)] = rows
    return tuple(shape)


def _rows_dim(tensor: Tensor) -> int:
    return 1 if tensor.dim() == 5 else 0


def _filled(buffers: list[Tensor], values: list[Tensor], rows: Tensor) -> list[Tensor]:
    """The buffers with these rows of the values at their beginning."""
    for buffer, value in zip(buffers, values, strict=True):
        dim = _rows_dim(value)
        buffer.narrow(dim, 0, len(rows)).copy_(value.index_select(dim, rows))
    return buffers


def _tensors(tree: Any) -> list[Tensor]:
    """All tensors in dataclasses, tuples and lists."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree if isinstance(tree, tuple | list) else vars(tree).values() if hasattr(tree, "__dict__") else ()
    return [tensor for part in parts for tensor in _tensors(part)]
