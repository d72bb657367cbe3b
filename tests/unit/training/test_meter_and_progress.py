"""Sums are exact, the first bad step is named, and progress lines show what a person wants."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import pretrain
from models.meter import StepMeter
from tests.cli.tiny import T5, flag_list, write_config
from training.loggers.tensorboard import samples_table
from training.validation import as_counted
from utils.console import duration
from utils.progress import ProgressLine


def batch(rows: int, source: int, target: int, padded: int) -> dict[str, Any]:
    return {
        "num_target_tokens": target,
        "num_source_tokens": source,
        "num_rows": rows,
        "input_ids": torch.zeros(rows, padded),
        "labels": torch.zeros(rows, 2),
    }


def test_labels_of_an_encoder_are_no_tokens_of_their_own() -> None:
    meter = StepMeter(encoder_alone=True)
    ids = torch.zeros(2, 5, dtype=torch.long)
    counts = {"num_target_tokens": 3, "num_source_tokens": 8, "num_rows": 2}
    meter.add_batch({"input_ids": ids, "labels": ids, **counts}, torch.tensor(6.0))
    totals = meter.totals(torch.device("cpu"), 1)
    assert (totals.loss_per_token, totals.tokens, totals.padding_share) == (2.0, 8, pytest.approx(0.2))


def test_totals_are_the_sums_of_the_micro_batches() -> None:
    meter = StepMeter()
    assert not meter.has_batches
    meter.add_batch(batch(2, 7, 3, 5), torch.tensor(6.0), torch.tensor(1))
    meter.add_batch(batch(1, 4, 1, 5), torch.tensor(2.0), torch.tensor(1))
    totals = meter.totals(torch.device("cpu"), 1)
    assert (totals.rows, totals.tokens, totals.target_tokens, totals.correct_tokens) == (3, 15, 4, 2)
    assert totals.loss_per_token == 2.0
    assert totals.token_accuracy == 0.5
    assert totals.padding_share == pytest.approx(1 - 15 / (2 * 7 + 7))
    meter.reset()
    assert not meter.has_batches
    meter.add_batch(batch(1, 4, 2, 5), torch.tensor(3.0))
    totals = meter.totals(torch.device("cpu"), 1)
    assert (totals.rows, totals.tokens, totals.target_tokens, totals.padded_tokens) == (1, 6, 2, 7)
    assert (totals.loss_sum, totals.correct_tokens) == (3.0, 0)


def test_sums_survive_a_checkpoint() -> None:
    meter, resumed = StepMeter(), StepMeter()
    meter.add_batch(batch(2, 7, 3, 5), torch.tensor(0.1))
    resumed.restore(meter.state(), torch.device("cpu"))
    for each in (meter, resumed):
        each.add_batch(batch(1, 4, 1, 5), torch.tensor(0.7))
    one, other = meter.totals(torch.device("cpu"), 1), resumed.totals(torch.device("cpu"), 1)
    assert one.loss_sum == other.loss_sum
    assert (one.tokens, one.rows) == (other.tokens, other.rows)


@pytest.mark.parametrize(("factor", "told"), [(1.0, False), (30.0, True)])
def test_a_first_loss_far_above_equal_odds_is_told(
    tmp_path: Path, factor: float, told: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: signal.SIG_DFL)
    (tmp_path / "texts.txt").write_text("가나다 라마바 사아자\n" * 50, encoding="utf-8")
    flags = {"corpus": tmp_path / "texts.txt", "max_steps": 2, "valid_every": 2, "valid_rows": 0, "log_every": 1}
    flags |= {"config_path": write_config(tmp_path / "t5.json", T5, initializer_factor=factor), "gpus": 0, "seed": 1}
    assert (
        pretrain.main(flag_list({**flags, "max_seq_length": 24, "batch_size": 2, "save_path": tmp_path / "run"})) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    found = [re.sub("[0-9.]+", "N", line, count=1) for line in lines if line.startswith("the first logged loss is ")]
    words = "the initial weights of -config_path are too large, or -learning_rate is too high"
    assert found == [f"the first logged loss is N, where equal odds for every token give 5.951: {words}"] * told


@pytest.mark.parametrize("bad", ["loss", "norm"])
def test_the_first_bad_step_is_named(bad: str) -> None:
    meter = StepMeter()
    assert meter.first_bad_step(torch.device("cpu"), 1) is None
    for step in range(1, 6):
        spoiled = step >= 3
        meter.add_batch(batch(1, 1, 1, 1), torch.tensor(float("nan") if spoiled and bad == "loss" else 1.0))
        meter.gradient_norm = torch.tensor(float("inf") if spoiled and bad == "norm" else 1.0)
        meter.watch(step)
    assert meter.first_bad_step(torch.device("cpu"), 1) == 3


def test_a_progress_line_shows_epoch_phase_counts_times_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLine("[Epoch 0] [TRAIN]", 4387)
    progress.advance_to(520)
    progress.report(loss="2.56", lr="7.8e-06")
    progress.close()
    line = capsys.readouterr().out
    assert line.startswith("[Epoch 0] [TRAIN]:  12%|")
    assert "| 520/4387 [00:00<" in line
    assert line.endswith("it/s, loss=2.56, lr=7.8e-06]\n")
    silent = ProgressLine("[PREDICT]", 10, unit="row", enabled=False)
    silent.advance_to(5)
    silent.report()
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_one_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    progress = ProgressLine("[Epoch 1] [VALID]", 4)
    progress.advance_to(4)
    progress.report(val_loss="1.5")
    progress.close()
    written = capsys.readouterr().out
    assert "[Epoch 1] [VALID]: 100%" in written
    assert "4/4" in written
    assert "val_loss=1.5" in written


def test_figures_of_a_validation_are_whole_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    figures = {f"figure_{number}": "0.1234" for number in range(12)}
    progress = ProgressLine("[Epoch 0] [VALID]", 2)
    progress.advance_to(2)
    progress.conclude(**figures)
    bar, *lines = capsys.readouterr().out.split("\r")[-1].splitlines()
    assert bar.startswith("[Epoch 0] [VALID]: 100%")
    assert "it/s" not in bar
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(lines).split()) == ", ".join(f"{name}=0.1234" for name in figures)


def test_durations_are_hours_minutes_and_seconds() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 3_800)] == ["0:00:00", "0:01:01", "1:03:20"]


def test_sample_tables_keep_their_columns() -> None:
    assert [as_counted("jo", "joy"), as_counted("joy", "joy"), as_counted("?", None)] == ["jo -> joy", "joy", "?"]
    table = samples_table([("a|b", "x\ny", "z")])
    assert table == "| source | reference | prediction |\n| --- | --- | --- |\n| a\\|b | x y | z |"


def test_what_the_routers_of_a_mixture_did_is_kept_in_a_checkpoint() -> None:
    meter, other = StepMeter(), StepMeter()
    assert meter.row_sums(world_size=1) == []
    meter.add_row_sums(torch.tensor([3.0, 1.0, 0.5]))
    other.restore(meter.state(), torch.device("cpu"))
    other.add_row_sums(torch.tensor([1.0, 0.0, 0.25]))
    assert other.row_sums(world_size=1) == [4.0, 1.0, 0.75]
    other.reset()
    assert other.row_sums(world_size=1) == []
