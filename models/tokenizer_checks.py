"""Tokenizers that the library makes without a word although the files they come from are not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from models.run_folder import STATE_NAME

CONFIG_FILE = "tokenizer_config.json"
WHOLE_FILE = "tokenizer.json"  # a tokenizer whose tokens are all added ones has it, and is what it says
WAY_OUT = "copy them from where the model was saved (train.py and inference.py also take -tokenizer)"


def tokenizer_problem(spec: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Why `tokenizer`, loaded from the folder or hub name `spec`, is not the one of there; empty if it may be.

    Without its files the library makes one of the model's kind that knows special tokens only (and the mark of a
    blank), so that every text is unknown. Without the class in tokenizer_config.json it takes the model's usual one,
    which may put other tokens around a text; `train.py` always writes the class.
    """
    folder = Path(spec)
    real_tokens = len(tokenizer) - len(tokenizer.get_added_vocab())
    if real_tokens < 2 and not os.path.isfile(folder / WHOLE_FILE):
        return f"no tokenizer files there: only special tokens would be known; {WAY_OUT}"
    if os.path.isfile(folder / STATE_NAME) and not _names_class(folder / CONFIG_FILE):
        return f"no tokenizer files of a run there: {CONFIG_FILE} is missing or names no tokenizer_class; {WAY_OUT}"
    return ""


def _names_class(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and bool(content.get("tokenizer_class"))
