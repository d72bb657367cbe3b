"""Runs with other optimizers and schedules, stopped and resumed: they end bit for bit as those that were not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.command import train_ok
from tests.cli.tiny import BART, T5, flag_list, json_lines, write_config
from tests.cli.whole import flags_of
from tests.faults.harness import assert_same_end

CASES: dict[str, dict[str, Any]] = {
    "muon, plateau": {
        "optim": "muon",
        "lr_scheduler": "plateau",
        "plateau_patience": 1,
        "monitor": "token_accuracy",
        "layerwise_lr_decay": 0.9,
        "embedding_learning_rate": 1e-3,
        "learning_rate": 0.05,
    },
    "schedulefree": {"optim": "schedulefree", "warmup_steps": 3, "valid_generate_rows": 0},
    "lion, wsd, moving average, noise": {
        "optim": "lion",
        "lr_scheduler": "wsd",
        "scheduler_steps": 10,
        "weight_decay": 0.1,
        "ema_decay": 0.7,
        "neftune_alpha": 5,
        "dropout": 0.3,
    },
}


def begin(folder: Path, letters: Path, **flags: Any) -> dict[str, Any]:
    """The flags of a run with dropout, done to its end."""
    write_config(folder / "bart.json", BART, dropout=0.2)
    whole = flags_of(folder, letters, **flags)
    train_ok(*flag_list(whole))
    return whole


def resume(folder: Path, whole: dict[str, Any], pattern: str) -> None:
    """The run in `folder`/again from a checkpoint of the whole one, in a copy of its folder as it was then."""
    again = shutil.copytree(folder / "run", folder / "again")
    checkpoint = next((again / "saved_checkpoints").glob(pattern))
    for path in (again / "saved_checkpoints").iterdir():
        if path != checkpoint:
            path.unlink()
    shutil.rmtree(again / "last")
    train_ok(*flag_list({**whole, "save_path": again, "resume_checkpoint": checkpoint}))


@pytest.mark.parametrize("name", CASES)
def test_resumed_run_ends_the_same(letters: Path, tmp_path: Path, name: str) -> None:
    """A checkpoint has the mean of the weights as its weights, so that it predicts as last/ does, and the others."""
    whole = begin(tmp_path, letters, **CASES[name])
    resume(tmp_path, whole, "epoch00-global_step6*")
    assert_same_end(tmp_path / "again", tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "saved_checkpoints" / "last.ckpt", weights_only=True)
    exported = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert all(torch.equal(saved["state_dict"][f"model.{name}"], value) for name, value in exported.items())
    trained = saved.get("s2s_trained_weights", saved["state_dict"])["model.model.shared.weight"]
    assert torch.equal(trained, exported["model.shared.weight"]) == (name == "muon, plateau")
    config = json.loads((tmp_path / "run" / "last" / "config.json").read_text())
    assert config["dropout"] == CASES[name].get("dropout", 0.2)


def test_plateau_lowers_the_rate_from_the_next_step_on(letters: Path, tmp_path: Path) -> None:
    """The figure is the monitored one; with a rate that destroys the weights no later validation is better."""
    flags = {"lr_scheduler": "plateau", "plateau_patience": 2, "plateau_factor": 0.1, "learning_rate": 10.0}
    begin(tmp_path, letters, **flags, log_every=1, grad_clip=0)
    lines = json_lines(tmp_path / "run" / "metrics.jsonl")
    rates = {line["step"]: line["learning_rate"] for line in lines if line["phase"] == "train"}
    losses = [(line["step"], line["val_loss"]) for line in lines if line["phase"] == "valid"]
    expected, best, waited = {}, float("inf"), 0
    rate = 10.0
    for step in range(1, 15):
        expected[step] = rate
        for loss in (loss for at, loss in losses if at == step):
            waited = 0 if loss < best else waited + 1
            best = min(best, loss)
            rate, waited = (rate * 0.1, 0) if waited == 2 else (rate, waited)
    assert rates == pytest.approx(expected)
    assert rates[14] < 10.0


def test_a_schedule_of_its_own_length(letters: Path, tmp_path: Path) -> None:
    """-scheduler_steps -1 is -max_steps; a run resumed with another -max_steps would have another schedule."""
    write_config(tmp_path / "bart.json", T5)
    whole = flags_of(tmp_path, letters, lr_scheduler="polynomial", scheduler_steps=-1, max_steps=4, log_every=1)
    result = train_ok(*flag_list({**whole, "learning_rate": 1e-3, "min_learning_rate": 2e-4, "valid_data": None}))
    assert "polynomial over 4 steps, warm-up of 0 steps" in result.out
    rates = [line["learning_rate"] for line in json_lines(tmp_path / "run" / "metrics.jsonl")]
    assert rates == pytest.approx([1e-3, 8e-4, 6e-4, 4e-4])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["resolved"]["steps"] == 14
