"""`use_fused_attention(model)`: the kernel of `attention` in the families of T5 and BART, for `-attention fused`.

T5's bias goes to it as a table by distance, made by the library's own function; a padding mask as key lengths, so that
padding must stand on the right, where `datamodules.collate` puts it. A causal mask is a flag. What the kernel does not
serve (a cache, masks of other shapes, the CPU) is computed by PyTorch.

Shapes: B batch, H heads, N query length, M key length, D head width.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from models.architectures import architecture, library_module, of_plain_layers
from models.kernels.accelerate import subclass
from models.kernels.position_bias import NO_BIAS
from utils.errors import UserError

FUSED = "sdpa_or_fused"  # its name among the attentions of `transformers`
WIDTHS = (16, 32, 64, 128)


def check_fused_attention(config: PreTrainedConfig, accelerator: str) -> None:
    """Refuse `-attention fused` where it cannot be had.

    Raises:
        UserError: another device than a GPU of NVIDIA, no Triton, another architecture, another head width.
    """
    heads = getattr(config, "num_heads", None) or config.num_attention_heads
    width = getattr(config, "d_kv", None) or config.hidden_size // heads
    problem = ""
    if accelerator != "cuda" or torch.version.hip is not None:
        problem = "only on GPUs of NVIDIA"
    elif importlib.util.find_spec("triton") is None:
        problem = "triton is not installed (it comes with PyTorch's CUDA build)"
    elif config.model_type not in of_plain_layers():
        problem = f"for {', '.join(of_plain_layers())}, not {config.model_type}"
    elif width not in WIDTHS:
        problem = f"for heads of {', '.join(map(str, WIDTHS))} values, not {width}"
    if problem:
        raise UserError(f"-attention fused: {problem}; use -attention plain")


def use_fused_attention(model: PreTrainedModel) -> None:
    """Let a model of T5's or BART's family attend by the kernel; call before `accelerate`."""
    model.set_attn_implementation(FUSED)
    row, kind = architecture(model.config.model_type), model.config.model_type
    if not row.like_t5:
        return
    base = getattr(library_module(kind), f"{row.class_name}Attention")
    for module in model.modules():
        if type(module) is base:
            module.__class__ = subclass(base, _DistanceBias)


class _DistanceBias:
    """T5's attention with a bias by distance, (H, N + M - 1), where no cache is used."""

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("past_key_values") is not None:
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        if kwargs.get("key_value_states") is not None and kwargs.get("position_bias") is None:
            kwargs["position_bias"] = NO_BIAS
        self.compute_bias = partial(_table, self.compute_bias)
        try:
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        finally:
            del self.compute_bias  # that of the class is found again


def _table(compute_bias: Callable[..., Tensor], queries: int, keys: int, device: Any = None, **_: Any) -> Tensor:
    """The bias of a key's distances from a query, 1 - N to M - 1: that of a last query whose keys go on beyond it."""
    return compute_bias(1, queries + keys - 1, device=device, past_seen_tokens=queries - 1)[0, :, 0]


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What `AttentionInterface` asks for: (B, N, H, D). The bias is a table, or (1, H, N, M) with a cache."""
    is_cross_attention = module.is_decoder and not module.is_causal
    bias = position_bias if isinstance(position_bias, Tensor) and not is_cross_attention else None  # UMT5's are zeros
    if not _is_served(module, query, key, attention_mask, bias):
        if bias is not None and bias.dim() == 2:
            bias = _whole_bias(bias, query.shape[2], key.shape[2])
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, position_bias=bias, **kwargs
        )
    from models.kernels.attention import attention  # needs Triton

    context = attention(
        *(part.transpose(1, 2) for part in (query, key, value)),
        table=bias,
        lengths=None if attention_mask is None or module.is_causal else _lengths(attention_mask),
        causal=module.is_causal,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout=dropout,
    )
    return context, None


AttentionInterface.register(FUSED, _attention)
AttentionMaskInterface.register(FUSED, sdpa_mask)


def _is_served(module: Any, query: Tensor, key: Tensor, mask: Tensor | None, bias: Tensor | None) -> bool:
    on_gpu = query.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    if not on_gpu or query.dtype != key.dtype or (bias is not None and bias.dim() != 2):
        return False
    queries, keys = query.shape[2], key.shape[2]
    if module.is_causal:  # its mask, where `decode_teacher_forced` gives one, has nothing else
        return queries == keys and (mask is None or mask.shape == (1, 1, queries, keys))
    return mask is None or (mask.dtype == torch.bool and mask.shape == (len(query), 1, 1, keys))


def _lengths(mask: Tensor) -> Tensor:
    """How many keys each row has, (B,) int32, counted once for all layers that are given the same mask."""
    found = getattr(mask, "key_lengths", None)
    if found is None:
        found = mask.sum((1, 2, 3), dtype=torch.int32).clamp_(min=1)
        mask.key_lengths = found  # type: ignore[attr-defined]
    return found


def _whole_bias(table: Tensor, queries: int, keys: int) -> Tensor:
    """The (1, H, N, M) bias of a (H, N + M - 1) table by distance."""
    distances = torch.arange(keys, device=table.device) - torch.arange(queries, device=table.device).unsqueeze(1)
    return table[:, distances + queries - 1].unsqueeze(0)
