"""What only a CUDA device shows of -batch_size 0: the memory that it measures, and that it is whole again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.command import train_ok
from tests.cli.tiny import BART, flag_list, write_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]


def test_a_batch_that_fits_is_found_and_trained(letters: Path, tmp_path: Path) -> None:
    """Under a limit of 1 GiB, which the training that follows keeps to as well."""
    config = write_config(tmp_path / "bart.json", BART, d_model=512, encoder_ffn_dim=8192, decoder_ffn_dim=8192)
    flags = {"train_data": letters / "train.tsv", "config_path": config, "save_path": tmp_path / "run", "gpus": 1}
    printed = train_ok(*flag_list({**flags, "batch_size": 0, "memory_limit": 1, "max_epoch": 1})).out
    found = json.loads((tmp_path / "run" / "config.json").read_text())["batch_size"]
    assert 1 <= found <= 200
    assert f"batch size: {found} rows found" in printed
