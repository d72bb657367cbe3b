"""The model that `inference.py` is given: a .ckpt, an exported folder, any from_pretrained folder or a hub name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from errors import UserError
from models.acceleration import accelerate
from models.durable import CONTENT_KEY, model_weights, read_checkpoint
from models.loading import (
    check_vocabulary,
    config_from_dict,
    from_checkpoint,
    from_pretrained,
    load_config,
    load_tokenizer,
    unpack_tokenizer,
    with_languages,
)
from models.run_folder import CHECKPOINT_FOLDER, STATE_NAME


@lru_cache(maxsize=1)
def _checkpoint(name: str) -> dict[str, Any]:
    """The .ckpt, opened once in each process; its tensors stay on the disk until they are used."""
    return read_checkpoint(name, "-model", mmap=True)


@dataclass(frozen=True)
class InferenceModel:
    """Where the model lies; calling it loads model and tokenizer (in each worker anew)."""

    name: str
    tokenizer_name: str = ""
    source_language: str = ""
    target_language: str = ""

    @property
    def is_checkpoint(self) -> bool:
        """Whether the name is a file (a .ckpt) rather than a folder or hub name."""
        return Path(self.name).is_file() or self.name.endswith(".ckpt")

    def check(self) -> None:
        """Cheap problems of the name, before anything is loaded."""
        folder = Path(self.name)
        if "://" in self.name:
            raise UserError(f"-model {self.name}: a file, a folder or a hub name is expected, not a URL")
        if self.name.endswith(".ckpt") and not folder.is_file():
            raise UserError(f"-model {self.name}: no such file")
        if folder.is_dir() and (folder / CHECKPOINT_FOLDER).is_dir():
            choices = [str(folder / name) for name in ("best", "last") if (folder / name).is_dir()]
            raise UserError(
                f"-model {self.name}: this is a run's folder; give {' or '.join(choices) or 'a .ckpt of it'}"
            )

    def saved_state(self) -> dict[str, Any]:
        """`task`, `label_map` and `flags` of the training; empty for a model that we did not train."""
        if self.is_checkpoint:
            return dict(_checkpoint(self.name)[CONTENT_KEY])
        path = Path(self.name) / STATE_NAME
        if not path.is_file():
            return {}
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"-model {self.name}: {path} is torn or no JSON ({error})") from error
        return dict(state)

    def config_and_tokenizer(self) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
        """What the data encoding needs, without loading weights."""
        if self.is_checkpoint:
            content = _checkpoint(self.name)[CONTENT_KEY]
            config = config_from_dict(json.loads(content["model"]["model_config"]))
            languages = {"src_lang": self.source_language, "tgt_lang": self.target_language}
            tokenizer = self._named_tokenizer() or with_languages(unpack_tokenizer(content["tokenizer"]), **languages)
        else:
            config = load_config(self.name, "-model")
            tokenizer = self._named_tokenizer() or self._tokenizer_of(self.name, "-model")
        check_vocabulary(config, tokenizer)
        return config, tokenizer

    def __call__(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in evaluation mode on the CPU, and its tokenizer."""
        _, tokenizer = self.config_and_tokenizer()
        if self.is_checkpoint:
            checkpoint = _checkpoint(self.name)
            model = from_checkpoint(checkpoint[CONTENT_KEY]["model"], model_weights(checkpoint))
        else:
            model = from_pretrained(self.name, "-model")
        accelerate(model)
        return model.eval(), tokenizer

    def _named_tokenizer(self) -> PreTrainedTokenizerBase | None:
        return self._tokenizer_of(self.tokenizer_name, "-tokenizer") if self.tokenizer_name else None

    def _tokenizer_of(self, name: str, flag: str) -> PreTrainedTokenizerBase:
        return load_tokenizer(name, flag, src_lang=self.source_language, tgt_lang=self.target_language)
