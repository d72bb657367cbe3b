"""Where a training run's model and tokenizer come from: pretrained, from scratch, or the checkpoint it resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from config.flags import TrainConfig
from models.checkpoint_format import model_weights
from models.forward import check_logits
from models.kernels.accelerate import accelerate
from models.loading import (
    check_config_builds,
    checkpoint_config,
    config_from_dict,
    freeze_parts,
    from_checkpoint,
    from_config,
    from_pretrained,
    load_config,
)
from models.presets import TOKENIZER_KEY, read_config
from models.run_folder import CONTENT_KEY
from models.tokenizers import fitting_tokenizer, load_tokenizer, unpack_tokenizer
from utils.errors import UserError


@dataclass(frozen=True)
class ModelSource:
    """A model that is about to be built: its config and tokenizer are known, its weights are not loaded yet."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    build: Callable[[int], PreTrainedModel]  # seed -> model, ready to train


def model_source(config: TrainConfig, resumed: Mapping[str, Any] | None) -> ModelSource:
    """The model source that the flags name; problems of names, configs and vocabularies are raised here."""
    flags, data = config.model, config.data
    languages = {"src_lang": data.source_language, "tgt_lang": data.target_language}
    if resumed is not None:
        content = resumed[CONTENT_KEY]
        weights = model_weights(resumed)
        place = f"-resume_checkpoint {resumed['path']}"
        return ModelSource(
            config=checkpoint_config(content["model"], place),
            tokenizer=unpack_tokenizer(content["tokenizer"], place),
            build=lambda seed: _ready(from_checkpoint(content["model"], weights, place), config),  # noqa: ARG005
        )
    if flags.config_path:
        content = read_config(flags.config_path)
        spec = flags.tokenizer or content.get(TOKENIZER_KEY, "")
        if not spec:
            raise UserError(f"-config_path {flags.config_path}: give -tokenizer (a folder, a hub name, or 'bytes')")
        tokenizer = load_tokenizer(spec, **languages)
        place = f"-config_path {flags.config_path}"
        model_config = config_from_dict(content, place)
        tokenizer = fitting_tokenizer(model_config, tokenizer)
        check_config_builds(model_config, place)
        return ModelSource(model_config, tokenizer, lambda seed: _ready(from_config(content, seed, place), config))
    model_config = load_config(flags.init_model)
    tokenizer = load_tokenizer(
        flags.tokenizer or flags.init_model, "-tokenizer" if flags.tokenizer else "-init_model", **languages
    )
    tokenizer = fitting_tokenizer(model_config, tokenizer)
    return ModelSource(model_config, tokenizer, lambda seed: _ready(from_pretrained(flags.init_model), config))  # noqa: ARG005


def _ready(model: PreTrainedModel, config: TrainConfig) -> PreTrainedModel:
    """The model in training mode with the parts that -freeze names left alone."""
    flags = config.model
    places = {"-config_path": flags.config_path, "-init_model": flags.init_model}
    given = [f"{flag} {value}" for flag, value in places.items() if value]
    check_logits(model, (given or [f"-resume_checkpoint {config.run.resume_checkpoint}"])[0])
    freeze_parts(model, config.model.freeze)
    if config.model.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    accelerate(model)
    return model.train()
