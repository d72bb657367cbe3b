"""Where a training run's model and tokenizer come from: pretrained, from scratch, or the checkpoint it resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from errors import UserError
from flags import TrainConfig
from models.acceleration import accelerate
from models.durable import CONTENT_KEY, read_checkpoint
from models.loading import (
    TOKENIZER_KEY,
    check_vocabulary,
    config_from_dict,
    freeze_parts,
    from_checkpoint,
    from_config,
    from_pretrained,
    load_config,
    load_tokenizer,
    read_config,
    unpack_tokenizer,
)
from models.run_folder import newest_checkpoint

RESUME_FREE = ("max_epoch",)  # optimization flags that may change on a resume


@dataclass(frozen=True)
class ModelSource:
    """A model that is about to be built: its config and tokenizer are known, its weights are not loaded yet."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    build: Callable[[int], PreTrainedModel]  # seed -> model, ready to train


def load_resumed(config: TrainConfig) -> dict[str, Any] | None:
    """The checkpoint that -resume_checkpoint names, with its `path`; None when it names none.

    Raises:
        UserError: nothing there, torn, of another kind, or of a run with other optimization flags.
    """
    value = config.run.resume_checkpoint
    if not value:
        return None
    if "://" in value:
        raise UserError(f"-resume_checkpoint {value}: a file on this machine is expected, not a URL")
    path = newest_checkpoint(Path(config.run.save_path)) if value == "last" else Path(value)
    if path.is_dir():
        path = newest_checkpoint(path)
    if not path.is_file():
        raise UserError(f"-resume_checkpoint {value}: no such file: {path}")
    checkpoint = read_checkpoint(path)
    saved = checkpoint[CONTENT_KEY]["flags"]
    differences = [
        f"-{name} (checkpoint: {saved.get(name)}, now: {value})"
        for name, value in asdict(config.optim).items()
        if name not in RESUME_FREE and saved.get(name) != value
    ]
    if differences:
        raise UserError(f"-resume_checkpoint {path}: the run was made with other settings: {'; '.join(differences)}")
    return {**checkpoint, "path": str(path)}


def model_source(config: TrainConfig, resumed: Mapping[str, Any] | None) -> ModelSource:
    """The model source that the flags name; problems of names, configs and vocabularies are raised here."""
    flags, data = config.model, config.data
    languages = {"src_lang": data.source_language, "tgt_lang": data.target_language}
    if resumed is not None:
        content = resumed[CONTENT_KEY]
        weights = {
            name.removeprefix("model."): value
            for name, value in resumed["state_dict"].items()
            if name.startswith("model.")
        }
        return ModelSource(
            config=config_from_dict(json.loads(content["model"]["model_config"])),
            tokenizer=unpack_tokenizer(content["tokenizer"]),
            build=lambda seed: _ready(from_checkpoint(content["model"], weights), config),  # noqa: ARG005
        )
    if flags.config_path:
        content = read_config(flags.config_path)
        spec = flags.tokenizer or content.get(TOKENIZER_KEY, "")
        if not spec:
            raise UserError(f"-config_path {flags.config_path}: give -tokenizer (a folder, a hub name, or 'bytes')")
        tokenizer = load_tokenizer(spec, **languages)
        model_config = config_from_dict(content)
        check_vocabulary(model_config, tokenizer)
        return ModelSource(model_config, tokenizer, lambda seed: _ready(from_config(content, seed), config))
    model_config = load_config(flags.init_model)
    tokenizer = load_tokenizer(
        flags.tokenizer or flags.init_model, "-tokenizer" if flags.tokenizer else "-init_model", **languages
    )
    check_vocabulary(model_config, tokenizer)
    return ModelSource(model_config, tokenizer, lambda seed: _ready(from_pretrained(flags.init_model), config))  # noqa: ARG005


def _ready(model: PreTrainedModel, config: TrainConfig) -> PreTrainedModel:
    """The model in training mode with the parts that -freeze names left alone."""
    freeze_parts(model, config.model.freeze)
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    accelerate(model)
    return model.train()
