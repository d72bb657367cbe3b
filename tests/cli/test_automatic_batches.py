"""`train.py -batch_size 0` as a command: found, trained, and resumed as found."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.command import train_ok
from tests.cli.tiny import BART, flag_list, write_config


def test_found_resumed_and_equal_to_the_number_given(letters: Path, tmp_path: Path) -> None:
    """All rows fit; the resumed run has room for none, and does not search. The search changes no weight."""
    config = write_config(tmp_path / "bart.json", BART, dropout=0.2)
    flags = {"train_data": letters / "train.tsv", "config_path": config, "max_epoch": 2, "grad_acc": 2, "gpus": 0}
    automatic = flags | {"save_path": tmp_path / "found", "batch_size": 0}
    stopped = train_ok(*flag_list(automatic | {"memory_limit": 64, "max_steps": 1}))
    assert "batch size: 100 rows found, an optimizer step takes all rows then; 8 batches tried\n" in stopped.out
    resumed = train_ok(*flag_list(automatic | {"memory_limit": 0.01, "max_steps": 0, "resume_checkpoint": "last"}))
    assert "rows found" not in resumed.out
    assert json.loads((tmp_path / "found" / "config.json").read_text())["batch_size"] == 100
    train_ok(*flag_list(flags | {"save_path": tmp_path / "given", "batch_size": 100}))
    found, given = (tmp_path / name / "last" / "model.safetensors" for name in ("found", "given"))
    assert found.read_bytes() == given.read_bytes()
