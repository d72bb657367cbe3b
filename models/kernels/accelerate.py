"""`accelerate(model)`: the same T5 or BART with a cheaper training step on the CPU in fp32.

Modules change their class in place, for a subclass of the same name: parameters, state dict, config, exports, hooks,
copies and `isinstance` stay as they were. A module takes its fast path for fp32 on a CPU while gradients are recorded,
without a KV cache (pass `use_cache=False` in training) and while its linear layers are plain `nn.Linear` (adapters and
quantised layers are not); everything else (CUDA, autocast, generation, `torch.compile`) runs the original code,
with `F.rms_norm` and the fused tanh GELU in place of their many small operations.

Results equal those of `transformers` up to rounding. Dropout has the same distribution but draws other numbers from
the same generator, so it follows `torch.manual_seed`.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN, NewGELUActivation

from models.kernels.attention import MASKED, AttentionSettings, AttentionWeights, attention
from models.kernels.feed_forward import FeedForwardWeights, dropout_supported, feed_forward, keep_mask


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.scale = 1.0 / (1.0 - p)
        mask = keep_mask(tuple(x.shape), p)
        ctx.save_for_backward(mask)
        return x.mul(mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grad.mul(mask).mul_(ctx.scale), None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`F.dropout`, an order of magnitude faster on the CPU."""
    if not training or p == 0.0:
        return x
    if x.device.type != "cpu" or not x.is_floating_point() or not dropout_supported(p) or torch.compiler.is_compiling():
        return functional.dropout(x, p, True)
    return _Dropout.apply(x, p)  # type: ignore[no-any-return,no-untyped-call]


def _fast(x: Tensor, *linears: nn.Module) -> bool:
    """True when a fused block may take `x` through these linear layers."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.is_grad_enabled():
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    return all(
        type(layer) is nn.Linear
        and layer.weight.dtype == torch.float32
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)
        for layer in linears
    )


def _rates(module: nn.Module, *rates: float) -> tuple[float, ...] | None:
    """The dropout probabilities in force, None when one of them is not served."""
    if not module.training:
        return (0.0,) * len(rates)
    return rates if all(dropout_supported(p) for p in rates) else None


def _additive(mask: Tensor | None) -> Tensor | None:
    """A (B, 1, N, M) attention mask of `transformers`, boolean or additive, as (B, N or 1, M) floats."""
    if mask is None:
        return None
    if mask.shape[2] > 1 and mask.stride(2) == 0:
        mask = mask[:, :, :1]
    mask = mask[:, 0]
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape).masked_fill_(~mask, MASKED)
    return mask.to(torch.float32)


def _mask_served(mask: Any) -> bool:
    return mask is None or (isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[1] == 1)


class _Gelu:
    """`NewGELUActivation` by PyTorch's kernel for the same formula."""

    def forward(self, input: Tensor) -> Tensor:  # the name is that of `transformers`
        return functional.gelu(input, approximate="tanh")


class _PlainDropout:
    """`nn.Dropout` with the fast mask."""

    p: float
    training: bool

    def forward(self, input: Tensor) -> Tensor:  # the name is that of PyTorch
        return dropout(input, self.p, self.training)


class _RmsNorm:
    """T5's layer norm by PyTorch's kernel when no cast is involved."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype == torch.float32 and self.weight.dtype == torch.float32:
            return functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
        return super().forward(hidden_states)  # type: ignore[misc,no-any-return]


def _activation(module: Any) -> str | None:
    """The name `feed_forward` has for an activation module, None if it has none."""
    if isinstance(module, NewGELUActivation):
        return "gelu_tanh"
    return {nn.ReLU: "relu", nn.SiLU: "silu", type(ACT2FN["gelu"]): "gelu"}.get(type(module))


class _T5FeedForward:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        dense = self.DenseReluDense
        gated = hasattr(dense, "wi_0")
        inner = dense.wi_0 if gated else dense.wi
        up = (dense.wi_1,) if gated else ()
        kind = _activation(dense.act)
        rates = _rates(self, dense.dropout.p, self.dropout.p)
        if kind is None or rates is None or not _fast(hidden_states, inner, dense.wo, *up):
            return super().forward(hidden_states)  # type: ignore[misc,no-any-return]
        norm = self.layer_norm
        weights = FeedForwardWeights(
            norm.weight, inner.weight, inner.bias, up[0].weight if up else None, dense.wo.weight, dense.wo.bias
        )
        return feed_forward(hidden_states, None, weights, kind, norm.variance_epsilon, *rates)


def _t5_attention(
    layer: Any, module: Any, x: Tensor, source: Tensor | None, bias: Tensor | None, mask: Tensor | None
) -> Tensor | None:
    """A T5 attention sub-layer on the fast path, None when it must take the slow one."""
    linears = module.q, module.k, module.v, module.o
    rates = _rates(layer, module.dropout, layer.dropout.p)
    if rates is None or module.config._attn_implementation != "sdpa" or not _mask_served(mask):
        return None
    if not _fast(x, *linears) or (source is not None and source.dtype != torch.float32):
        return None
    norm = layer.layer_norm
    causal = module.is_causal and mask is None
    settings = AttentionSettings(module.n_heads, module.scaling, norm.variance_epsilon, rates[0], rates[1], causal)
    weights = AttentionWeights(norm.weight, *(linear.weight for linear in linears))
    return attention(x, None, source, None if bias is None else bias[0], _additive(mask), weights, settings)


class _T5SelfAttention:
    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        module, bias = self.SelfAttention, position_bias
        if past_key_values is None and _fast(hidden_states):
            if bias is None and module.has_relative_attention_bias:
                length = hidden_states.shape[1]
                bias = module.compute_bias(length, length, device=hidden_states.device)
            if bias is None or bias.shape[0] == 1:
                output = _t5_attention(self, module, hidden_states, None, bias, attention_mask)
                if output is not None:
                    return output, bias, None
        return super().forward(  # type: ignore[misc,no-any-return]
            hidden_states,
            attention_mask=attention_mask,
            position_bias=bias,
            past_key_values=past_key_values,
            **kwargs,
        )


class _T5CrossAttention:
    def forward(
        self: Any,
        hidden_states: Tensor,
        key_value_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        # T5's cross-attention has no position bias: it makes a tensor of zeros where none is given.
        if past_key_values is None and position_bias is None:
            module = self.EncDecAttention
            output = _t5_attention(self, module, hidden_states, key_value_states, None, attention_mask)
            if output is not None:
                return output, None, None
        return super().forward(  # type: ignore[misc,no-any-return]
            hidden_states,
            key_value_states=key_value_states,
            attention_mask=attention_mask,
            position_bias=position_bias,
            past_key_values=past_key_values,
            **kwargs,
        )


class _UMT5SelfAttention:
    def forward(
        self: Any, hidden_states: Tensor, attention_mask: Any = None, past_key_values: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        if past_key_values is None and _fast(hidden_states):
            length = hidden_states.shape[1]
            bias = self.SelfAttention.compute_bias(length, length, device=hidden_states.device)
            output = _t5_attention(self, self.SelfAttention, hidden_states, None, bias, attention_mask)
            if output is not None:
                return output, None
        return super().forward(  # type: ignore[misc,no-any-return]
            hidden_states, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
        )


class _UMT5CrossAttention:
    def forward(
        self: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        if past_key_values is None and encoder_hidden_states is not None:
            module = self.EncDecAttention
            output = _t5_attention(self, module, hidden_states, encoder_hidden_states, None, attention_mask)
            if output is not None:
                return output, None
        return super().forward(  # type: ignore[misc,no-any-return]
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )


def _bart_sublayers(layer: Any, x: Tensor, mask: Any, source: Tensor | None, source_mask: Any) -> Tensor | None:
    """A BART (norms after) or mBART (norms before) layer on the fast path, None when it must take the slow one."""
    attentions: list[Any] = [(layer.self_attn, layer.self_attn_layer_norm, None, mask)]
    if source is not None:
        attentions.append((layer.encoder_attn, layer.encoder_attn_layer_norm, source, source_mask))
    linears = [m for a, *_ in attentions for m in (a.q_proj, a.k_proj, a.v_proj, a.out_proj)]
    kind = _activation(layer.activation_fn)
    if kind is None or not _fast(x, *linears, layer.fc1, layer.fc2):
        return None
    attention_rates: list[Any] = [_rates(layer, module.dropout, layer.dropout) for module, *_ in attentions]
    rates = _rates(layer, layer.activation_dropout, layer.dropout)
    if rates is None or None in attention_rates or not (_mask_served(mask) and _mask_served(source_mask)):
        return None
    if any(module.config is None or module.config._attn_implementation != "sdpa" for module, *_ in attentions):
        return None
    before = layer.norm_before
    for (module, norm, keys, keys_mask), probabilities in zip(attentions, attention_rates, strict=True):
        causal = module.is_causal and keys_mask is None
        settings = AttentionSettings(module.num_heads, module.scaling, 0.0, probabilities[0], probabilities[1], causal)
        q, k, v, o = module.q_proj, module.k_proj, module.v_proj, module.out_proj
        weights = AttentionWeights(None, q.weight, k.weight, v.weight, o.weight, q.bias, k.bias, v.bias, o.bias)
        x = attention(
            norm(x) if before else x, x if before else None, keys, None, _additive(keys_mask), weights, settings
        )
        x = x if before else norm(x)
    fc1, fc2, norm = layer.fc1, layer.fc2, layer.final_layer_norm
    ff_weights = FeedForwardWeights(None, fc1.weight, fc1.bias, None, fc2.weight, fc2.bias)
    x = feed_forward(norm(x) if before else x, x if before else None, ff_weights, kind, 0.0, *rates)
    return x if before else norm(x)


class _BartEncoderLayer:
    norm_before = False

    def forward(self: Any, hidden_states: Tensor, attention_mask: Any, **kwargs: Any) -> Tensor:
        output = _bart_sublayers(self, hidden_states, attention_mask, None, None)
        return super().forward(hidden_states, attention_mask, **kwargs) if output is None else output  # type: ignore[misc]


class _BartDecoderLayer:
    norm_before = False

    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = True,
        **kwargs: Any,
    ) -> Tensor:
        output = None
        if past_key_values is None:
            output = _bart_sublayers(self, hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask)
        if output is not None:
            return output
        return super().forward(  # type: ignore[misc,no-any-return]
            hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask,
            past_key_values=past_key_values, use_cache=use_cache, **kwargs,
        )  # fmt: skip


class _MBartEncoderLayer(_BartEncoderLayer):
    norm_before = True


class _MBartDecoderLayer(_BartDecoderLayer):
    norm_before = True


_T5: dict[str, type] = {
    "LayerNorm": _RmsNorm,
    "LayerFF": _T5FeedForward,
    "LayerSelfAttention": _T5SelfAttention,
    "LayerCrossAttention": _T5CrossAttention,
}
# model_type -> (prefix of the class names in transformers.models.<model_type>, class suffix -> replacement)
_KNOWN: dict[str, tuple[str, dict[str, type]]] = {
    "t5": ("T5", _T5),
    "mt5": ("MT5", _T5),
    "umt5": ("UMT5", {**_T5, "LayerSelfAttention": _UMT5SelfAttention, "LayerCrossAttention": _UMT5CrossAttention}),
    "bart": ("Bart", {"EncoderLayer": _BartEncoderLayer, "DecoderLayer": _BartDecoderLayer}),
    "mbart": ("MBart", {"EncoderLayer": _MBartEncoderLayer, "DecoderLayer": _MBartDecoderLayer}),
}
_SUBCLASSES: dict[type, type] = {}


def _subclass(base: type, mixin: type) -> type:
    """`mixin` before `base`, under the name of `base` (wrapping policies and exports go by it), made once."""
    if base not in _SUBCLASSES:
        _SUBCLASSES[base] = type(base.__name__, (mixin, base), {"__module__": base.__module__})
    return _SUBCLASSES[base]


def accelerate(model: nn.Module) -> list[str]:
    """Replace slow modules of a T5, mT5, UMT5, BART or mBART in place; returns what was replaced, e.g. `T5LayerFF x 4`.

    Any other model is left alone and gives []; so does a second call.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    if model_type not in _KNOWN:
        return []
    prefix, replacements = _KNOWN[model_type]
    module_name = f"transformers.models.{model_type}.modeling_{model_type}"
    source = importlib.import_module(module_name)
    table: dict[type, type] = {getattr(source, prefix + suffix): mixin for suffix, mixin in replacements.items()}
    table |= {nn.Dropout: _PlainDropout, NewGELUActivation: _Gelu}
    counts: dict[str, int] = {}
    for module in model.modules():
        base = type(module)
        if base in table:
            module.__class__ = _subclass(base, table[base])
            counts[base.__name__] = counts.get(base.__name__, 0) + 1
    return [f"{name} x {count}" for name, count in sorted(counts.items())]
