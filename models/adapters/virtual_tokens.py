"""Virtual tokens in front of the embedded sources: prompt tuning and p-tuning, as `peft` has them.

They are vectors that take no part in the vocabulary: trained themselves (Lester et al. 2021), or made by a network that
is trained (Liu et al. 2021) and left behind afterwards. The encoder takes ids as ever, and a mask in which the virtual
tokens stand already, which is that of its states too. Nothing can be merged: the base stays as it is, and sources are
so many tokens longer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from transformers import PreTrainedModel

from models.adapters.methods import PROMPTS, Adapter

MODULE = "virtual_tokens"  # of the encoder
IN_FILE = "prompt_embeddings"  # the vectors in the file of an adapter


def add_virtual_tokens(model: PreTrainedModel, adapter: Adapter, package: Any) -> None:
    """Freeze the model and put those that training begins with in front of its sources.

    Those of prompt tuning begin as embeddings of tokens of the vocabulary, drawn by torch's default generator.

    Args:
        package: `peft`.
    """
    model.requires_grad_(False)
    encoder, width = model.get_encoder(), model.config.hidden_size
    embedding = encoder.get_input_embeddings()
    sizes = {"num_virtual_tokens": adapter.num_virtual_tokens, "token_dim": width, "num_transformer_submodules": 1}
    if adapter.method == "prompt":
        config = package.PromptTuningConfig(**sizes, prompt_tuning_init="SAMPLE_VOCAB")
        made = package.PromptEmbedding(config, embedding)
    else:
        made = package.PromptEncoder(package.PromptEncoderConfig(**sizes, encoder_hidden_size=width))
    _place(encoder, made.to(embedding.weight.device))
    encoder.register_forward_pre_hook(_prepend, with_kwargs=True)


def _place(encoder: nn.Module, module: nn.Module) -> None:
    setattr(encoder, MODULE, module)


def _prepend(encoder: nn.Module, arguments: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The call of an encoder with embedded sources, virtual tokens in front, in place of ids."""
    input_ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    vectors = vectors_of(encoder)
    if mask is not None and mask.shape[-1] != len(vectors) + input_ids.shape[1]:
        raise ValueError(f"the mask {list(mask.shape)} is without the {len(vectors)} virtual tokens")
    embedded = encoder.get_input_embeddings()(input_ids)  # type: ignore[operator]
    prompts = vectors.to(embedded.dtype).expand(len(input_ids), -1, -1)
    return arguments, {**inputs, "input_ids": None, "inputs_embeds": torch.cat((prompts, embedded), 1)}


def vectors_of(encoder: nn.Module, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """(tokens, width) the vectors in front of the sources of an encoder that has them.

    Args:
        weights: for the module that makes them; None = its own.
    """
    module = encoder.get_submodule(MODULE)
    places = torch.arange(count_of(encoder), device=next(module.parameters()).device)
    if weights is not None:
        # functional_call puts other weights into the module for a moment. A checkpoint is written while training goes
        # on, and a pass over the module in that moment would leave its own weights without a gradient.
        module = copy.deepcopy(module)
        places = places.to(next(iter(weights.values())).device)
        return functional_call(module, dict(weights), (places,))  # type: ignore[no-any-return]
    found: Tensor = module(places)
    return found


def count_of(encoder: nn.Module) -> int:
    """The virtual tokens of an encoder, 0 where it has none."""
    module: Any = getattr(encoder, MODULE, None)
    if module is None:
        return 0
    return int(getattr(module, "embedding", module).num_embeddings)


def with_virtual_tokens(model: PreTrainedModel, attention_mask: Tensor) -> Tensor:
    """The (batch, source_length) mask with the virtual tokens of the model in front, where it has some."""
    adapter: Adapter | None = getattr(model, "s2s_adapter", None)
    count = adapter.num_virtual_tokens if adapter else 0
    return functional.pad(attention_mask, (count, 0), value=1) if count else attention_mask


def module_name(model: PreTrainedModel) -> str:
    """The name of what makes the virtual tokens among the modules of the model."""
    encoder = model.get_encoder()
    return next(f"{name}.{MODULE}" for name, module in model.named_modules() if module is encoder)


def placed(model: PreTrainedModel, adapter: Adapter, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights of an adapter's file by their names in the model; all others as they are.

    A file may hold as many vectors again, for the decoder, which `peft` never reads.
    """
    if adapter.method not in PROMPTS or IN_FILE not in weights:
        return weights
    return {f"{module_name(model)}.embedding.weight": weights[IN_FILE][: adapter.num_virtual_tokens]}


def in_file(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vectors as the file of an adapter has them, computed from `weights` by their names in the model."""
    opening = f"{module_name(model)}."
    own = {name.removeprefix(opening): value for name, value in weights.items()}
    with torch.no_grad():
        return {IN_FILE: vectors_of(model.get_encoder(), own)}


def settle(model: PreTrainedModel) -> None:
    """Put the vectors in the place of the network that makes them."""
    encoder = model.get_encoder()
    with torch.no_grad():
        vectors = vectors_of(encoder).clone()
    count, width = vectors.shape
    _place(encoder, nn.Embedding(count, width, _weight=vectors))
