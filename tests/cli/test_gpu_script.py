"""`benchmarks/gpu.sh` without a GPU: a step on the counting device, one that takes too long, packages that lack."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import install_command, missing_packages
from tests.cli.command import ROOT, run


def test_a_step_on_the_counting_device(tmp_path: Path) -> None:
    done = run("bash", "benchmarks/gpu.sh", "-device", "fake", "-steps", "card", "-out", tmp_path)
    assert done.code == 0, done.out + done.err
    found = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert [(line["step"], line["what"]) for line in found][3:-1] == [
        ("card", "torch, transformers"),
        ("card", "card"),
        ("card", "matrix products, fp32, 2048 cubed, of the CPU"),
        ("card", "step"),
    ]
    assert found[-2]["value"].startswith("ran, ")
    assert (tmp_path / "table.txt").read_text(encoding="utf-8") in done.out


def test_a_step_that_takes_too_long_ends_and_the_next_one_begins(tmp_path: Path) -> None:
    words = ("-device", "fake", "-steps", "loss,memory", "-factor", "0.001", "-out", tmp_path)
    done = run("bash", "benchmarks/gpu.sh", *words)
    assert done.code == 1
    lines = [line.split(maxsplit=2) for line in done.out.splitlines() if "FAILED" in line]
    assert lines == [
        ["loss", "step", "FAILED (ended after 0 s), 0 s"],
        ["memory", "step", "FAILED (ended after 0 s), 0 s"],
    ]


def test_missing_packages_are_named_with_their_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    lacking = ("rouge_score", "sklearn")

    def find_spec(name: str, *rest: Any) -> Any:
        return None if name in lacking else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert missing_packages() == ["rouge-score", "scikit-learn"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line.startswith(("rouge", "scikit"))]
    assert install_command(missing_packages()) == "pip install " + " ".join(pins)
