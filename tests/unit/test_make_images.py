"""The figures of the README, drawn from small logs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = [
    {"step": 20, "epoch": 0, "phase": "train", "loss": 3.0, "learning_rate": 1e-3},
    {"step": 25, "epoch": 0, "phase": "train", "loss": 0.02, "learning_rate": 5e-4},
    {"step": 25, "epoch": 0, "phase": "valid", "val_loss": 0.03, "token_accuracy": 0.9, "exact_match": 0.8},
]
FREE_TEXT = {"scored_rows": 3, "metrics": {"exact_match": 1.0, "bleu": 99.5}, "confusion_matrix": None}
LABELS = {
    "scored_rows": 5,
    "invalid_outputs": 1,
    "metrics": {"accuracy": 0.8, "macro_f1": 0.7},
    "confusion_matrix": {
        "labels": ["부정", "good"],
        "columns": ["부정", "good", "(invalid)"],
        "rows": [[2, 0, 0], [0, 2, 1]],
    },
}


def draw(folder: Path, log: list[dict[str, Any]], report: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    script = str(ROOT / "docs" / "make_images.py")
    paths = ["-run", str(folder), "-report", str(folder / "report.json"), "-output", str(folder / "images")]
    return subprocess.run([sys.executable, "-W", "error", script, *paths], capture_output=True, text=True)


@pytest.mark.parametrize("report", [FREE_TEXT, LABELS], ids=["free text", "labels"])
def test_both_figures_are_written_without_a_warning(tmp_path: Path, report: dict[str, Any]) -> None:
    result = draw(tmp_path, STEPS, report)
    assert (result.returncode, result.stderr) == (0, "")
    for name in ("training_curve.png", "report.png"):
        assert (tmp_path / "images" / name).read_bytes().startswith(b"\x89PNG\r\n")


@pytest.fixture
def make_images(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/make_images.py."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("make_images")


def test_the_curves_are_those_of_the_log(make_images: ModuleType) -> None:
    loss, rate, metric = make_images.draw_training(STEPS).axes
    points = [[line.get_xydata().tolist() for line in panel.lines] for panel in (loss, rate, metric)]
    assert points == [[[[20, 3.0], [25, 0.02]], [[25, 0.03]]], [[[20, 1e-3], [25, 5e-4]]], [[[25, 0.8]]]]
    assert (loss.get_yscale(), metric.get_ylabel()) == ("log", "exact match (validation)")


def test_the_report_shows_its_metrics_and_its_matrix(make_images: ModuleType) -> None:
    (metrics,) = make_images.draw_report(FREE_TEXT).axes
    assert [bar.get_width() for bar in metrics.patches] == [1.0, 0.995]
    assert [text.get_text() for text in metrics.texts] == ["1.0000", "99.50"]
    _, matrix = make_images.draw_report(LABELS).axes
    assert [text.get_text() for text in matrix.texts] == ["2", "0", "0", "0", "2", "1"]
    assert [tick.get_text() for tick in matrix.get_xticklabels()] == ["label 1", "good", "(invalid)"]
    assert matrix.get_title() == "after correction; 1 invalid outputs"


def test_a_run_without_validation_is_drawn(tmp_path: Path) -> None:
    assert draw(tmp_path, STEPS[:2], FREE_TEXT).returncode == 0


def test_a_log_without_steps_is_an_error(tmp_path: Path) -> None:
    result = draw(tmp_path, [], FREE_TEXT)
    assert result.returncode == 2
    assert result.stderr == f"error: -run: {tmp_path / 'metrics.jsonl'} holds no training step\n"
    assert not (tmp_path / "images").exists()


def test_a_report_without_metrics_is_an_error(tmp_path: Path) -> None:
    result = draw(tmp_path, STEPS, {"metrics": {}})
    assert result.returncode == 2
    assert "holds no metrics" in result.stderr
