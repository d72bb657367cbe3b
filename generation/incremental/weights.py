"""The weights of a T5, mT5, UMT5, BART or mBART decoder, taken out of its modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

from models.architectures import architecture, logit_scale


class Linear(NamedTuple):
    """A projection. Weights (in, out) suit the matrix products of few rows: a fifth faster on a CPU than (out, in)."""

    weight: Tensor
    bias: Tensor | None


class Norm(NamedTuple):
    """A layer norm, an RMS norm when `bias` is None."""

    weight: Tensor
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class Layer:
    """Weights of a decoder layer; queries of both attentions are scaled in their projections."""

    self_norm: Norm
    self_in: Linear  # query, key and value side by side
    self_out: Linear
    cross_norm: Norm
    cross_query: Linear
    cross_key_value: Linear
    cross_out: Linear
    ff_norm: Norm
    inner: Linear
    up: Linear | None  # the linear branch of a gated feed-forward layer
    outer: Linear
    activation: Callable[[Tensor], Tensor]
    distance_bias: Tensor | None  # (H, distances) added to the self-attention's scores


@dataclass(frozen=True)
class DecoderWeights:
    """All weights that decoding needs besides the encoder; matrices in `dtype`, the rest in the model's own type.

    logits = logit_scale * hidden @ head.T + head_bias.
    """

    dtype: torch.dtype
    heads: int
    norm_first: bool
    embedding: Tensor  # (vocabulary, width)
    embedding_scale: float
    positions: Tensor | None  # (positions, width), learned
    first_norm: Norm | None
    layers: list[Layer]
    last_norm: Norm | None
    head: Tensor  # (vocabulary, width)
    head_bias: Tensor | None
    logit_scale: float


def decoder_weights(model: Any, dtype: torch.dtype) -> DecoderWeights:
    """The weights as they are now; `supports(model)` must hold."""
    row = architecture(model.config.model_type)
    t5 = row.like_t5
    decoder = model.decoder if t5 else model.model.decoder
    last_norm = decoder.final_layer_norm if t5 else getattr(decoder, "layer_norm", None)
    return DecoderWeights(
        dtype=dtype,
        heads=model.config.num_heads if t5 else model.config.decoder_attention_heads,
        norm_first=row.norm_first,
        embedding=decoder.embed_tokens.weight,
        embedding_scale=float(getattr(decoder.embed_tokens, "embed_scale", 1.0)),
        positions=None if t5 else decoder.embed_positions.weight[decoder.embed_positions.offset :],
        first_norm=None if t5 else norm_of(decoder.layernorm_embedding),
        layers=_t5_layers(decoder, dtype) if t5 else _bart_layers(decoder, dtype),
        last_norm=None if last_norm is None else norm_of(last_norm),
        head=model.lm_head.weight.to(dtype),
        head_bias=None if t5 else model.final_logits_bias.view(-1).to(dtype),
        logit_scale=logit_scale(model),
    )


def compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """The type of matrix products: autocast's where it is on, else that of the weights."""
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype


def supports(model: PreTrainedModel) -> bool:
    """Whether the decoder of `model` is one that we know.

    True for the five architectures as long as every projection of the decoder is a plain, whole `nn.Linear`: adapters,
    quantised layers and weights that are sharded over processes are left to `generate`.
    """
    row = architecture(model.config.model_type)
    if not row.own_search or not type(model).__name__.endswith("ForConditionalGeneration"):
        return False
    decoder = model.get_decoder()
    projections = [module for module in (*decoder.modules(), model.lm_head) if hasattr(module, "in_features")]
    return all(
        type(module) is nn.Linear and module.weight.shape == (module.out_features, module.in_features)
        for module in projections
    )


def norm_of(module: Any) -> Norm:
    """The weights of a layer norm or of a T5's RMS norm."""
    if isinstance(module, nn.LayerNorm):
        return Norm(module.weight, module.bias, module.eps)
    return Norm(module.weight, None, module.variance_epsilon)


def normed(x: Tensor, norm: Norm) -> Tensor:
    """`x` after the norm."""
    if norm.bias is None:
        return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)
    return torch.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def _stacked(dtype: torch.dtype, *modules: Any, first_scale: float = 1.0) -> Linear:
    """Linear layers side by side, the output of the first times `first_scale`."""
    weights = [module.weight.t() * (first_scale if not number else 1.0) for number, module in enumerate(modules)]
    bias = None
    if modules[0].bias is not None:
        bias = torch.cat([m.bias * (first_scale if not number else 1.0) for number, m in enumerate(modules)]).to(dtype)
    return Linear(torch.cat(weights, 1).to(dtype).contiguous(), bias)


def activation_of(module: Any) -> Callable[[Tensor], Tensor]:
    """An activation function, by PyTorch's kernel where `transformers` has many small operations."""
    if isinstance(module, NewGELUActivation):
        return lambda x: functional.gelu(x, approximate="tanh")
    return module  # type: ignore[no-any-return]


def _t5_layers(decoder: Any, dtype: torch.dtype) -> list[Layer]:
    layers: list[Layer] = []
    table: Tensor | None = None
    for block in decoder.block:
        own, cross, feed_forward = block.layer
        attention, dense = own.SelfAttention, feed_forward.DenseReluDense
        if attention.has_relative_attention_bias:  # T5 has it in the first layer, for all of them; UMT5 in every layer
            farthest = attention.relative_attention_max_distance
            bias = attention.compute_bias(1, farthest + 1, past_seen_tokens=farthest)
            table = bias[0, :, 0].flip(1).to(dtype).contiguous()
        gated = hasattr(dense, "wi_0")
        layers.append(
            Layer(
                self_norm=norm_of(own.layer_norm),
                self_in=_stacked(dtype, attention.q, attention.k, attention.v),
                self_out=_stacked(dtype, attention.o),
                cross_norm=norm_of(cross.layer_norm),
                cross_query=_stacked(dtype, cross.EncDecAttention.q),
                cross_key_value=_stacked(dtype, cross.EncDecAttention.k, cross.EncDecAttention.v),
                cross_out=_stacked(dtype, cross.EncDecAttention.o),
                ff_norm=norm_of(feed_forward.layer_norm),
                inner=_stacked(dtype, dense.wi_0 if gated else dense.wi),
                up=_stacked(dtype, dense.wi_1) if gated else None,
                outer=_stacked(dtype, dense.wo),
                activation=activation_of(dense.act),
                distance_bias=table,
            )
        )
    return layers


def _bart_layers(decoder: Any, dtype: torch.dtype) -> list[Layer]:
    layers: list[Layer] = []
    for block in decoder.layers:
        own, cross = block.self_attn, block.encoder_attn
        layers.append(
            Layer(
                self_norm=norm_of(block.self_attn_layer_norm),
                self_in=_stacked(dtype, own.q_proj, own.k_proj, own.v_proj, first_scale=own.scaling),
                self_out=_stacked(dtype, own.out_proj),
                cross_norm=norm_of(block.encoder_attn_layer_norm),
                cross_query=_stacked(dtype, cross.q_proj, first_scale=cross.scaling),
                cross_key_value=_stacked(dtype, cross.k_proj, cross.v_proj),
                cross_out=_stacked(dtype, cross.out_proj),
                ff_norm=norm_of(block.final_layer_norm),
                inner=_stacked(dtype, block.fc1),
                up=None,
                outer=_stacked(dtype, block.fc2),
                activation=activation_of(block.activation_fn),
                distance_bias=None,
            )
        )
    return layers
