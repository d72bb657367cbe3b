"""Environments in which no command can work are refused in a line, before anything is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.launch import check_environment

ROOT = Path(__file__).resolve().parents[3]


def test_numbers_of_processes_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    check_environment()
    for name, value in (("RANK", "x"), ("LOCAL_RANK", "0"), ("SLURM_PROCID", "-1"), ("NODE_RANK", "")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        check_environment()
    assert refused.value.problems == tuple(
        f"{told} in the environment: a whole number expected, as torchrun and srun set it; unset it"
        for told in ("RANK=x", "NODE_RANK=", "SLURM_PROCID=-1")
    )


def test_numbers_of_processes_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a process waits minutes for others that never come."""
    names = {"RANK": "5", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "SLURM_STEP_NUM_NODES": "0"}
    names["MASTER_PORT"] = "99999"
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        check_environment()
    assert refused.value.problems == (
        "SLURM_STEP_NUM_NODES=0 in the environment: at least 1 expected",
        "MASTER_PORT=99999 in the environment: a port is 1 to 65535",
        "RANK=5 and WORLD_SIZE=2 in the environment: a rank is below its number of processes",
    )


def test_a_python_without_docstrings_is_refused_and_a_safe_path_is_not() -> None:
    def answer(*options: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, *options, str(ROOT / "export.py"), "-version"], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    assert answer("-OO") == (
        2,
        "error: PYTHONOPTIMIZE=2 or -OO takes away the docstrings that transformers reads; leave it out\n",
    )
    assert answer("-P")[0] == 0
