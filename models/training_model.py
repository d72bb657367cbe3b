"""Where a training run's model and tokenizer come from: pretrained, from scratch, or the checkpoint it resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from errors import UserError
from flag_parsing import to_dict
from flags import TrainConfig
from models.acceleration import accelerate
from models.durable import CONTENT_KEY, RUN_ENTRIES, model_weights, read_checkpoint
from models.loading import (
    check_config_builds,
    check_vocabulary,
    checkpoint_config,
    config_from_dict,
    freeze_parts,
    from_checkpoint,
    from_config,
    from_pretrained,
    load_config,
    load_tokenizer,
    unpack_tokenizer,
)
from models.presets import TOKENIZER_KEY, read_config
from validation import resumed_path

RESUME_FREE = ("max_epoch",)  # optimization flags that may change on a resume
RESUME_FIXED = ("freeze", "float_precision", "monitor")  # other flags that may not
RESUME_MODEL = ("init_model", "config_path", "tokenizer", "source_language", "target_language")  # if given again


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
    if not config.run.resume_checkpoint:
        return None
    path = resumed_path(config)
    checkpoint = read_checkpoint(path, needed=RUN_ENTRIES)
    saved = checkpoint[CONTENT_KEY]["flags"]
    now = to_dict(config)
    fixed = [name for name in asdict(config.optim) if name not in RESUME_FREE] + list(RESUME_FIXED)
    fixed += [name for name in RESUME_MODEL if now[name]]
    differences = [
        f"-{name} (checkpoint: {saved.get(name)}, now: {now[name]})" for name in fixed if saved.get(name) != now[name]
    ]
    if differences:
        raise UserError(f"-resume_checkpoint {path}: the run was made with other settings: {'; '.join(differences)}")
    return {**checkpoint, "path": str(path)}


def finished_words(resumed: Mapping[str, Any], config: TrainConfig) -> str:
    """Why there is nothing left to train after `resumed`; empty when there is."""
    epochs, step = resumed["epoch"], resumed["global_step"]
    patience = config.run.early_stopping_patience
    without_gain = resumed["callbacks"]["Checkpointer"]["validations_without_gain"]
    if epochs >= config.optim.max_epoch:
        return f"the run is finished: {epochs} epochs, optimizer step {step}; a larger -max_epoch trains on"
    if patience and without_gain >= patience:
        return f"the run is finished: stopped early at optimizer step {step}; -early_stopping_patience 0 trains on"
    return ""


def changed_words(resumed: Mapping[str, Any] | None, config: TrainConfig) -> list[str]:
    """What differs from the run before in a way that changes its result, though it is allowed."""
    if resumed is None or resumed[CONTENT_KEY]["flags"]["max_epoch"] == config.optim.max_epoch:
        return []
    before = resumed[CONTENT_KEY]["flags"]["max_epoch"]
    return [
        f"-max_epoch was {before} and is {config.optim.max_epoch} now: the learning rate follows the longer"
        " or shorter course from here"
    ]


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
            tokenizer=unpack_tokenizer(content["tokenizer"]),
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
        check_vocabulary(model_config, tokenizer)
        check_config_builds(model_config, place)
        return ModelSource(model_config, tokenizer, lambda seed: _ready(from_config(content, seed, place), config))
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
        model.activation_checkpointing_enable({"use_reentrant": False})
    accelerate(model)
    return model.train()
