"""JSON from outside: whatever it is, its content or one error that callers know."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from checkpoints.model_source import InferenceModel
from checkpoints.run_folder import exported_step, run_flags
from models.presets import read_config
from utils import json_files
from utils.errors import UserError
from utils.json_files import DEEPEST, parse_json, read_json

DEEP = "[" * 100_000 + "]" * 100_000


def test_deep_json_is_an_error_as_other_bad_json_is() -> None:
    for text in (DEEP, '{"a":' * 100_000 + "1" + "}" * 100_000, "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1)):
        with pytest.raises(ValueError, match="nested deeper than 100 levels"):
            parse_json(text)
    assert parse_json("[" * DEEPEST + "]" * DEEPEST) is not None


def test_pipes_and_large_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for place in (tmp_path / "pipe.json", Path("/dev/zero")):
        with pytest.raises(ValueError, match="no regular file"):
            read_json(place)
    monkeypatch.setattr(json_files, "LARGEST", 10)
    (tmp_path / "large.json").write_text('"23456789"')
    assert read_json(tmp_path / "large.json") == "23456789"
    (tmp_path / "large.json").write_text('"234567890"')
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        read_json(tmp_path / "large.json")


def test_readers_take_deep_json_for_damage(tmp_path: Path) -> None:
    for name in ("config.json", "best/training_state.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(DEEP)
    assert run_flags(tmp_path) is None
    assert exported_step(tmp_path, "best") is None
    with pytest.raises(UserError, match=r"is torn or no JSON .nested deeper than 100 levels"):
        InferenceModel(str(tmp_path / "best")).saved_state()
    with pytest.raises(UserError, match="cannot be read as JSON: nested deeper than 100 levels"):
        read_config(str(tmp_path / "config.json"))
