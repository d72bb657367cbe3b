"""T5's position bias and the padding mask, merged once a pass instead of once a layer.

`transformers` merges them in every layer, in fp32, and copies the result twice more: (batch, heads, length, length)
each time. Here the first block of a stack merges them in the type of the arithmetic, and all blocks read the same
tensor. Each layer's gradient is summed over the batch in fp32 at once, and only that sum goes on to the bias.

Shapes: B batch, H heads, N query length, M key length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.kernels.casts import autocast_dtype

NO_BIAS = ()  # in place of None, for which the library would make zeros


class SharedBias(NamedTuple):
    """What the blocks of a stack hand on to each other."""

    bias: Tensor  # (1, H, N, M) fp32, with a gradient
    merged: Tensor  # (1 or B, H, N, M) in the type of the arithmetic: the bias, its lowest number where masked

    def for_layer(self) -> Tensor:
        """The merged tensor; its gradient is that of the bias."""
        return _Merged.apply(self.bias, self.merged)  # type: ignore[no-any-return,no-untyped-call]


class _Merged(torch.autograd.Function):
    """Give `merged` as a function of the bias alone. What is masked has no gradient: its probability is exactly 0."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, merged: Tensor) -> Tensor:
        ctx.dtype = bias.dtype
        return merged.view_as(merged)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.sum(0, keepdim=True, dtype=ctx.dtype), None


def shared_bias(bias: Tensor, mask: Tensor | None, is_causal: bool, dtype: torch.dtype) -> SharedBias:
    """The bias of a stack merged with what may be attended to.

    Args:
        mask: (B, 1, 1 or N, M) boolean, True = may be attended to; None = everything, or, if `is_causal`, what is not
            later than the query.
    """
    with torch.no_grad():
        merged = bias.to(dtype, memory_format=torch.contiguous_format)  # the layers' kernels want rows without gaps
        if mask is None and is_causal and bias.shape[2] > 1:
            mask = torch.ones(bias.shape[2:], dtype=torch.bool, device=bias.device).tril_()
        if mask is not None:
            merged = torch.where(mask, merged, torch.finfo(dtype).min)
    return SharedBias(bias, merged)


def is_merged_here(x: Tensor, mask: Tensor | None) -> bool:
    """Whether bias and mask of a pass over `x` are merged here; fp32 on a CPU has kernels of its own."""
    if mask is not None and mask.dtype != torch.bool:
        return False
    return x.device.type != "cpu" or autocast_dtype(x.device) is not None


def merged_mask(module: Any, query: Tensor, mask: Tensor | None, bias: Any) -> Tensor | None:
    """What one layer's attention adds to its scores (or, boolean, where it looks): in place of mask and bias."""
    is_cross_attention = module.is_decoder and not module.is_causal
    if bias is None or is_cross_attention:  # there the library's bias are zeros
        return mask
    if isinstance(bias, Tensor):  # UMT5: one of its own in each layer
        bias = shared_bias(bias, mask, module.is_causal, query.dtype)
    return bias.for_layer()  # type: ignore[no-any-return]


class SharesBias:
    """A block of T5. The first one makes the bias for its whole stack, outside of what is checkpointed or compiled."""

    always_shared = False

    def __call__(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Any = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        cross_bias: Any = None,
        **kwargs: Any,
    ) -> Any:
        cached = kwargs.get("past_key_values") is not None
        if not cached and (self.always_shared or is_merged_here(hidden_states, attention_mask)):
            cross_bias = NO_BIAS
            if position_bias is None:
                attention, length = self.layer[0].SelfAttention, hidden_states.shape[1]
                bias = attention.compute_bias(length, length, device=hidden_states.device)
                dtype = autocast_dtype(hidden_states.device) or bias.dtype
                position_bias = shared_bias(bias, attention_mask, attention.is_causal, dtype)
        of_encoder = encoder_hidden_states, encoder_attention_mask, cross_bias
        return super().__call__(hidden_states, attention_mask, position_bias, *of_encoder, **kwargs)  # type: ignore[misc]
