"""Noise of training beyond what the model config asks for: other rates of dropout, and noise on the embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

from models.foreign_code import NO_CODE
from utils.errors import UserError

DROPOUT_KEYS = {  # flag -> the words for it in model configs
    "dropout": ("dropout_rate", "dropout", "hidden_dropout_prob"),
    "attention_dropout": ("attention_dropout", "attention_probs_dropout_prob"),
    "activation_dropout": ("activation_dropout",),
}


def check_dropout(config: PreTrainedConfig, rates: Mapping[str, float | None]) -> None:
    """Raise `UserError` where the architecture has no dropout of a kind that the flags give a rate of."""
    kinds = [flag for flag, keys in DROPOUT_KEYS.items() if _having(config, keys)]
    for flag, rate in rates.items():
        if rate is not None and flag not in kinds:
            known = f"it has {', '.join(f'-{kind}' for kind in kinds)}" if kinds else "it has none"
            raise UserError(f"-{flag} {rate:g}: a {config.model_type} model has no such dropout of its own; {known}")


def set_dropout(model: PreTrainedModel, rates: Mapping[str, float | None]) -> None:
    """Give every dropout of the model the rate of its kind, in the modules and in the config that is exported.

    Args:
        rates: by flag; None = as it is.
    """
    given = {flag: rate for flag, rate in rates.items() if rate is not None}
    if not given:
        return
    for flag, rate in given.items():
        for part, key in _having(model.config, DROPOUT_KEYS[flag]):
            setattr(part, key, rate)
    with torch.device("meta"):
        like_it = AutoModelForSeq2SeqLM.from_config(model.config, **NO_CODE)
    own = dict(model.named_modules())
    for name, module in like_it.named_modules():
        for attribute, value in vars(module).items():
            is_rate = attribute == "p" if isinstance(module, nn.Dropout) else "dropout" in attribute
            if is_rate and isinstance(value, int | float) and hasattr(own.get(name), attribute):
                setattr(own[name], attribute, value)


def _having(config: PreTrainedConfig, keys: tuple[str, ...]) -> list[tuple[Any, str]]:
    """The config and those of its parts that have one of the keys, each with that key."""
    parts = [config, *(getattr(config, side, None) for side in ("encoder", "decoder"))]
    found: Iterator[tuple[Any, str]] = ((part, key) for part in parts for key in keys if hasattr(part, key))
    return list(found)


def add_embedding_noise(model: PreTrainedModel, alpha: float, pad_token_id: int) -> None:
    """Add noise to the embedded sources in training: NEFTune (Jain et al. 2023, algorithm 1).

    Each value gets alpha / sqrt(L * d) times a number drawn evenly from -1 to 1, where L are the source tokens of the
    row, without padding, and d is the width.
    """

    def noisy(module: nn.Module, arguments: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        if not module.training:
            return embedded
        read = arguments[0].ne(pad_token_id)  # (batch, source_length)
        size = alpha / (read.sum(1, keepdim=True).clamp(min=1) * embedded.shape[-1]).sqrt()
        noise = torch.empty_like(embedded).uniform_(-1, 1)
        return embedded + noise * (size * read).unsqueeze(-1)

    model.get_encoder().get_input_embeddings().register_forward_hook(noisy)
