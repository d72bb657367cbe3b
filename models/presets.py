"""Model configs for training from scratch: the JSON of a file or of a preset in configs/. No torch import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.json_files import read_json

CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "configs"
TOKENIZER_KEY = "s2s_tokenizer"


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
