"""What is wrong with a model config that the library takes but that fails, or trains nonsense, later on."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from models.architectures import architecture

SIZES = """vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads encoder_layers decoder_layers
    encoder_ffn_dim decoder_ffn_dim encoder_attention_heads decoder_attention_heads max_position_embeddings"""
MOST_LAYERS = 1000
ROW_OF_EXPERTS = 8  # numbers that `grouped_mm` reads at once in the smallest type
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
ACTIVATIONS = {"activation_function": "activation_function", "dense_act_fn": "feed_forward_proj"}  # ours -> the file's


def config_problems(config: PreTrainedConfig) -> list[str]:
    """Every problem of an encoder-decoder's config, one line each; empty when there is none."""
    return [*_sizes(config), *_tokens(config), *_dropouts(config), *_activations(config), *_experts(config)]


def _sizes(config: PreTrainedConfig) -> Iterator[str]:
    for name in SIZES.split():
        value = getattr(config, name, None)
        if isinstance(value, int) and value < 1:
            yield f"{name} is {value}, it must be at least 1"
        if isinstance(value, int) and name.endswith("layers") and value > MOST_LAYERS:
            yield f"{name} is {value}, it must be at most {MOST_LAYERS}"


def _tokens(config: PreTrainedConfig) -> Iterator[str]:
    vocabulary = getattr(config, "vocab_size", None)
    if not isinstance(vocabulary, int) or vocabulary < 1:
        return  # a pair of models, each with a config of its own; or told as a size
    for name in TOKENS:
        value = getattr(config, name, None)
        ids = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(i, int) and not 0 <= i < vocabulary for i in ids):
            yield f"{name} is {value}, it must lie within the vocabulary, 0 to {vocabulary - 1}"
    needed = ["pad_token_id"]
    if architecture(config.model_type).needs_start_token:
        needed.append("decoder_start_token_id")
    for name in needed:
        if getattr(config, name, None) is None:
            yield f"{name} is null or missing, training needs it"


def _dropouts(config: PreTrainedConfig) -> Iterator[str]:
    for name, value in config.to_dict().items():
        if ("dropout" in name or "layerdrop" in name) and isinstance(value, int | float) and not 0 <= value < 1:
            yield f"{name} is {value}, it must be at least 0 and below 1"


def _activations(config: PreTrainedConfig) -> Iterator[str]:
    for name, shown in ACTIVATIONS.items():
        value = getattr(config, name, None)
        if isinstance(value, str) and value not in ACT2FN:
            yield f"{shown} names the unknown activation {value!r}; known: {', '.join(ACT2FN)}"


def _experts(config: PreTrainedConfig) -> Iterator[str]:
    if not architecture(config.model_type).experts:
        return
    if config.num_experts < 2:
        yield f"num_experts is {config.num_experts}, it must be at least 2; a T5 has one"
    if config.experts_per_token not in (1, 2):
        yield f"experts_per_token is {config.experts_per_token}, it must be 1 or 2"
    for name, least in (("capacity_factor", 0), ("min_expert_capacity", 1), ("router_aux_loss_coef", 0)):
        if getattr(config, name) < least:
            yield f"{name} is {getattr(config, name):g}, it must be at least {least}"
    if config.router_z_loss_coef < 0:
        yield f"router_z_loss_coef is {config.router_z_loss_coef:g}, it must be at least 0"
    for name in ("d_model", "d_ff"):
        if getattr(config, name) % ROW_OF_EXPERTS:
            yield f"{name} is {getattr(config, name)}, it must be a multiple of {ROW_OF_EXPERTS}"
    deepest = max(config.num_layers, config.num_decoder_layers)
    if not 1 <= config.sparse_step <= deepest:
        yield f"sparse_step is {config.sparse_step}, it must be from 1 to {deepest}, the layers of the deeper side"
