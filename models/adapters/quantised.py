"""A base model whose linear layers are kept in 8 or 4 bits while an adapter on it is trained (Dettmers et al. 2023).

`bitsandbytes` rounds and unfolds the weights; the products are computed in the arithmetic of the run, forward and to
the input. Embeddings, norms and the output layer stay whole. Weights are rounded on the CPU, from those of the base: a
resume gets the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from models.adapters.methods import linear_layers
from models.architectures import of_plain_layers
from models.kernels.casts import autocast_dtype
from utils.errors import UserError
from utils.libraries import require_package

BITS = {"8bit": 8, "4bit": 4}  # of -load_in
BLOCK = 64  # weights with one scale, of 4 bits; of 8 bits it is a row


class QuantisedLinear(nn.Linear):
    """A frozen linear layer in 8 bits (LLM.int8's rows) or 4 bits (nf4).

    `weight` is empty and tells device and type; `values` and `scales` hold the weights, and are in no state dict.
    """

    def __init__(self, layer: nn.Linear, bits: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits = layer.in_features, layer.out_features, bits
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self.bias = layer.bias
        package, weight = _package(), layer.weight.detach().cpu()
        if bits == 8:
            values, scales, _ = package.functional.int8_vectorwise_quant(weight.half())
        else:
            # Blocks go over the ends of rows; of a matrix, on the CPU, bitsandbytes 0.50 unfolds such blocks wrongly.
            values, state = package.functional.quantize_4bit(weight.reshape(-1), blocksize=BLOCK, quant_type="nf4")
            scales = state.absmax
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    def unfolded(self, dtype: torch.dtype) -> Tensor:
        """The weights as they were rounded, (out, in)."""
        functional, values, scales = _package().functional, self.get_buffer("values"), self.get_buffer("scales")
        if self.bits == 8:
            whole: Tensor = functional.int8_vectorwise_dequant(values, scales).to(dtype)
        else:
            shape = torch.Size((self.out_features * self.in_features,))
            state = functional.QuantState(scales, shape, blocksize=BLOCK, quant_type="nf4", dtype=dtype)
            whole = functional.dequantize_4bit(values, state)
        return whole.view(self.out_features, self.in_features)

    def plain(self) -> nn.Linear:
        """A plain layer that computes the same in fp32."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(self.unfolded(torch.float32), requires_grad=False)
        layer.bias = self.bias
        return layer.train(self.training)

    def forward(self, input: Tensor) -> Tensor:  # the name is that of PyTorch
        x = input.to(autocast_dtype(input.device) or input.dtype)
        return _Product.apply(x, self)  # type: ignore[no-any-return,no-untyped-call]


class _Product(torch.autograd.Function):
    """Unfolds the weights once more in the backward pass, so that they take no memory in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        found = functional.linear(x, layer.unfolded(x.dtype), bias)
        return found.clone() if found._is_view() else found  # AdaLoRA adds to it in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.unfolded(grad.dtype), None


def _package() -> Any:
    return require_package("bitsandbytes", "-load_in")


def check_quantisable(config: PreTrainedConfig, load_in: str) -> None:
    """Raise `UserError` for an architecture that was not tried with -load_in."""
    if load_in in BITS and config.model_type not in of_plain_layers():
        raise UserError(
            f"-load_in {load_in}: for {', '.join(of_plain_layers())}, not {config.model_type}; leave it out"
        )


def quantise(model: PreTrainedModel, load_in: str) -> None:
    """Keep the frozen linear layers of an adapted model in the bits of -load_in; the output layer stays as it is."""
    if load_in not in BITS:
        return
    for name in linear_layers(model):
        layer = model.get_submodule(name)
        if type(layer) is nn.Linear and not layer.weight.requires_grad:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, QuantisedLinear(layer, BITS[load_in]))


def quantised_layers(model: nn.Module) -> dict[str, QuantisedLinear]:
    """The layers in 8 or 4 bits by their names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantisedLinear)}


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """How many weights each parameter has, by its name; one of a quantised layer those that it stands for."""
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    folded = {f"{name}.weight": layer for name, layer in quantised_layers(model).items()}
    return counts | {name: layer.in_features * layer.out_features for name, layer in folded.items()}
