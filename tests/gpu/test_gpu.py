"""What only a CUDA device shows: training, resuming and predicting on it, in fp32, bf16 and fp16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.command import infer_ok, train_ok
from tests.small_configs import with_dropout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]


def write_copy_task(path: Path, rows: int) -> str:
    letters = "abcd"
    path.write_text("".join(f"{letters[row % 4] * (1 + row % 9)}{row}\t{letters[row % 4]}\n" for row in range(rows)))
    return str(path)


@pytest.mark.parametrize(("architecture", "precision"), [("t5-untied", "32"), ("t5-untied", "bf16"), ("bart", "fp16")])
def test_a_gpu_learns_and_predicts(architecture: str, precision: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(with_dropout(architecture)))
    data = write_copy_task(tmp_path / "data.tsv", 512)
    run = tmp_path / "run"
    train_ok(
        "-train_data", data, "-valid_data", f"{data}:4", "-config_path", config, "-save_path", run, "-gpus", "1",
        "-float_precision", precision, "-max_epoch", "12", "-batch_size", "32", "-learning_rate", "3e-3",
    )  # fmt: skip
    epochs = json.loads((run / "log.json").read_text())
    assert epochs[-1]["exact_match"] > 0.95
    report = tmp_path / "report.json"
    infer_ok("-model", run / "best", "-test_data", data, "-gpus", "1", "-save_report", report, "-beam_size", "2")
    assert json.loads(report.read_text())["metrics"]["exact_match"] > 0.95


def test_resume_on_a_gpu_is_bit_identical(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(with_dropout("bart")))
    data = write_copy_task(tmp_path / "data.tsv", 256)
    flags = ["-train_data", data, "-config_path", str(config), "-gpus", "1", "-max_epoch", "2", "-batch_size", "32"]
    flags.append("-deterministic")
    train_ok(*flags, "-save_path", tmp_path / "whole", "-save_every", "5")
    middle = tmp_path / "whole" / "saved_checkpoints" / "epoch00-global_step5.ckpt"
    if not middle.exists():
        middle = next((tmp_path / "whole" / "saved_checkpoints").glob("*global_step10.ckpt"))
    train_ok(*flags, "-save_path", tmp_path / "resumed", "-resume_checkpoint", middle)
    whole, resumed = (
        torch.load(tmp_path / name / "saved_checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
