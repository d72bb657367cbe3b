"""An adapter in a model: apply, merge, and the weights that are its own.

The model stays an object of its class: `peft` replaces the linear layers that are adapted by layers of its own. For a
search, plain layers with merged weights take their place (`MergedWeights`). The weights of the base stay as they are:
adding the adapter and subtracting it again would not give the same bits. PiSSA (Meng et al. 2024) is the exception: it
trains the principal part of a matrix and freezes the rest. The initial principal part is kept beside the adapter, so
that the rest can be computed again from the base.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.adapters import virtual_tokens
from models.adapters.methods import LORA, PROMPTS, Adapter
from models.adapters.quantised import QuantisedLinear, quantised_layers
from utils.errors import shortened
from utils.libraries import require_package

NAME = "default"  # of the adapter among those that a layer of `peft` may have
INITIAL = ("pissa_initial_A", "pissa_initial_B")  # buffers of a layer: what PiSSA began with
PARTS = ("lora_", "ia3_", "pissa_initial_")  # how the own weights of an adapted layer begin


def apply(model: PreTrainedModel, adapter: Adapter, weights: Mapping[str, Tensor] | None = None) -> None:
    """Adapt the model in place: from here on the adapter is trained, and nothing else.

    Args:
        weights: those of the adapter by their names in the model, as `state` gives them; None = those that training
            begins with, drawn by torch's default generator.

    Raises:
        UserError: `peft` is missing.
        ValueError: weights are missing, left over or of another shape; the message names them.
    """
    package = require_package("peft", f"-tuning_method {adapter.method}")
    if adapter.method in PROMPTS:
        virtual_tokens.add_virtual_tokens(model, adapter, package)
        model.s2s_adapter = adapter
        if weights is not None:
            _load(model, virtual_tokens.placed(model, adapter, weights))
        return
    new_pissa = adapter.method == "pissa" and weights is None
    config = _library_config(package, adapter, "pissa" if new_pissa else True)
    originals = _base_weights(model) if new_pissa else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on tied weights, which `methods` refuses, and the library's own calls
        package.inject_adapter_in_model(config, model, NAME)
    for name in adapter.modules_to_save:
        module = model.get_submodule(name)
        for own, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(own, nn.Parameter(parameter.detach().clone()))  # the base's may be shared
    if adapter.method == "pissa":
        for name, layer in adapted_layers(model).items():
            if new_pissa:
                layer.get_base_layer().weight.data = originals[name]
            for initial, matrices in zip(INITIAL, (layer.lora_A, layer.lora_B), strict=True):
                matrices[NAME].weight.data = matrices[NAME].weight.data.contiguous()
                layer.register_buffer(initial, matrices[NAME].weight.data.clone())
    model.s2s_adapter = adapter
    if weights is not None:
        _load(model, weights)
    if adapter.method == "pissa":
        for layer in adapted_layers(model).values():
            base, (first, second) = layer.get_base_layer().weight, (getattr(layer, name).cpu() for name in INITIAL)
            rest = base.data.cpu() - (layer.scaling[NAME] * second) @ first  # the same bits wherever it is trained
            layer.get_base_layer().weight = nn.Parameter(rest.to(base.device), requires_grad=False)


def adapter_of(model: Any) -> Adapter | None:
    """The adapter that the model was given by `apply`; None of a plain model."""
    found: Adapter | None = getattr(model, "s2s_adapter", None)
    return found


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers of `peft` by their names."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}


def own_names(model: PreTrainedModel) -> list[str]:
    """Names of the weights that are the adapter's, in the order of the model."""
    adapter = adapter_of(model)
    assert adapter is not None
    layers = tuple(f"{name}.{part}" for name in adapted_layers(model) for part in PARTS)
    kept = tuple(f"{name}." for name in adapter.modules_to_save)
    if adapter.method in PROMPTS:
        kept = (f"{virtual_tokens.module_name(model)}.",)
    return [name for name in model.state_dict() if name.startswith((*layers, *kept))]


def state(model: PreTrainedModel, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The weights of the adapter by their names in the model; of `weights` where the model's are given."""
    weights = model.state_dict() if weights is None else weights
    return {name: weights[name] for name in own_names(model)}


def _load(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    own = state(model)
    for names, word in ((own.keys() - weights.keys(), "missing"), (weights.keys() - own.keys(), "left over")):
        if names:
            raise ValueError(f"{shortened(sorted(names), 3)} {'is' if len(names) == 1 else 'are'} {word}")
    with torch.no_grad():
        for name, value in own.items():
            if weights[name].shape != value.shape:
                raise ValueError(f"size mismatch for {name}: {list(weights[name].shape)}, not {list(value.shape)}")
            value.copy_(weights[name])


def _base_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: module.weight.data for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _library_config(package: Any, adapter: Adapter, init: bool | str) -> Any:
    """The config with which `peft` makes the layers; what is trained in full stays where it is."""
    if adapter.method == "adalora":
        return package.AdaLoraConfig(
            init_r=adapter.first_r,
            target_r=adapter.r,
            lora_alpha=adapter.lora_alpha,
            lora_dropout=adapter.lora_dropout,
            target_modules=list(adapter.target_modules),
            total_step=1,  # without a meaning here: `rank_allocation` knows the steps
        )
    if adapter.method in LORA:
        return package.LoraConfig(
            init_lora_weights=init, **lora_settings(adapter), target_modules=list(adapter.target_modules)
        )
    return package.IA3Config(
        target_modules=list(adapter.target_modules), feedforward_modules=list(adapter.feedforward_modules)
    )


def lora_settings(adapter: Adapter) -> dict[str, Any]:
    """What a config of `peft` says of a LoRA besides its modules."""
    return {
        "r": adapter.r,
        "lora_alpha": adapter.lora_alpha,
        "lora_dropout": adapter.lora_dropout,
        "use_dora": adapter.method == "dora",
        "use_rslora": adapter.method == "rslora",
    }


class MergedWeights:
    """In its `with` block the model has plain layers, with the merged weights of the time when this object was made.

    Outside the block the model has its adapter; the block may be entered many times. A plain model stays as it is.
    Layers in 8 or 4 bits are unfolded: the adapter is merged into what they were rounded to, as in training.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.layers: dict[str, Any] = adapted_layers(model) if adapter_of(model) else {}
        with torch.no_grad():
            self.plain = {name: _merged_layer(layer) for name, layer in self.layers.items()}
            for name, layer in quantised_layers(model).items():
                if not name.endswith(".base_layer"):
                    self.layers[name], self.plain[name] = layer, layer.plain()

    def __enter__(self) -> PreTrainedModel:
        _put(self.model, self.plain)
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _put(self.model, self.layers)


def _merged_layer(layer: Any) -> nn.Module:
    layer = copy.deepcopy(layer)
    if isinstance(layer.get_base_layer(), QuantisedLinear):
        layer.base_layer = layer.get_base_layer().plain()
    layer.merge()
    plain: nn.Module = layer.get_base_layer()
    return plain


def _put(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module)


def merge(model: PreTrainedModel) -> None:
    """Make an adapted model a plain one with merged weights, for good; layer by layer, a plain one stays.

    Virtual tokens stay in front of the sources, as plain vectors.
    """
    adapter = adapter_of(model)
    if adapter is None:
        return
    if adapter.method in PROMPTS:
        virtual_tokens.settle(model)
        return
    with torch.no_grad():
        for name, layer in adapted_layers(model).items():
            _put(model, {name: _merged_layer(layer)})
    del model.s2s_adapter, model.peft_config
    model.requires_grad_(True)
