"""Accumulation, two processes and one big batch give the same gradient, in real training processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.small_configs import config_of

SCRIPT = Path(__file__).with_name("gradient_run.py")
ROWS = 40  # two full steps of 16 rows and a short one of 8: an uneven number of target tokens in each micro-batch


def gradients(tmp_path: Path, name: str, config: Path, data: Path, *flags: str) -> list[dict[str, torch.Tensor]]:
    folder = tmp_path / name
    folder.mkdir()
    command = [sys.executable, str(SCRIPT), "-train_data", str(data), "-config_path", str(config), "-gpus", "0"]
    command += ["-save_path", str(folder / "run"), "-max_epoch", "1", "-learning_rate", "1e-9"]
    command += ["-lr_scheduler", "constant", *flags]
    environment = {**os.environ, "GRADIENT_FOLDER": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"step{step}.pt", weights_only=True) for step in range(3)]


@pytest.mark.parametrize("architecture", ["t5-untied", "bart"])
def test_one_big_batch_accumulation_and_two_processes_have_one_gradient(architecture: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(config_of(architecture)))
    data = tmp_path / "data.tsv"
    rows = ("가" * (1 + row % 7) + f"{row}\t" + "x" * (1 + row % 5) for row in range(ROWS))
    data.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    big = gradients(tmp_path, "big", config, data, "-batch_size", "16")
    accumulated = gradients(tmp_path, "accumulated", config, data, "-batch_size", "4", "-grad_acc", "4")
    both = gradients(tmp_path, "both", config, data, "-batch_size", "4", "-grad_acc", "2", "-cpu_processes", "2")
    for other in (accumulated, both):
        for expected, found in zip(big, other, strict=True):
            assert expected.keys() == found.keys()
            whole = torch.cat([value.flatten() for value in expected.values()]).double()
            difference = torch.cat([found[name].flatten() for name in expected]).double() - whole
            assert (difference.norm() / whole.norm()).item() < 1e-6
