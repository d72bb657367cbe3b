"""Two processes on the CPU under DeepSpeed: the run of DDP, saved as folders that need no DeepSpeed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.saved_run import SavedRun, read_run
from tests.cli.command import infer_ok, run, train_ok
from tests.cli.tiny import flag_list, json_lines
from tests.distributed.test_ddp import flags_of, two_processes  # noqa: F401 (a fixture)
from tests.faults.harness import TERMINATED, start

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")

STRATEGIES = ("deepspeed_1", "deepspeed_2", "deepspeed_2_optim_offload", "deepspeed_3", "deepspeed_3_full")


def last_run(folder: Path) -> SavedRun:
    return read_run(folder / "saved_checkpoints" / "last.ckpt")


def tensors_of(saved: SavedRun) -> dict[str, torch.Tensor]:
    """Weights and optimizer state by name."""
    found = dict(saved.model.tensors.weights.items())
    assert saved.model.tensors.optimizer is not None
    for number, state in saved.model.tensors.optimizer["state"].items():
        found |= {f"{number} {name}": value for name, value in state.items()}
    return found


def difference(mine: SavedRun, other: SavedRun) -> float:
    """The largest difference of any number of weights and optimizer state."""
    first, second = tensors_of(mine), tensors_of(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_trains_as_ddp_does_and_resumes_with_the_same_bits(
    strategy: str,
    two_processes: Path,  # noqa: F811
    letters: Path,
    tmp_path: Path,
) -> None:
    def flags(name: str, **changes: Any) -> list[str]:
        changed = {"save_path": tmp_path / name, "strategy": strategy, **changes}
        return flag_list(flags_of(two_processes, letters, "two", **changed))

    train_ok(*flags("whole"))
    assert (tmp_path / "whole" / "saved_checkpoints" / "last.ckpt").is_dir()
    reference = two_processes / "two"
    assert difference(last_run(tmp_path / "whole"), last_run(reference)) < 1e-5
    logs = [json_lines(folder / "metrics.jsonl") for folder in (tmp_path / "whole", reference)]
    for line, expected in zip(*logs, strict=True):
        for figure in ("loss", "gradient_norm", "val_loss"):
            if figure in expected:
                assert line[figure] == pytest.approx(expected[figure], rel=1e-5), (figure, line["step"])
        for figure in ("exact_match", "chrf", "token_accuracy"):
            assert line.get(figure) == expected.get(figure)
    train_ok(*flags("killed", max_steps=7))
    train_ok(*flags("killed", max_steps=0, resume_checkpoint="last"))
    assert difference(last_run(tmp_path / "killed"), last_run(tmp_path / "whole")) == 0.0


def test_accumulates_the_gradient_of_one_big_batch(
    two_processes: Path,  # noqa: F811
    letters: Path,
    tmp_path: Path,
) -> None:
    """5 rows on two processes, and 2 or 3 in each of two micro-batches: the last one of an epoch is alone."""
    train_ok(*flag_list(flags_of(two_processes, letters, "two", save_path=tmp_path / "ddp", batch_size=2, grad_acc=3)))
    for strategy in ("deepspeed_1", "deepspeed_2", "deepspeed_2_optim_offload", "deepspeed_3"):
        changes = {"save_path": tmp_path / strategy, "strategy": strategy, "batch_size": 2, "grad_acc": 3}
        train_ok(*flag_list(flags_of(two_processes, letters, "two", **changes)))
        assert difference(last_run(tmp_path / strategy), last_run(tmp_path / "ddp")) < 1e-5, strategy


def test_goes_on_under_ddp_and_is_predicted_with_and_exported(
    two_processes: Path,  # noqa: F811
    letters: Path,
    tmp_path: Path,
) -> None:
    flags = flags_of(two_processes, letters, "two", save_path=tmp_path / "run", strategy="deepspeed_3")
    train_ok(*flag_list(flags))
    folder = tmp_path / "run" / "saved_checkpoints" / "last.ckpt"
    for name, model in (("folder", folder), ("best", tmp_path / "run" / "best")):
        infer_ok("-model", model, "-test_data", letters / "valid.tsv", "-gpus", 0, "-save_output", tmp_path / name)
    assert (tmp_path / "folder").read_bytes() == (tmp_path / "best").read_bytes()
    exported = run("python", "export.py", "-model", folder, "-save_path", tmp_path / "exported")
    assert (exported.code, exported.errors) == (0, [])
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    step = [float(value) for name, value in tensors_of(last_run(tmp_path / "run")).items() if name.endswith("step")]
    assert set(step) == {20.0}
    changes: dict[str, Any] = {"strategy": "ddp", "max_epoch": 3, "resume_checkpoint": "last"}
    train_ok(*flag_list({**flags, **changes}))
    assert tensors_of(last_run(tmp_path / "run"))["0 step"] == 30


def test_a_stop_in_a_validation_is_saved(two_processes: Path, letters: Path, tmp_path: Path) -> None:  # noqa: F811
    changes: dict[str, Any] = {"save_path": tmp_path / "run", "strategy": "deepspeed_3", "batch_size": 2}
    flags = flags_of(two_processes, letters, "two", **changes)
    done = start(flags, {"FAULT_ON": "validation_step", "FAULT_AT": "2", "FAULT_SIGNAL": "15"})
    assert done.code == TERMINATED, done.out
    assert last_run(tmp_path / "run").position.validation_pending
