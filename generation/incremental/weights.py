"""The weights of the families of T5 and BART, taken out of its modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

from models.adapters.virtual_tokens import count_of, vectors_of
from models.architectures import architecture, logit_scale
from models.forward import logits_bias
from models.kernels.casts import autocast_dtype
from models.kernels.products import aligned_rows
from models.switch.modeling_switch_t5 import Experts, SwitchFeedForward

_ACTIVATIONS: dict[type, Callable[[Tensor], Tensor]] = {}


class Linear(NamedTuple):
    """A projection. Weights (in, out) suit the matrix products of few rows: a fifth faster on a CPU than (out, in)."""

    weight: Tensor
    bias: Tensor | None


class Norm(NamedTuple):
    """A layer norm, an RMS norm when `bias` is None."""

    weight: Tensor
    bias: Tensor | None
    eps: float


class Cross(NamedTuple):
    """The cross-attention of a decoder layer; queries are scaled in their projection."""

    norm: Norm
    query: Linear
    key_value: Linear
    out: Linear


class FeedForward(NamedTuple):
    """A feed-forward layer."""

    norm: Norm
    inner: Linear
    up: Linear | None  # the linear branch of a gated one
    outer: Linear
    activation: Callable[[Tensor], Tensor]


class Sparse(NamedTuple):
    """A switch layer."""

    norm: Norm
    experts: Experts


@dataclass(frozen=True)
class Layer:
    """Weights of a layer of an encoder or a decoder; queries are scaled in their projections."""

    self_norm: Norm
    self_in: Linear  # query, key and value side by side
    self_out: Linear
    cross: Cross | None  # None in an encoder
    sparse: Sparse | None
    dense: FeedForward | None
    distance_bias: Tensor | None  # (H, distances) added to the self-attention's scores


@dataclass(frozen=True)
class Stack:
    """All weights of an encoder or a decoder; matrices in `dtype`, the rest in the model's own type.

    The first column of a `distance_bias` is that of `nearest`, positions from the query back to the key.
    """

    dtype: torch.dtype
    heads: int
    norm_first: bool
    embedding: Tensor  # (vocabulary or more, width)
    embedding_scale: float
    positions: Tensor | None  # (positions, width), learned
    first_norm: Norm | None
    layers: list[Layer]
    last_norm: Norm | None
    nearest: int
    in_front: Tensor | None = None  # (virtual tokens, width) of an encoder


@dataclass(frozen=True)
class Head:
    """What makes logits of states: scale * states @ weight.T + bias; rows of `weight` past `vocabulary` are padding."""

    weight: Tensor  # (vocabulary or more, width)
    bias: Tensor | None  # fp32
    scale: float
    vocabulary: int


class Tables:
    """Embeddings of a model as matrices of `dtype`; those that modules share are shared.

    On a CPU an embedding that is looked up stays in the model's own type. A device has one matrix for the lookup and
    the logits, with rows up to a multiple of 64, so that the rows of logits are aligned.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.found: dict[int, Tensor] = {}

    def embedding(self, weight: Tensor) -> Tensor:
        """To look tokens up."""
        return weight.detach() if weight.device.type == "cpu" else self.head(weight)

    def head(self, weight: Tensor) -> Tensor:
        """To make logits."""
        if id(weight) not in self.found:
            matrix = weight.detach()
            on_cpu = weight.device.type == "cpu"
            self.found[id(weight)] = matrix.to(self.dtype) if on_cpu else aligned_rows(matrix, self.dtype)
        return self.found[id(weight)]


def decoder_weights(model: Any, tables: Tables) -> Stack:
    """The weights of the decoder as they are now; `supports(model)` must hold."""
    return _stack(model, model.get_decoder(), tables)


def encoder_weights(model: Any, tables: Tables) -> Stack:
    """The weights of the encoder as they are now; `supports(model)` must hold."""
    encoder = model.get_encoder()
    return replace(_stack(model, encoder, tables), in_front=vectors_of(encoder).detach() if count_of(encoder) else None)


def head_weights(model: Any, tables: Tables) -> Head:
    """What makes the logits; a bias of zeros, as BART's mostly is, is left out."""
    bias = logits_bias(model)
    if bias is not None:
        bias = bias.detach().view(-1) if bool(bias.any()) else None
    return Head(tables.head(model.lm_head.weight), bias, logit_scale(model), len(model.lm_head.weight))


def _stack(model: Any, part: Any, tables: Tables) -> Stack:
    row, dtype = architecture(model.config.model_type), tables.dtype
    own = part.embed_tokens
    if row.like_t5:
        layers, nearest = _t5_layers(part, dtype)
        positions = first_norm = None
    else:
        layers, nearest = _bart_layers(part, dtype), 0
        positions = positions_of(part.embed_positions)
        first_norm = norm_of(part.layernorm_embedding) if row.embedding_norm else None
    last_norm = part.final_layer_norm if row.like_t5 else getattr(part, "layer_norm", None)
    return Stack(
        dtype=dtype,
        heads=model.config.num_heads if row.like_t5 else part.layers[0].self_attn.num_heads,
        norm_first=row.norm_first,
        embedding=tables.embedding(own.weight),
        embedding_scale=float(getattr(own, "embed_scale", getattr(part, "embed_scale", 1.0))),
        positions=positions,
        first_norm=first_norm,
        layers=layers,
        last_norm=None if last_norm is None else norm_of(last_norm),
        nearest=nearest,
    )


def positions_of(module: Any) -> Tensor:
    """(positions, width) of the first token, the second, ..., where none of them is padding."""
    if not hasattr(module, "weights"):
        return module.weight.detach()[getattr(module, "offset", 0) :]  # type: ignore[no-any-return]
    first = module.padding_idx + 1  # M2M100 makes its sinusoids on the way
    table = module.get_embedding(first + module.num_positions, module.embedding_dim, module.padding_idx)
    return table[first:].to(module.weights)  # type: ignore[no-any-return]


def compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """The type of matrix products: autocast's where it is on, else that of the weights."""
    return autocast_dtype(model.device) or model.dtype


def supports(model: PreTrainedModel) -> bool:
    """Whether the weights of `model` are known to us.

    True for the architectures of T5's and BART's families as long as every projection is a plain, whole `nn.Linear`:
    adapters, quantised layers and weights that are sharded over processes are left to `generate`. So is an M2M100 that
    starts with padding: the library then counts positions otherwise in training than in `generate`.
    """
    config, row = model.config, architecture(model.config.model_type)
    if not row.own_search or not type(model).__name__.endswith("ForConditionalGeneration"):
        return False
    if row.places_skip_padding and config.decoder_start_token_id == config.pad_token_id:
        return False
    projections = [module for module in model.modules() if hasattr(module, "in_features")]
    return all(
        type(module) is nn.Linear and module.weight.shape == (module.out_features, module.in_features)
        for module in projections
    )


def norm_of(module: Any) -> Norm:
    """The weights of a layer norm or of a T5's RMS norm."""
    if isinstance(module, nn.LayerNorm):
        return Norm(module.weight.detach(), module.bias.detach(), module.eps)
    return Norm(module.weight.detach(), None, module.variance_epsilon)


def normed(x: Tensor, norm: Norm) -> Tensor:
    """`x` after the norm."""
    if norm.bias is None:
        return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)
    return torch.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def _stacked(dtype: torch.dtype, *modules: Any, first_scale: float = 1.0) -> Linear:
    """Linear layers side by side, the output of the first times `first_scale`."""
    scales = [first_scale] + [1.0] * (len(modules) - 1)
    weights = [module.weight.detach().t() * scale for module, scale in zip(modules, scales, strict=True)]
    bias = None
    if modules[0].bias is not None:
        bias = torch.cat([m.bias.detach() * scale for m, scale in zip(modules, scales, strict=True)]).to(dtype)
    return Linear(torch.cat(weights, 1).to(dtype).contiguous(), bias)


def activation_of(module: Any) -> Callable[[Tensor], Tensor]:
    """An activation function, the same for all layers, by PyTorch's kernel where `transformers` has many operations."""
    if isinstance(module, NewGELUActivation):
        return _tanh_gelu
    return _ACTIVATIONS.setdefault(type(module), module)


def _tanh_gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _t5_layers(part: Any, dtype: torch.dtype) -> tuple[list[Layer], int]:
    """The layers, and the distance that the first column of their bias is for."""
    layers: list[Layer] = []
    table: Tensor | None = None
    nearest = 0
    for block in part.block:
        own, attention = block.layer[0], block.layer[0].SelfAttention
        if attention.has_relative_attention_bias:  # T5 has it in the first layer, for all of them; UMT5 in every layer
            farthest = attention.relative_attention_max_distance
            nearest = 0 if part.is_decoder else -farthest
            bias = attention.compute_bias(1, farthest - nearest + 1, past_seen_tokens=farthest)
            table = bias[0, :, 0].detach().flip(1).to(dtype).contiguous()
        sparse, dense = _t5_feed_forward(block.layer[-1], dtype)
        layers.append(
            Layer(
                self_norm=norm_of(own.layer_norm),
                self_in=_stacked(dtype, attention.q, attention.k, attention.v),
                self_out=_stacked(dtype, attention.o),
                cross=_t5_cross(block.layer[1], dtype) if part.is_decoder else None,
                sparse=sparse,
                dense=dense,
                distance_bias=table,
            )
        )
    return layers, nearest


def _t5_feed_forward(layer: Any, dtype: torch.dtype) -> tuple[Sparse | None, FeedForward | None]:
    own, norm = layer.DenseReluDense, norm_of(layer.layer_norm)
    if isinstance(own, SwitchFeedForward):
        parts = own.experts(dtype)._replace(activation=activation_of(own.act))
        experts = Experts._make(part.detach() if isinstance(part, Tensor) else part for part in parts)
        dense = None if layer.dense_after is None else _t5_feed_forward(layer.dense_after, dtype)[1]
        return Sparse(norm, experts), dense
    gated = hasattr(own, "wi_0")
    inner, up = (own.wi_0, _stacked(dtype, own.wi_1)) if gated else (own.wi, None)
    activation = activation_of(own.act)
    return None, FeedForward(norm, _stacked(dtype, inner), up, _stacked(dtype, own.wo), activation)


def _t5_cross(layer: Any, dtype: torch.dtype) -> Cross:
    attention = layer.EncDecAttention
    key_value = _stacked(dtype, attention.k, attention.v)
    return Cross(norm_of(layer.layer_norm), _stacked(dtype, attention.q), key_value, _stacked(dtype, attention.o))


def _bart_layers(part: Any, dtype: torch.dtype) -> list[Layer]:
    layers: list[Layer] = []
    for block in part.layers:
        own = block.self_attn
        layers.append(
            Layer(
                self_norm=norm_of(block.self_attn_layer_norm),
                self_in=_stacked(dtype, own.q_proj, own.k_proj, own.v_proj, first_scale=own.scaling),
                self_out=_stacked(dtype, own.out_proj),
                cross=_bart_cross(block, dtype) if hasattr(block, "encoder_attn") else None,
                sparse=None,
                dense=FeedForward(
                    norm_of(block.final_layer_norm),
                    _stacked(dtype, block.fc1),
                    None,
                    _stacked(dtype, block.fc2),
                    activation_of(block.activation_fn),
                ),
                distance_bias=None,
            )
        )
    return layers


def _bart_cross(block: Any, dtype: torch.dtype) -> Cross:
    attention = block.encoder_attn
    query = _stacked(dtype, attention.q_proj, first_scale=attention.scaling)
    key_value = _stacked(dtype, attention.k_proj, attention.v_proj)
    return Cross(norm_of(block.encoder_attn_layer_norm), query, key_value, _stacked(dtype, attention.out_proj))
