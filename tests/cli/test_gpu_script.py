"""`benchmarks/gpu.sh` without a GPU: a step on the counting device, one that takes too long, packages that lack."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import Running, install_command, main, missing_packages
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


def test_wrong_words_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    for words, told in (
        (
            ["-out", str(tmp_path / "out")],
            "-device cuda: PyTorch sees no GPU here; -device fake shows that the steps work",
        ),
        (["-minutes", "0"], "-minutes 0: more than 0 expected"),
        (["-factor", "nan"], "-factor nan: more than 0 expected"),
        (["-out", str(file)], f"-out {file}: File exists"),
    ):
        monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert capsys.readouterr().err.endswith(f"error: {told}\n")


def test_a_stop_ends_the_steps_and_keeps_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = []

    def stopped(running: Running) -> list[Any]:
        started.append(running.process)
        raise KeyboardInterrupt

    monkeypatch.setattr(Running, "lines", stopped)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "-device", "fake", "-steps", "card", "-out", str(tmp_path)])
    assert main() == 1
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    assert "FAILED (stopped)" in (tmp_path / "table.txt").read_text(encoding="utf-8")


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
