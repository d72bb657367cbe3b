"""Fewer casts in a training step under autocast: a block's weights at once, an input once for all that read it.

Autocast casts every matrix by itself, and what several matrices multiply (q, k and v of one norm) once for each of
them; their gradients go the same ways back. Here a block begins with one cast of all its weights, whose gradients
arrive together when the block's backward pass is done, so that DDP sends them while the earlier blocks are at work.
What is computed is what autocast computes, up to the order in which gradients in its type are added. The residual
stream, norms and master weights stay in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type in which matrices are multiplied on a device, or None where autocast is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


class _CastTogether(torch.autograd.Function):
    """Copies of fp32 tensors in another type, by one operation; so are the gradients."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        copies = _copied(tensors, dtype)
        ctx.mark_non_differentiable(
            *(copy for copy, needed in zip(copies, ctx.needs_input_grad[1:], strict=True) if not needed)
        )
        return copies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        del ctx
        found = iter(_copied([gradient for gradient in gradients if gradient is not None], torch.float32))
        return None, *(None if gradient is None else next(found) for gradient in gradients)


def _copied(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies


class _OneCast:
    """Casts tensors, the same one only once in a row."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.latest: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype == self.dtype:
            return x
        if self.latest is None or self.latest[0] is not x:
            self.latest = x, x.to(self.dtype)
        return self.latest[1]


class Block:
    """A layer of an encoder or decoder that casts its weights together. `matrices` are its plain `nn.Linear`s."""

    matrices: tuple[nn.Linear, ...]

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        dtype = None if torch.compiler.is_compiling() else autocast_dtype(hidden_states.device)
        if dtype is None or not torch.is_grad_enabled():
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        parameters = [part for matrix in self.matrices for part in (matrix.weight, matrix.bias) if part is not None]
        copies = iter(_CastTogether.apply(dtype, *parameters))  # type: ignore[no-untyped-call]
        cast = _OneCast(dtype)
        try:
            for matrix in self.matrices:
                bias = matrix.bias is not None
                multiply = partial(_multiply, cast, next(copies), next(copies) if bias else None)
                matrix.__dict__["forward"] = multiply  # found before the method of the class
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        finally:
            for matrix in self.matrices:
                matrix.__dict__.pop("forward", None)


def _multiply(cast: _OneCast, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return functional.linear(cast(x), weight, bias)


class FeedForward:
    """T5's feed-forward without the way of its widest tensor to fp32 and back."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if autocast_dtype(hidden_states.device) is None:
            return super().forward(hidden_states)  # type: ignore[misc,no-any-return]
        return self.wo(self.dropout(self.act(self.wi(hidden_states))))  # type: ignore[no-any-return]


class GatedFeedForward:
    """`FeedForward` with T5 1.1's gate."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if autocast_dtype(hidden_states.device) is None:
            return super().forward(hidden_states)  # type: ignore[misc,no-any-return]
        gate = self.act(self.wi_0(hidden_states))
        return self.wo(self.dropout(gate * self.wi_1(hidden_states)))  # type: ignore[no-any-return]
