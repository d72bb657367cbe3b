"""Models and tokenizers that bring Python code of their own: refused; it is never run, copied or asked about."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from huggingface_hub import is_offline_mode
from transformers import PreTrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from utils.errors import UserError, first_line
from utils.libraries import ask_the_hub_once

NO_CODE: dict[str, Any] = {"trust_remote_code": False}  # for every call of the library; without it, it asks
CODE_KEY = "auto_map"  # in a config: the module, beside it or of another repository, whose class is to be taken
READERS = {"config.json": PreTrainedConfig.get_config_dict, "tokenizer_config.json": get_tokenizer_config}


def refuse_code(content: Any, place: str, part: str = "config") -> None:
    """Refuse a config that names code, at whatever depth: the models within a model are built the same way.

    The library may know a class for its `model_type` all the same. It is not taken: what that makes of the weights
    need not be what the code does.

    Args:
        content: of the config, as JSON values.
        place: opens the message: the flag and its value.
        part: what the config is called.
    """
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get(CODE_KEY):
                raise UserError(
                    f"{place}: brings code of its own ({CODE_KEY} in its {part}), which is never run; a copy without"
                    f" {CODE_KEY} is loaded with the library's own classes, if it has them"
                )
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value


def refuse_code_of(name: str, place: str) -> None:
    """`refuse_code` for what the library reads first of a folder or hub name."""
    if not os.path.exists(name):
        ask_the_hub_once()
    for part, read in READERS.items():
        content: Any = None
        with suppress(Exception):  # missing or damaged: the loading, which runs no code either, says so
            content = read(name)
        refuse_code(content, place, part)


def not_loaded(name: str, error: Exception) -> str:
    """Why the library could load nothing by the folder or hub name `name`, in one line."""
    if os.path.exists(name) or not is_offline_mode():
        return first_line(error)
    return (
        "not among the downloaded models, and the hub is not asked (HF_HUB_OFFLINE) or does not answer; download it"
        " where there is a network, or give a local folder"
    )
