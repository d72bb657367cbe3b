"""`accelerate(model)`: the same model of the families of T5 and BART with a cheaper training step.

Everywhere, under autocast: weights and inputs are cast once (`casts`), T5's bias and mask merged once
(`position_bias`). In fp32 on the CPU, T5's family: PyTorch has no kernel for attention with dropout and a position bias
that needs a gradient, draws a double for every element of a dropout mask, and `transformers` writes norm and GELU as
many small operations. `benchmarks/train_speed.py` measures with and without; `torch.compile` meets the original code.

Parameters, state dict, config files, exports, hooks, copies and `isinstance` stay as they were, and results equal those
of `transformers` up to rounding. Dropout has the same distribution but draws other numbers from the same generator, so
it follows `torch.manual_seed`.

Shapes: B batch, H heads, N query length, M key length, D head width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from models.architectures import architecture, library_module
from models.kernels.casts import Block, FeedForward, GatedFeedForward
from models.kernels.position_bias import SharesBias, is_merged_here, merged_mask

ATTENTION = "sdpa_or_cpu"  # our attention's name among those of `transformers`
MIN_DROPOUT = 1 / 64  # below this, and above 1 - it, a byte of randomness is too coarse: PyTorch's own dropout is used


def keep_mask(shape: torch.Size | tuple[int, ...], p: float) -> Tensor:
    """A uint8 tensor of `shape` on the CPU: 0 with probability `p` exactly, else 1, from torch's default generator.

    One random byte an element is compared with a threshold of 256 p; the fraction of that threshold is drawn once
    a call, so each element's probability is `p` and not its nearest 256th.
    """
    count = math.prod(shape)
    words = torch.empty(count // 8 + 2, dtype=torch.int64).random_(-(2**63), None)
    threshold = int(256 * p)
    if int(words[-1].item()) & 0xFFFFFF < (256 * p - threshold) * 2**24:
        threshold += 1
    return words.view(torch.uint8)[:count].view(shape).ge_(threshold)


def _is_fast(x: Tensor, p: float) -> bool:
    """Whether `x` and a dropout probability are served here: fp32 on a CPU, outside autocast and `torch.compile`."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not (p == 0.0 or MIN_DROPOUT <= p <= 1.0 - MIN_DROPOUT):
        return False
    return not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())


class _Attention(torch.autograd.Function):
    """dropout(softmax(query @ key.T + bias, masked)) @ value, as (B, H, N, D)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, p: float
    ) -> Tensor:
        scores = torch.matmul(q, k.transpose(2, 3))
        if bias is not None:
            scores.add_(bias)
        if mask is not None:
            scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        probabilities = torch.softmax(scores, -1, out=scores)
        keep = keep_mask(probabilities.shape, p) if p else None
        ctx.save_for_backward(q, k, v, probabilities, keep)
        ctx.p = p
        return torch.matmul(_kept(probabilities, keep), v).mul_(1.0 / (1.0 - p))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, probabilities, keep = ctx.saved_tensors
        grad = grad * (1.0 / (1.0 - ctx.p))
        grad_v = torch.matmul(_kept(probabilities, keep).transpose(2, 3), grad)
        grad_p = torch.matmul(grad, v.transpose(2, 3))
        if keep is not None:
            grad_p.mul_(keep)
        grad_scores = torch.ops.aten._softmax_backward_data(grad_p, probabilities, -1, torch.float32)
        grad_bias = grad_scores.sum(0, keepdim=True) if ctx.needs_input_grad[3] else None
        return torch.matmul(grad_scores, k), torch.matmul(grad_scores.transpose(2, 3), q), grad_v, grad_bias, None, None


def _kept(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else x * keep


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    position_bias: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What `AttentionInterface` asks for: (B, N, H, D). The bias is (1, H, N, M) or shared, the mask boolean."""
    ours = torch.is_grad_enabled() and _is_fast(query, dropout) and kwargs.get("cache") is None
    ours = ours and (position_bias is None or (isinstance(position_bias, Tensor) and len(position_bias) == 1))
    if not ours or (attention_mask is not None and attention_mask.dtype != torch.bool):
        if isinstance(position_bias, tuple) or is_merged_here(query, attention_mask):
            attention_mask, position_bias = merged_mask(module, query, attention_mask, position_bias), None
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, position_bias=position_bias, **kwargs
        )
    length = query.shape[2]
    if attention_mask is None and module.is_causal and length > 1:
        attention_mask = torch.ones(length, length, dtype=torch.bool).tril_()
    context = _Attention.apply(query, key, value, position_bias, attention_mask, dropout)  # type: ignore[no-untyped-call]
    return context.transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.scale = 1.0 / (1.0 - p)
        mask = keep_mask(x.shape, p)
        ctx.save_for_backward(mask)
        return x.mul(mask).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grad.mul(mask).mul_(ctx.scale), None


class _Dropout:
    """`nn.Dropout`, an order of magnitude faster."""

    def forward(self: Any, input: Tensor) -> Tensor:  # the name is that of PyTorch
        if not self.training or self.p == 0.0 or not _is_fast(input, self.p):
            return super().forward(input)  # type: ignore[misc,no-any-return]
        return _Masked.apply(input, self.p)  # type: ignore[no-any-return,no-untyped-call]


class _Gelu:
    """`NewGELUActivation` by PyTorch's kernel for the same formula."""

    def forward(self, input: Tensor) -> Tensor:  # the name is that of `transformers`
        return functional.gelu(input, approximate="tanh")


class _RmsNorm:
    """T5's layer norm by PyTorch's kernel when no cast is involved."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype == torch.float32 and self.weight.dtype == torch.float32:
            return functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
        return super().forward(hidden_states)  # type: ignore[misc,no-any-return]


class _SharingBlock(SharesBias, Block):
    """A block of T5."""


_SUBCLASSES: dict[tuple[type, type], type] = {}


def subclass(base: type, mixin: type) -> type:
    """`mixin` before `base`, under the name of `base` (wrapping policies and exports go by it), made once."""
    if issubclass(base, mixin):
        return base
    if (base, mixin) not in _SUBCLASSES:
        _SUBCLASSES[base, mixin] = type(base.__name__, (mixin, base), {"__module__": base.__module__})
    return _SUBCLASSES[base, mixin]


def accelerate(model: nn.Module) -> None:
    """Replace slow parts of a model of T5's or BART's family in place; any other model is left alone."""
    config: Any = getattr(model, "config", None)
    model_type = getattr(config, "model_type", "")
    row = architecture(model_type)
    if not row.own_search:
        return
    source = library_module(model_type)
    table: dict[type, type] = {}
    if row.like_t5:
        if config._attn_implementation == "sdpa":
            model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
        mixins = {"LayerNorm": _RmsNorm, "DenseActDense": FeedForward, "DenseGatedActDense": GatedFeedForward}
        table = {getattr(source, f"{row.class_name}{name}"): mixin for name, mixin in mixins.items()}
        table |= {nn.Dropout: _Dropout, NewGELUActivation: _Gelu}
    for module in model.modules():
        if type(module) in table:
            module.__class__ = subclass(type(module), table[type(module)])
    shares_bias = row.like_t5 and not row.bias_in_each_layer and config._attn_implementation == ATTENTION
    for block in blocks(model):
        block.matrices = tuple(part for part in block.modules() if type(part) is nn.Linear)
        block.__class__ = subclass(type(block), _SharingBlock if shares_bias else Block)


def blocks(model: nn.Module) -> list[Any]:
    """The layers of encoder and decoder."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
