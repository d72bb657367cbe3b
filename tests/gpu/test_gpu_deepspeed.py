"""DeepSpeed on one GPU: trained, saved as a folder, resumed and predicted with."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from checkpoints.saved_run import read_run
from config.flags.run import DEEPSPEED_STRATEGIES
from tests.cli.command import infer_ok, train_ok
from tests.cli.tiny import json_lines, letter_rows, write_config, write_tsv
from tests.small_configs import with_dropout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("strategy", DEEPSPEED_STRATEGIES)
def test_trained_as_ddp_does_resumed_and_predicted_with(strategy: str, precision: str, tmp_path: Path) -> None:
    data = write_tsv(tmp_path / "data.tsv", letter_rows(96, 1))
    flags = ["-train_data", data, "-valid_data", f"{data}:4", "-gpus", 1, "-deterministic"]
    flags += ["-config_path", write_config(tmp_path / "model.json", with_dropout("t5-untied"))]
    flags += ["-batch_size", 8, "-max_epoch", 2, "-learning_rate", 3e-3, "-log_every", 1, "-float_precision", precision]
    train_ok(*flags, "-save_path", tmp_path / "ddp", "-strategy", "ddp")
    flags += ["-strategy", strategy]
    train_ok(*flags, "-save_path", tmp_path / "whole")
    train_ok(*flags, "-save_path", tmp_path / "run", "-max_steps", 7)
    train_ok(*flags, "-save_path", tmp_path / "run", "-resume_checkpoint", "last", "-max_steps", 0)
    losses = {
        name: [line["loss"] for line in json_lines(tmp_path / name / "metrics.jsonl") if line["phase"] == "train"]
        for name in ("ddp", "run")
    }
    assert losses["run"] == pytest.approx(losses["ddp"], rel=1e-2)
    last = [tmp_path / name / "saved_checkpoints" / "last.ckpt" for name in ("run", "whole")]
    assert all(path.is_dir() for path in last)
    mine, whole = (read_run(path).model.tensors.weights for path in last)
    assert all(torch.equal(mine[name], whole[name]) for name in whole)
    infer_ok("-model", last[0], "-test_data", data, "-gpus", 1, "-save_output", tmp_path / "predictions.txt")
    assert len((tmp_path / "predictions.txt").read_text(encoding="utf-8").splitlines()) == 96
