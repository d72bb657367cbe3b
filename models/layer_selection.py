"""A smaller model made of some layers of a pretrained one, for a student that begins where its teacher is."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

from transformers import PreTrainedConfig, PreTrainedModel

from models.architectures import Architecture, architecture, of_plain_layers
from models.loading import describe, from_checkpoint
from utils.errors import UserError, raise_if_any

SIDES = ("encoder", "decoder")


def selected_layers(total: int, count: int) -> list[int]:
    """`count` of `total` layers, evenly spaced from the first to the last; one alone is the first.

    Shleifer and Rush 2020, "Pre-trained Summarization Distillation", section 3 (shrink and fine-tune).
    """
    return [round(number * (total - 1) / max(count - 1, 1)) for number in range(count)]


def smaller_config(config: PreTrainedConfig, counts: Sequence[int], place: str) -> PreTrainedConfig:
    """`config` with so many encoder and decoder layers; 0 = all that there are.

    Raises:
        UserError: there are not so many, or the layers of this architecture are not known; `place` opens the message.
    """
    row = architecture(config.model_type)
    if config.model_type not in of_plain_layers():
        raise UserError(
            f"{place}: layers can be taken of {', '.join(of_plain_layers())} models (ByT5 is a t5), not of"
            f" {config.model_type}"
        )
    keys = _config_keys(row)
    raise_if_any(
        f"-{side}_layers {count}: {place} has {getattr(config, key)}"
        for side, key, count in zip(SIDES, keys, counts, strict=True)
        if count > getattr(config, key)
    )
    smaller = copy.deepcopy(config)
    for key, count in zip(keys, counts, strict=True):
        setattr(smaller, key, count or getattr(config, key))
    return smaller


def with_layers(model: PreTrainedModel, counts: Sequence[int], place: str, empty: bool = False) -> PreTrainedModel:
    """A model of that many encoder and decoder layers of `model`, evenly spaced, and of everything else it has.

    `empty` as in `from_checkpoint`.
    """
    row = architecture(model.config.model_type)
    smaller = smaller_config(model.config, counts, place)
    weights = model.state_dict()
    for side, key in zip(SIDES, _config_keys(row), strict=True):
        kept = selected_layers(getattr(model.config, key), getattr(smaller, key))
        layers = re.compile(rf"((?:model\.)?{side}\.(?:block|layers)\.)(\d+)(\..*)")
        chosen = {}
        for name, value in weights.items():
            match = layers.fullmatch(name)
            if match is None:
                chosen[name] = value
            elif int(match[2]) in kept:
                chosen[f"{match[1]}{kept.index(int(match[2]))}{match[3]}"] = value
        weights = chosen
    description = {**describe(model), "model_config": smaller.to_json_string(use_diff=False)}
    return from_checkpoint(description, weights, place, empty)


def _config_keys(row: Architecture) -> tuple[str, str]:
    return ("num_layers", "num_decoder_layers") if row.like_t5 else ("encoder_layers", "decoder_layers")
