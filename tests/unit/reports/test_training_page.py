"""The page of a training: from the files of a run alone, whatever it logged."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reports.charts import MOST_POINTS
from reports.training import RunRecord, run_curves, training_page
from tests.html_pages import Page
from training.run import shown_in_trackers, write_report_page

CONFIG = {
    "init_model": "google/byt5-small",
    "save_path": "runs/<b>",
    "monitor": "accuracy",
    "resolved": {
        "task": {"name": "nsmc"},
        "model_type": "t5",
        "parameters": 1_200_000,
        "trained_parameters": 10,
        "accelerator": "cuda",
        "devices": 8,
        "precision": "bf16-mixed",
        "steps": 100_000,
    },
}


def train(step: int, loss: float) -> dict[str, Any]:
    return {"step": step, "epoch": 0, "phase": "train", "loss": loss, "learning_rate": 1e-3 / (step + 1)}


def valid(step: int, **figures: float) -> dict[str, Any]:
    return {"step": step, "epoch": 0, "phase": "valid", **figures}


def recorded(*entries: dict[str, Any]) -> RunRecord:
    record = RunRecord(CONFIG)
    record.add(entries)
    return record


def test_curves_are_those_of_the_log() -> None:
    record = recorded(
        train(10, 3.0),
        valid(10, val_loss=2.0, accuracy=0.5, exact_match=0.5),
        train(20, 1.0),
        valid(20, val_loss=float("nan"), accuracy=0.75, exact_match=0.75),
    )
    found = {chart.name: [(line.label, line.points) for line in chart.lines] for chart in run_curves(record)}
    assert found == {
        "loss": [("training", ((10.0, 3.0), (20.0, 1.0))), ("validation", ((10.0, 2.0),))],
        "accuracy": [("accuracy", ((10.0, 0.5), (20.0, 0.75)))],  # exact_match is the same
        "learning_rate": [("Learning rate", ((10.0, 1e-3 / 11), (20.0, 1e-3 / 21)))],
    }
    content = training_page(record)
    Page(content)
    assert "<span>best accuracy</span><b>0.7500</b><small>at step 20</small>" in content
    assert "<b>8 x cuda</b><small>precision bf16-mixed</small>" in content
    assert "runs/&lt;b&gt;" in content


def test_figures_of_several_tasks_stand_in_one_chart() -> None:
    figures = {"nli/val_loss": 1.0, "sts/val_loss": 2.0, "nli/accuracy": 0.5, "accuracy": 0.5, "val_loss": 1.5}
    loss, accuracy = run_curves(recorded(valid(1, **figures)))
    assert [line.label for line in loss.lines] == ["training", "validation", "nli/validation", "sts/validation"]
    assert [line.label for line in accuracy.lines] == ["accuracy", "nli"]
    many = run_curves(recorded(valid(1, **{f"task{number}/accuracy": 0.5 for number in range(9)})))
    assert [chart.title for chart in many] == ["accuracy (validation); 5 more in metrics.jsonl"]


def test_long_runs_and_empty_ones_make_small_pages() -> None:
    record = recorded(*(train(step, 1 + 1 / (step + 1)) for step in range(100_000)))
    assert max(len(line.points) for chart in run_curves(record) for line in chart.lines) <= MOST_POINTS
    content = training_page(record)
    Page(content)
    assert len(content) < 60_000
    Page(training_page(RunRecord()))


def test_a_page_that_cannot_be_written_is_said_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report_page(tmp_path)
    told = capsys.readouterr().out
    assert told.startswith(f"{tmp_path / 'report.html'} could not be written: FileNotFoundError: ")
    assert told.count("\n") == 1
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "log.json").write_text("[]")
    (tmp_path / "metrics.jsonl").write_text(json.dumps(train(1, 2.0)) + "\n")
    write_report_page(tmp_path)
    assert "<h1>Report of a training</h1>" in (tmp_path / "report.html").read_text()
    assert capsys.readouterr().out == ""


def test_trackers_get_the_page_and_its_pictures_as_they_are_at_the_end(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "report_images": True}))
    (tmp_path / "log.json").write_text("[]")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(train(step, 2.0)) + "\n" for step in (1, 2)))
    sent: list[tuple[bool, list[str]]] = []

    def close_trackers(succeeded: bool, files: Iterable[Path]) -> None:
        sent.append((succeeded, [path.relative_to(tmp_path).as_posix() for path in files]))

    trackers: Any = SimpleNamespace(close_trackers=close_trackers)
    with pytest.raises(KeyboardInterrupt), shown_in_trackers(trackers, tmp_path):
        assert sent == []
        write_report_page(tmp_path)
        raise KeyboardInterrupt
    pictures = ["report_images/learning_rate.png", "report_images/loss.png"]
    assert sent == [(True, ["report.html", "config.json", "log.json", *pictures])]
