"""Model configs for training from scratch: the JSON of a file or of a preset in configs/. No torch import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.json_files import read_json

CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "configs"
TOKENIZER_KEY = "s2s_tokenizer"
ROWS_OF_EMBEDDINGS = 128  # a multiple of it: fast on GPUs


def preset_names() -> list[str]:
    """Names that -config_path takes besides a file."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.json"))


def read_config(config_path: str) -> dict[str, Any]:
    """The JSON of a config file or preset.

    Raises:
        UserError: no such file or preset, not JSON, or no `model_type`.
    """
    path = Path(config_path)
    if not os.path.isfile(path) and not path.suffix:  # unlike Path.is_file, no error for a name that is too long
        path = CONFIG_FOLDER / f"{config_path}.json"
    if os.path.isdir(path):
        path = path / "config.json"
    if not os.path.isfile(path):
        raise UserError(f"-config_path {config_path}: no such file; presets: {', '.join(preset_names())}")
    try:
        content = read_json(path)
    except (ValueError, OSError) as error:
        raise UserError(f"-config_path {config_path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or "model_type" not in content:
        raise UserError(f"-config_path {config_path}: the key 'model_type' is missing, e.g. t5, mt5, bart, mbart")
    return content


def with_vocabulary(content: Mapping[str, Any], tokens: int, pad: int | None, end: int | None) -> dict[str, Any]:
    """A config for a tokenizer of so many tokens, with its ids; decoding begins with the same token as before."""
    begins_at_end = content.get("decoder_start_token_id") == content.get("eos_token_id")
    size = -(-tokens // ROWS_OF_EMBEDDINGS) * ROWS_OF_EMBEDDINGS
    ids = {"pad_token_id": pad, "eos_token_id": end, "decoder_start_token_id": end if begins_at_end else pad}
    return {**content, "vocab_size": size, **ids}
