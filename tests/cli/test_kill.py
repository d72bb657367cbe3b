"""Killed with SIGKILL at random moments, inside writes as well, and resumed: the end is that of the run nobody killed.

The long form is `benchmarks/kill_resume.py`.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.tiny import write_mixture
from tests.faults.harness import assert_same_checkpoints, assert_same_end, events_of, run_flags, run_under_fire, start

pytestmark = pytest.mark.slow

CASES = {
    "t5, adam": {"model": "t5-untied", "optim": "adam", "grad_acc": 1},
    "bart, adafactor, accumulation, two loader processes, no validation rows": {
        "valid_data": None,
        "model": "bart",
        "optim": "adafactor",
        "grad_acc": 4,
        "num_workers": 2,
    },
    "switch layers, adafactor, two processes, noise": {
        "model": "switch-t5",
        "optim": "adafactor",
        "grad_acc": 1,
        "cpu_processes": 2,
        "neftune_alpha": 5,
    },
    "three tasks with class weights, bart, adam, a moving average, accumulation": {
        "class_weights": "balanced",
        "ema_decay": 0.9,
        "model": "bart",
        "optim": "adam",
        "grad_acc": 4,
    },
}
KILLS = 3


def flags_of(folder: Path, letters: Path, name: str, case: dict[str, Any]) -> dict[str, Any]:
    """About 100 rows under the flags of a case."""
    data = {"train_data": f"{letters / 'train.tsv'}:2", "valid_data": letters / "valid.tsv"}
    if "class_weights" in case:
        data = {"train_data": None, "train_task": write_mixture(folder)}
    return run_flags(folder, name, **{**data, **case})


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_ends_the_same(letters: Path, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    events = events_of(flags_of(tmp_path, letters, "whole", case), tmp_path / "events.txt")
    assert events > 50
    flags = flags_of(tmp_path, letters, "killed", case)
    result = run_under_fire(flags, events // 3, random.Random(name), KILLS)
    assert result.kills == KILLS
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
    assert_same_checkpoints(tmp_path / "killed", tmp_path / "whole")
    left = [path.name for path in (tmp_path / "killed").rglob("*") if path.name.endswith((".tmp", ".old"))]
    assert left == []
    again = start({**flags, "resume_checkpoint": "auto"}, {})  # the same command line for ever
    assert again.code == 0
    assert "the run is finished: 2 epochs, optimizer step" in again.out


def test_one_process_that_dies_ends_the_run_in_plain_words(letters: Path, tmp_path: Path) -> None:
    """The other one, which would wait for it, is not left behind; what it is saving is completed, and continued.

    The disk is slow: the save of step 8 is still being written when the other process dies in step 9.
    """
    case = CASES["switch layers, adafactor, two processes, noise"]
    flags = flags_of(tmp_path, letters, "run", case)
    dies = {"FAULT_RANK": "1", "FAULT_ON": "training_step", "FAULT_AT": "9", "FAULT_SIGNAL": "9"}
    done = start(flags, {**dies, "FAULT_SLOW": "0.05"})
    assert done.code == 1
    assert done.out.splitlines()[-1] == (
        "error: process 1 of 2 was ended by SIGKILL (out of memory, perhaps); what was saved is whole, and"
        " -resume_checkpoint last goes on from it"
    )
    assert "Traceback" not in done.out
    assert torch.load(tmp_path / "run" / "saved_checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8
    resumed = start({**flags, "resume_checkpoint": "last"}, {})
    assert resumed.code == 0, resumed.out
    assert "trained to optimizer step 26; " in resumed.out
