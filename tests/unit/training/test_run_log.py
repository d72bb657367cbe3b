"""The logs of a run that goes on hold each figure once; a disk that takes none is told in words."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from models.meter import Totals
from training.run_log import RunLog
from utils.errors import RunError, UserError


def trainer_at(step: int, validation_pending: bool = False) -> Any:
    datamodule = SimpleNamespace(validation_pending=validation_pending)
    return SimpleNamespace(
        global_step=step, is_global_zero=True, current_epoch=0, world_size=1, datamodule=datamodule, accumulate=1
    )


def logged(folder: Path, step: int, validation_pending: bool = False) -> RunLog:
    """A log that goes on at `step`."""
    log = RunLog(folder, 1, 100)
    log.on_train_start(trainer_at(step, validation_pending), None)  # type: ignore[arg-type]
    return log


def write(log: RunLog, step: int, phase: str, **figures: float) -> None:
    log._write(trainer_at(step), step, phase, figures)


def test_a_resume_that_only_validates_tells_no_speed(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 1, 100)
    assert log.speed() == "no step was left to train"
    log.totals = Totals(tokens=90, padded_tokens=100, seconds=2.0)
    assert log.speed() == "45 tokens/s without padding, padding 10.0%"


@pytest.mark.parametrize("pending", [True, False])
def test_a_validation_that_comes_again_is_logged_once(tmp_path: Path, pending: bool) -> None:
    """Its first try was logged and a kill came before the checkpoint; without one to come, it stays."""
    log = logged(tmp_path, 0)
    for step in (1, 2, 3):
        write(log, step, "train", loss=step / 3, rate=0.5)
    write(log, 2, "valid", val_loss=0.25)
    write(log, 3, "valid", val_loss=0.125)
    (tmp_path / "log.json").write_text(json.dumps([{"epoch": 0, "global_step": 2}, {"epoch": 1, "global_step": 3}]))
    log.teardown(None, None, "fit")  # type: ignore[arg-type]
    log = logged(tmp_path, 3, pending)
    assert [entry["global_step"] for entry in log.epochs] == ([2] if pending else [2, 3])
    log.teardown(None, None, "fit")  # type: ignore[arg-type]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [(1, "train"), (2, "train"), (3, "train"), (2, "valid"), *([] if pending else [(3, "valid")])]
    assert [(line["step"], line["phase"]) for line in lines] == expected
    curves = EventAccumulator(str(tmp_path / "lightning_logs"), size_guidance={SCALARS: 0}).Reload()
    losses = [(entry.step, entry.value) for entry in curves.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(step / 3, rel=1e-6)) for step in (1, 2, 3)]
    assert [entry.step for entry in curves.Scalars("train/rate")] == [1, 2, 3]
    assert [entry.step for entry in curves.Scalars("valid/val_loss")] == ([2] if pending else [2, 3])


@pytest.fixture(autouse=True)
def own_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the log puts there is taken back."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 2,000 bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_that_tensorboard_meets_first_is_told_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its thread keeps the error until the next value or flush, which is before a checkpoint."""
    log = logged(tmp_path, 0)
    with pytest.raises(RunError) as caught:
        for step in range(40):
            log.loggers.scalars(step, "train", {"loss": 1.0})
        log.on_save_checkpoint(trainer_at(40), None, {})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{tmp_path} could not be changed: the disk is full, or a limit of file sizes")
    assert capsys.readouterr().err == ""


def test_sums_of_losses_that_the_model_does_not_have_are_told(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 1, 1)
    log._resumed = {"meters": [[0.0] * 7]}
    trainer: Any = SimpleNamespace(world_size=1, global_rank=0)
    module: Any = SimpleNamespace(num_row_sums=0)
    with pytest.raises(UserError, match=r"or damaged: s2s_log.meters is not of this model's losses$"):
        log._take_up(trainer, module)
