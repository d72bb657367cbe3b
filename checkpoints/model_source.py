"""The model that `inference.py` is given: a .ckpt, an exported folder, any from_pretrained folder or a hub name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.adapter_base import build_adapted, find_base, lasting_name, weights_digest
from checkpoints.model_paths import model_path
from checkpoints.run_folder import is_checkpoint
from checkpoints.saved_run import DIGEST_KEY, SavedModel, check_state, read_model, trained_tasks
from config.flags.model import FULL
from config.flags.optim import dropout_rates
from config.flags.train import TrainConfig
from models.adapters.folder import is_adapter_folder, read_adapter, read_weights
from models.adapters.methods import Adapter, check_virtual_tokens, chosen_adapter
from models.adapters.quantised import BITS, quantise
from models.adapters.tuning import adapter_of, apply, merge
from models.architectures import shared_target_limit, source_limit
from models.forward import check_logits
from models.freezing import freeze_parts
from models.kernels.accelerate import accelerate
from models.kernels.fused import use_fused_attention
from models.languages import with_languages
from models.layer_selection import smaller_config, with_layers
from models.loading import (
    check_config_builds,
    config_from_dict,
    from_config,
    from_pretrained,
    load_config,
    undrawn,
)
from models.presets import TOKENIZER_KEY, read_config, with_vocabulary
from models.regularisation import set_dropout
from models.tokenizers import CONFIG_FILE, fitting_tokenizer, load_tokenizer, number_of_ids
from task_utils import LANGUAGES, Task, fixed_languages
from utils.console import say
from utils.devices import all_finite
from utils.digests import FileState, content_of, file_states, tokenizer_digest
from utils.errors import UserError, raise_if_any
from utils.files import STATE_NAME
from utils.json_files import read_object

BASE_FLAG = "-base_model"
OF_TEXTS = ("input_template", "target_template", "label_map", "label_separator")  # of a task
OF_ROWS = (*OF_TEXTS, *LANGUAGES, "source_column", "target_column")


@lru_cache(maxsize=8)
def _checkpoint(name: str, flag: str) -> SavedModel:
    """The .ckpt, opened once in each process; its tensors stay on the disk until they are used."""
    return read_model(Path(name), flag)


@dataclass(frozen=True)
class InferenceModel:
    """Where the model lies; calling it loads model and tokenizer (in each worker anew)."""

    name: str
    tokenizer_name: str = ""
    source_language: str = ""
    target_language: str = ""
    flag: str = "-model"  # that named it, for messages
    found: tuple[FileState, ...] = ()  # its files when the command began; none = they may change
    base: str = ""  # the base model of an adapter, where it is not the one that the training took
    keep_base: bool = False  # for the next adapter

    @property
    def is_checkpoint(self) -> bool:
        """Whether the name is a .ckpt, a file or a folder, rather than the folder of a model or a hub name."""
        return is_checkpoint(Path(self.name))

    def saved_state(self) -> dict[str, Any]:
        """`task`, `label_map` and `flags` of the training; empty for a model that we did not train.

        Raises:
            UserError: torn, or entries of other types than ours.
        """
        if self.is_checkpoint:
            return dict(_checkpoint(self.name, self.flag).state)
        path = Path(self.name) / STATE_NAME
        if not os.path.isfile(path):
            return {}
        state = read_object(path, f"{self.flag} {self.name}")
        check_state(state, f"{self.flag} {self.name}: {path}")
        return state

    def config(self) -> PreTrainedConfig:
        """The model config: of an adapter's folder that of its base model."""
        if self.is_checkpoint:
            return _checkpoint(self.name, self.flag).config()
        return load_config(self._whole_model(), self.flag)

    def config_and_tokenizer(self) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
        """What the data encoding needs, without loading weights."""
        config = self.config()
        if self.is_checkpoint:
            saved = _checkpoint(self.name, self.flag)
            tokenizer = self._named_tokenizer() or with_languages(
                saved.tokenizer(), src_lang=self.source_language, tgt_lang=self.target_language
            )
        else:
            folder = self._whole_model() if self.is_adapter and not Path(self.name, CONFIG_FILE).exists() else self.name
            tokenizer = self._named_tokenizer() or self._tokenizer_of(folder, self.flag)
        return config, fitting_tokenizer(config, tokenizer)

    def identity(self) -> str:
        """What changes when the model does: a digest of its files, or the commit of a hub model."""
        if os.path.exists(self.name):
            content = content_of(Path(self.name))
            self._check_unchanged()
            if self.is_checkpoint or not self.is_adapter or DIGEST_KEY in self.saved_state():
                return content  # of an adapter, that of its base is in it
            return f"{content} on {replace(self, name=self._whole_model(), found=()).identity()}"
        return f"{self.name} at {getattr(self.config_and_tokenizer()[0], '_commit_hash', None)}"

    @property
    def is_adapter(self) -> bool:
        """Whether it holds the weights of an adapter only."""
        if self.is_checkpoint:
            return _checkpoint(self.name, self.flag).has_adapter
        return is_adapter_folder(self.name)

    @property
    def virtual_tokens(self) -> int:
        """Virtual tokens that its adapter puts in front of every source; 0 = none."""
        if not self.is_adapter:
            return 0
        adapter = _checkpoint(self.name, self.flag).adapter() if self.is_checkpoint else self._adapter()
        return adapter.num_virtual_tokens

    def _adapter(self) -> Adapter:
        return read_adapter(self.name, f"{self.flag} {self.name}", self.saved_state().get(DIGEST_KEY, ""))

    def _whole_model(self) -> str:
        """The folder or hub name of the model, of the base model where the name is an adapter's folder."""
        if not self.is_adapter:
            return self.name
        return find_base(self._adapter(), f"{self.flag} {self.name}", BASE_FLAG, self.base)

    def notes(self) -> list[str]:
        """What to tell of its training: that an adapter knows its base only rounded."""
        load_in = self.saved_state().get("flags", {}).get("load_in")
        if not self.is_adapter or load_in not in BITS:
            return []
        return [f"{self.flag} {self.name}: trained with -load_in {load_in}, and used on the base in full precision"]

    def load(self, empty: bool = False) -> PreTrainedModel:
        """The model on the CPU, an adapter in it as layers of its own; a whole one without its weights, if `empty`."""
        if self.is_checkpoint:
            model = _checkpoint(self.name, self.flag).build(BASE_FLAG, self.base, empty)
        elif self.is_adapter:
            place = f"{self.flag} {self.name}"
            model = build_adapted(
                self._adapter(), read_weights(self.name, place), place, BASE_FLAG, self.base, self.keep_base
            )
        else:
            model = from_pretrained(self.name, self.flag, empty)
        self._check_unchanged()
        return model

    def __call__(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in evaluation mode on the CPU, an adapter merged into its weights, and its tokenizer.

        Virtual tokens stay in front of the sources.
        """
        _, tokenizer = self.config_and_tokenizer()
        model = self.load()
        merge(model)
        self._check_finite(model)
        accelerate(model)
        return model.eval(), tokenizer

    def _check_unchanged(self) -> None:
        """Refuse files that a training replaced since the command began: what was loaded is of two models."""
        if self.found and self.found != file_states(Path(self.name)):
            raise UserError(
                f"{self.flag} {self.name}: was replaced after this command had begun (a training that goes on does so);"
                " wait for it to end, or give a copy"
            )

    def _check_finite(self, model: PreTrainedModel) -> None:
        """Refuse weights that hold NaN or infinity: every prediction would be empty."""
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if value.is_floating_point() and not all_finite([value]):
                raise UserError(f"{self.flag} {self.name}: the weights are not finite: {name} holds NaN or infinity")

    def _named_tokenizer(self) -> PreTrainedTokenizerBase | None:
        return self._tokenizer_of(self.tokenizer_name, "-tokenizer") if self.tokenizer_name else None

    def _tokenizer_of(self, name: str, flag: str) -> PreTrainedTokenizerBase:
        return load_tokenizer(name, flag, src_lang=self.source_language, tgt_lang=self.target_language)


def inference_models(
    names: Sequence[str], tokenizer_name: str = "", base: str = "", keep_base: bool = False
) -> tuple[InferenceModel, ...]:
    """The models of -model, and of -base_model where they are adapters.

    Raises:
        UserError: what `model_path` raises; several that have not the same tokenizer; a base model for no adapter.
    """
    tokenizer_path = model_path("-tokenizer", tokenizer_name) if tokenizer_name else ""
    paths = [model_path("-model", name) for name in names]
    models = tuple(
        InferenceModel(path, tokenizer_path, found=file_states(Path(path)), base=base, keep_base=keep_base)
        for path in paths
    )
    raise_if_any(
        f"-base_model {base}: is for adapters, and -model {model.name} is a whole model"
        for model in models
        if base and not model.is_adapter
    )
    if len(models) > 1:
        first, *others = [tokenizer_digest(model.config_and_tokenizer()[1]) for model in models]
        raise_if_any(
            f"-model {model.name}: its tokenizer is not that of {models[0].name}; models that decode together need the"
            " same"
            for model, digest in zip(models[1:], others, strict=True)
            if digest != first
        )
    return models


def check_same_texts(models: Sequence[InferenceModel], keys: Sequence[str] = OF_TEXTS, name: str = "") -> None:
    """Refuse models of ours that were trained on texts of another form.

    Args:
        keys: what must be the same of their tasks.
        name: of the only task that is compared, of those that were trained on several.
    """
    known = [(model, texts) for model in models if (texts := _texts(model.saved_state(), keys, name))]
    raise_if_any(
        f"{model.flag} {model.name}: trained on other texts than {known[0][0].name}: {key} is {texts.get(key)!r:.300},"
        f" not {value!r:.300}"
        for model, texts in known[1:]
        for key, value in known[0][1].items()
        if json.dumps(texts.get(key)) != json.dumps(value)  # the order of labels counts
    )


def _texts(state: Mapping[str, Any], keys: Sequence[str], name: str) -> dict[str, Any]:
    """What the texts of a model are made of, by key; of several tasks, where none is named, by task as well."""
    tasks = trained_tasks(state)
    if len(tasks) == 1:
        return {key: tasks[0].get(key) for key in keys}
    if name:
        return {key: task.get(key) for task in tasks if task["name"] == name for key in keys}
    texts = {f"{key} of {task['name']}": task.get(key) for task in tasks for key in keys}
    return {"tasks": [task["name"] for task in tasks], **texts} if tasks else {}


def shared_limits(models: Sequence[InferenceModel]) -> tuple[int, int]:
    """Tokens of a source, and of a target, that all the models can hold; 0 = no limit."""
    configs = [model.config_and_tokenizer()[0] for model in models]
    sources = [source_limit(config, model.virtual_tokens) for config, model in zip(configs, models, strict=True)]
    return min(filter(None, sources), default=0), shared_target_limit(configs)


@dataclass(frozen=True)
class ModelSource:
    """A model that is about to be built: its config and tokenizer are known, its weights are not loaded yet."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    # (seed, whether its weights are written later, by `models.loading.undrawn`) -> model, ready to train
    build: Callable[[int, bool], PreTrainedModel]


def model_source(config: TrainConfig, tasks: Sequence[Task], resumed: SavedModel | None) -> ModelSource:
    """The model source that the flags name; problems of names, configs and vocabularies are raised here."""
    flags = config.model
    fixed = {fixed_languages(task, config.data) for task in tasks}  # of several, each row says its own
    languages = dict(zip(("src_lang", "tgt_lang"), fixed.pop() if len(fixed) == 1 else ("", ""), strict=True))
    if resumed is not None:
        resumed.find_base("-init_model", flags.init_model)
        saved = partial(resumed.build, "-init_model", flags.init_model)
        return ModelSource(
            resumed.config(), resumed.tokenizer(), lambda seed, empty: _ready(saved(empty), config, seed)
        )
    if flags.config_path:
        content = read_config(flags.config_path)
        spec = flags.tokenizer or content.get(TOKENIZER_KEY, "")
        if not spec:
            raise UserError(f"-config_path {flags.config_path}: give -tokenizer (a folder, a hub name, or 'bytes')")
        tokenizer = load_tokenizer(model_path("-tokenizer", spec), **languages)
        if "vocab_size" not in content or spec != content.get(TOKENIZER_KEY, spec):  # it is another tokenizer's
            ids = tokenizer.pad_token_id, tokenizer.eos_token_id
            content = with_vocabulary(content, number_of_ids(tokenizer), *ids)
        place = f"-config_path {flags.config_path}"
        model_config = config_from_dict(content, place)
        tokenizer = fitting_tokenizer(model_config, tokenizer)
        check_config_builds(model_config, place)

        def drawn(seed: int, empty: bool) -> PreTrainedModel:
            with undrawn() if empty else nullcontext():
                model = from_config(content, seed, place)
            return _ready(model, config, seed)

        return ModelSource(model_config, tokenizer, drawn)
    path = model_path("-init_model", flags.init_model)
    origin = InferenceModel(path, flag="-init_model")
    if origin.is_adapter and flags.tuning_method != FULL:
        raise UserError(
            f"-init_model {path}: an adapter, on which -tuning_method {flags.tuning_method} cannot put another one;"
            " write a full model first with export.py -merge, or give -tuning_method finetune"
        )
    if origin.virtual_tokens:
        raise UserError(f"-init_model {path}: an adapter of virtual tokens, which no model can be made of to train on")
    model_config = origin.config()
    if flags.virtual_tokens:
        check_virtual_tokens(model_config, flags.virtual_tokens, f"-tuning_method {flags.tuning_method}")
    layers = flags.encoder_layers, flags.decoder_layers
    if any(layers):
        model_config = smaller_config(model_config, layers, f"-init_model {path}")
    named = model_path("-tokenizer", flags.tokenizer) if flags.tokenizer else ""
    tokenizer = load_tokenizer(named or path, "-tokenizer" if named else "-init_model", **languages)
    tokenizer = fitting_tokenizer(model_config, tokenizer)

    def build(seed: int, empty: bool) -> PreTrainedModel:
        model = origin.load(empty)
        merge(model)
        model = with_layers(model, layers, f"-init_model {path}", empty) if any(layers) else model
        return _ready(model, config, seed, path)

    return ModelSource(model_config, tokenizer, build)


def _ready(model: PreTrainedModel, config: TrainConfig, seed: int, base: str = "") -> PreTrainedModel:
    """The model in training mode, with the adapter of -tuning_method, or the parts that -freeze names left alone.

    Args:
        base: its folder or hub name, where it has no adapter yet.
    """
    flags = config.model
    set_dropout(model, dropout_rates(config.optim))
    places = {"-config_path": flags.config_path, "-init_model": flags.init_model}
    given = [f"{flag} {value}" for flag, value in places.items() if value]
    check_logits(model, (given or [f"-resume_checkpoint {config.run.resume_checkpoint}"])[0])
    if flags.tuning_method == FULL:
        say(*freeze_parts(model, flags.freeze))
    elif adapter_of(model) is None:
        adapter = chosen_adapter(
            model,
            flags.tuning_method,
            flags.target_modules,
            flags.modules_to_save,
            flags.lora_r,
            flags.lora_alpha,
            flags.lora_dropout,
            flags.num_virtual_tokens,
        )
        torch.manual_seed(seed)
        apply(model, replace(adapter, base=lasting_name(base), digest=weights_digest(model)))
    quantise(model, flags.load_in)
    if config.model.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if config.device.attention == "fused":
        use_fused_attention(model)
    accelerate(model)
    return model.train()
