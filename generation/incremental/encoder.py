"""The encoder of a T5, mT5, UMT5, BART or mBART as plain tensor operations, for inference on a CPU.

Three things are cheaper than in the modules of `transformers`: position bias and mask are put together once, not in
every layer; a batch is gone through in parts that stay in the cache; and a part is only as wide as its longest source,
which for rows of like length leaves hardly any padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from generation.incremental.weights import Norm, activation_of, norm_of, normed
from models.architectures import architecture

TOKENS_AT_ONCE = 1024  # of a part of a batch, padding included


class _Projection(NamedTuple):
    """A linear layer: weight (out, in)."""

    weight: Tensor
    bias: Tensor | None


class _Layer(NamedTuple):
    attention_norm: Norm
    query_key_value: _Projection  # side by side; the query scaled
    attention_out: _Projection
    ff_norm: Norm
    inner: _Projection
    up: _Projection | None  # the linear branch of a gated feed-forward layer
    outer: _Projection
    activation: Callable[[Tensor], Tensor]
    position_bias: Callable[[int, int], Tensor] | None  # (1, H, N, N) for a length N


def serves(model: PreTrainedModel) -> bool:
    """Whether `EncoderPass` computes what the encoder of `model` does, and sooner: plain layers on a CPU."""
    if not architecture(model.config.model_type).family or model.device.type != "cpu":
        return False
    projections = [module for module in model.get_encoder().modules() if hasattr(module, "in_features")]
    return all(type(module) is nn.Linear for module in projections)


class EncoderPass:
    """Encoded sources; the weights are those at construction. `serves(model)` must hold.

    Args:
        dtype: that of matrix products; the residual stream and the norms stay in the model's own.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        encoder: Any = model.get_encoder()
        row = architecture(model.config.model_type)
        self.dtype = dtype
        self.heads = model.config.num_heads if row.family == "t5" else model.config.encoder_attention_heads
        self.norm_first = row.norm_first
        self.embedding = encoder.embed_tokens.weight
        self.embedding_scale = float(getattr(encoder.embed_tokens, "embed_scale", 1.0))
        self.positions: Tensor | None = None
        self.first_norm: Norm | None = None
        if row.family == "t5":
            self.layers = [_t5_layer(block, dtype) for block in encoder.block]
            self.last_norm: Norm | None = norm_of(encoder.final_layer_norm)
        else:
            self.positions = encoder.embed_positions.weight[encoder.embed_positions.offset :]
            self.first_norm = norm_of(encoder.layernorm_embedding)
            self.layers = [_bart_layer(layer, dtype) for layer in encoder.layers]
            self.last_norm = norm_of(encoder.layer_norm) if hasattr(encoder, "layer_norm") else None

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """States (B, S, width) of (B, S) source ids; those of padding mean nothing."""
        states: Tensor = self.embedding.new_zeros(*input_ids.shape, self.embedding.shape[1])
        rows = max(1, TOKENS_AT_ONCE // input_ids.shape[1])
        for start in range(0, len(input_ids), rows):
            part = slice(start, start + rows)
            width = _width(attention_mask[part])
            mask = attention_mask[part, :width]
            states[part, :width] = self._states(input_ids[part, :width], None if mask.all() else mask)
        return states

    def _states(self, input_ids: Tensor, mask: Tensor | None) -> Tensor:
        shape = input_ids.shape
        x = functional.embedding(input_ids, self.embedding)
        if self.embedding_scale != 1.0:
            x = x * self.embedding_scale
        if self.positions is not None:
            x = x + self.positions[: shape[1]]
        if self.first_norm is not None:
            x = normed(x, self.first_norm)
        x = x.view(-1, x.shape[-1])
        blocked = None
        if mask is not None:
            blocked = torch.zeros(mask.shape, dtype=self.dtype)
            blocked = blocked.masked_fill_(mask == 0, torch.finfo(self.dtype).min)[:, None, None]
        bias: Tensor | None = None if blocked is None else blocked.expand(-1, -1, shape[1], -1)
        for layer in self.layers:
            if layer.position_bias is not None:
                bias = layer.position_bias(shape[1], shape[1]).to(self.dtype)
                bias = bias if blocked is None else bias + blocked
            y = (normed(x, layer.attention_norm) if self.norm_first else x).to(self.dtype)
            projected = functional.linear(y, *layer.query_key_value).view(*shape, 3, self.heads, -1)
            query, key, value = projected.permute(2, 0, 3, 1, 4)
            context = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
            x = self._added(x, context.transpose(1, 2).flatten(2).flatten(0, 1), layer.attention_out)
            x = x if self.norm_first else normed(x, layer.attention_norm)
            y = (normed(x, layer.ff_norm) if self.norm_first else x).to(self.dtype)
            inner = layer.activation(functional.linear(y, *layer.inner))
            if layer.up is not None:
                inner = inner.mul_(functional.linear(y, *layer.up))
            x = self._added(x, inner, layer.outer)
            x = x if self.norm_first else normed(x, layer.ff_norm)
        if self.last_norm is not None:
            x = normed(x, self.last_norm)
        return x.view(*shape, -1)

    def _added(self, x: Tensor, y: Tensor, projection: _Projection) -> Tensor:
        if projection.bias is None and y.dtype == x.dtype:
            return torch.addmm(x, y, projection.weight.t())
        return x + functional.linear(y, *projection)


def _width(mask: Tensor) -> int:
    """Columns up to the last one that a source has; at least 1."""
    seen = mask.any(0).nonzero()
    return int(seen[-1]) + 1 if len(seen) else 1


def _projection(dtype: torch.dtype, *modules: Any, first_scale: float = 1.0) -> _Projection:
    """Linear layers one below the other, the output of the first times `first_scale`."""
    scales = [first_scale] + [1.0] * (len(modules) - 1)
    if len(modules) == 1:
        weight, bias = modules[0].weight, modules[0].bias
    else:
        weight = torch.cat([module.weight * scale for module, scale in zip(modules, scales, strict=True)])
        biases = [module.bias * scale for module, scale in zip(modules, scales, strict=True) if module.bias is not None]
        bias = torch.cat(biases) if biases else None
    return _Projection(weight.to(dtype), None if bias is None else bias.to(dtype))


def _t5_layer(block: Any, dtype: torch.dtype) -> _Layer:
    own, feed_forward = block.layer
    attention, dense = own.SelfAttention, feed_forward.DenseReluDense
    gated = hasattr(dense, "wi_0")
    return _Layer(
        attention_norm=norm_of(own.layer_norm),
        query_key_value=_projection(dtype, attention.q, attention.k, attention.v),
        attention_out=_projection(dtype, attention.o),
        ff_norm=norm_of(feed_forward.layer_norm),
        inner=_projection(dtype, dense.wi_0 if gated else dense.wi),
        up=_projection(dtype, dense.wi_1) if gated else None,
        outer=_projection(dtype, dense.wo),
        activation=activation_of(dense.act),
        position_bias=attention.compute_bias if attention.has_relative_attention_bias else None,
    )


def _bart_layer(layer: Any, dtype: torch.dtype) -> _Layer:
    own = layer.self_attn
    return _Layer(
        attention_norm=norm_of(layer.self_attn_layer_norm),
        query_key_value=_projection(dtype, own.q_proj, own.k_proj, own.v_proj, first_scale=own.scaling),
        attention_out=_projection(dtype, own.out_proj),
        ff_norm=norm_of(layer.final_layer_norm),
        inner=_projection(dtype, layer.fc1),
        up=None,
        outer=_projection(dtype, layer.fc2),
        activation=activation_of(layer.activation_fn),
        position_bias=None,
    )
