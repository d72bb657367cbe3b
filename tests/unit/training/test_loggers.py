"""Trackers show each figure once, go on with their own run, and whatever befalls them leaves the run alone.

The tests of wandb, mlflow and trackio run where the package is installed.
"""

from __future__ import annotations

import csv
import json
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pretrain
import train
from config.flags.train import TrainConfig
from config.parser import parse_flags
from tests.cli.tiny import BART, T5, flag_list, write_config
from training.checks import check_train
from training.loggers import registry, tracker
from training.loggers.base import Start
from training.loggers.registry import Loggers
from training.run_log import RunLog

SETTINGS = {"batch_size": 8, "freeze": ("encoder", "decoder"), "learning_rate": None}
SAMPLES = [("가나", "가", "나")]


class Recorder:
    """A tracker that keeps its calls, those of all processes of a run, and does what `on` says before a call."""

    calls: list[tuple[Any, ...]]
    on: Mapping[str, Any]

    def _call(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments))
        if name in self.on:
            self.on[name]()

    def start(self, start: Start) -> str:
        self._call("start", start.run_id, dict(start.settings))
        return start.run_id or "id-1"

    def scalars(self, step: int, phase: str, figures: Mapping[str, float]) -> None:
        self._call("scalars", step, phase, dict(figures))

    def samples(self, step: int, name: str, samples: Any) -> None:
        self._call("samples", step, name, samples)

    def file(self, path: Path) -> None:
        self._call("file", path.name)

    def close(self, succeeded: bool) -> None:
        self._call("close", succeeded)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """Registered as `recorder`."""
    monkeypatch.setattr(Recorder, "calls", [], raising=False)
    monkeypatch.setattr(Recorder, "on", {}, raising=False)
    monkeypatch.setitem(registry.TRACKERS, "recorder", Recorder)
    return Recorder


def log_of(folder: Path, step: int, *names: str, pending: bool = False) -> RunLog:
    """The log of a process that begins, or goes on, after optimizer step `step`."""
    log = RunLog(folder, 1, 100, loggers=Loggers(names, folder, SETTINGS))
    datamodule = SimpleNamespace(validation_pending=pending)
    log.on_train_start(SimpleNamespace(global_step=step, is_global_zero=True, datamodule=datamodule), None)  # type: ignore[arg-type]
    return log


def write(log: RunLog, step: int, phase: str, **figures: float) -> None:
    log._write(SimpleNamespace(is_global_zero=True, current_epoch=0), step, phase, figures)  # type: ignore[arg-type]


def end(log: RunLog, succeeded: bool = True, files: tuple[Path, ...] = ()) -> None:
    log.teardown(None, None, "fit")  # type: ignore[arg-type]
    log.loggers.close_trackers(succeeded, files)


def test_a_tracker_is_given_a_run_and_goes_on_with_it(tmp_path: Path, recorder: type[Recorder]) -> None:
    log = log_of(tmp_path, 0, "recorder")
    for step in (1, 2, 3):
        write(log, step, "train", loss=1 / step)
    write(log, 2, "valid", val_loss=0.25)
    log.loggers.samples(2, "samples", SAMPLES)
    end(log, succeeded=False)  # a kill: the checkpoint is of step 2, before its validation
    assert recorder.calls == [
        ("start", "", SETTINGS),
        ("scalars", 1, "train", {"loss": 1.0}),
        ("scalars", 2, "train", {"loss": 0.5}),
        ("scalars", 3, "train", {"loss": 1 / 3}),
        ("scalars", 2, "valid", {"val_loss": 0.25}),
        ("samples", 2, "samples", SAMPLES),
        ("close", False),
    ]
    recorder.calls.clear()
    log = log_of(tmp_path, 2, "recorder", pending=True)
    write(log, 2, "valid", val_loss=0.25)
    log.loggers.samples(2, "samples", SAMPLES)
    write(log, 3, "train", loss=1 / 3)
    end(log, succeeded=False)  # again before a checkpoint
    log = log_of(tmp_path, 2, "recorder", pending=True)
    write(log, 2, "valid", val_loss=0.25)
    write(log, 3, "train", loss=1 / 3)
    write(log, 4, "train", loss=0.25)
    (tmp_path / "report.html").write_text("")
    end(log, True, (tmp_path / "report.html", tmp_path / "missing.json"))
    assert recorder.calls == [
        ("start", "id-1", SETTINGS),
        ("close", False),
        ("start", "id-1", SETTINGS),
        ("scalars", 4, "train", {"loss": 0.25}),
        ("file", "report.html"),
        ("close", True),
    ]


def test_a_tracker_that_is_named_at_a_resume_gets_the_course_before(tmp_path: Path, recorder: type[Recorder]) -> None:
    log = log_of(tmp_path, 0)
    write(log, 1, "train", loss=1.0)
    write(log, 2, "train", loss=0.5)
    log = log_of(tmp_path, 1, "recorder")
    write(log, 2, "train", loss=0.5)
    end(log)
    assert recorder.calls[1:3] == [("scalars", 1, "train", {"loss": 1.0}), ("scalars", 2, "train", {"loss": 0.5})]
    (tmp_path / "trackers" / "runs.json").write_text('{"recorder": 7}')
    end(log_of(tmp_path, 1, "recorder"))
    assert ("start", "", SETTINGS) in recorder.calls[4:], "a torn file begins a new run"


def test_the_report_of_a_tracker_has_the_scores_of_the_test_rows(
    tmp_path: Path, letters: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when they are scored by a later process than the one that trained."""
    monkeypatch.setitem(registry.TRACKERS, "csv", Recorder)
    monkeypatch.setattr(signal, "signal", lambda *_: signal.SIG_DFL)
    run = tmp_path / "run"
    shown: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        Recorder, "file", lambda _, path: shown.append((path.name, (run / "test_report.json").exists()))
    )
    flags = {"train_data": letters / "valid.tsv", "test_data": letters / "test.tsv", "gpus": 0, "max_epoch": 1}
    flags |= {"config_path": write_config(tmp_path / "bart.json", BART), "save_path": run, "logger": "csv"}
    assert train.main(flag_list(flags)) == 0
    assert recorder.calls[-1] == ("close", True)
    complete = [("report.html", True), ("config.json", True), ("log.json", True)]
    assert shown == complete
    (run / "test_report.json").unlink()
    recorder.calls.clear()
    assert train.main([*flag_list(flags), "-resume_checkpoint", "last"]) == 0
    assert [call[:2] for call in recorder.calls] == [("start", "id-1"), ("close", True)]
    assert shown == complete * 2
    recorder.calls.clear()
    assert train.main([*flag_list(flags), "-resume_checkpoint", "last"]) == 0
    assert recorder.calls == []
    runs = run / "trackers" / "runs.json"
    runs.write_text(runs.read_text().replace("true", "false"))  # as if killed before the tracker had ended
    assert train.main([*flag_list(flags), "-resume_checkpoint", "last"]) == 0
    assert [call[:2] for call in recorder.calls] == [("start", "id-1"), ("close", True)]
    assert shown == complete * 3


def test_the_trackers_of_a_pretraining_get_its_files_and_end(
    tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.TRACKERS, "csv", Recorder)
    monkeypatch.setattr(signal, "signal", lambda *_: signal.SIG_DFL)
    (tmp_path / "texts.txt").write_text("가나다 라마바 사아자\n" * 50, encoding="utf-8")
    flags = {"corpus": tmp_path / "texts.txt", "max_steps": 1, "valid_every": 1, "valid_rows": 2, "batch_size": 2}
    flags |= {"config_path": write_config(tmp_path / "t5.json", T5), "max_seq_length": 24, "gpus": 0}
    assert pretrain.main(flag_list({**flags, "save_path": tmp_path / "run", "logger": "csv"})) == 0
    files = [("file", name) for name in ("report.html", "config.json", "log.json")]
    assert recorder.calls[-4:] == [*files, ("close", True)]


def test_the_table_is_cut_where_the_run_goes_on(tmp_path: Path) -> None:
    log = log_of(tmp_path, 0, "csv")
    write(log, 1, "train", loss=1.0, rate=0.5)
    write(log, 1, "valid", val_loss=2.0, **{"가/val_loss": 3.0})
    write(log, 2, "train", loss=0.5, rate=0.25)
    end(log)
    log = log_of(tmp_path, 1, "csv")
    write(log, 2, "train", loss=0.5, rate=0.125)
    end(log)
    with open(tmp_path / "trackers" / "metrics.csv", encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["step", "phase", "loss", "rate", "가/loss"],
            ["1", "train", "1.0", "0.5", ""],
            ["1", "valid", "2.0", "", "3.0"],
            ["2", "train", "0.5", "0.125", ""],
        ]


def fail() -> None:
    raise RuntimeError("no login:\nrun `login`")


def leave() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("method", "deed", "told"),
    [
        ("start", fail, "RuntimeError: no login: run `login`"),
        ("scalars", leave, "SystemExit: 3"),
        ("samples", fail, "RuntimeError: no login: run `login`"),
        ("close", fail, "RuntimeError: no login: run `login`"),
        ("start", threading.Event().wait, "no answer in 0.2 seconds"),
        ("scalars", threading.Event().wait, "no answer in 0.2 seconds"),
    ],
)
def test_a_tracker_that_fails_is_left_out_and_said_once(
    method: str,
    deed: Any,
    told: str,
    tmp_path: Path,
    recorder: type[Recorder],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(recorder, "on", {method: deed})
    monkeypatch.setattr(tracker, "SECONDS", 0.2)
    log = log_of(tmp_path, 0, "recorder", "csv")
    for step in (1, 2, 3):
        write(log, step, "train", loss=1.0)
        log.loggers.samples(step, "samples", SAMPLES)
    end(log)
    assert capsys.readouterr().out == f"-logger recorder: {told}; the run goes on without it\n"
    assert len((tmp_path / "trackers" / "metrics.csv").read_text().splitlines()) == 4
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_tracker_that_answers_nothing_fills_no_memory(
    tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recorder, "on", {"scalars": threading.Event().wait})
    monkeypatch.setattr(tracker, "MOST_WAITING", 5)
    began = time.monotonic()
    log = log_of(tmp_path, 0, "recorder")
    for step in range(20):
        write(log, step, "train", loss=1.0)
    end(log)
    assert time.monotonic() - began < 5, "nobody waits for it at the end"
    assert capsys.readouterr().out == "-logger recorder: 5 calls without an answer; the run goes on without it\n"


def test_wrong_names_and_missing_packages_are_told_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.libraries._is_there", lambda package: package == "wandb")
    config, given, problems = parse_flags(TrainConfig, ["-logger", "tensorbord, mlflow,wandb,csv,trackio,trackio"])
    check_train(config, given, problems)
    assert [problem for problem in problems if problem.startswith("-logger")] == [
        "-logger tensorbord: one of tensorboard, wandb, mlflow, trackio, csv expected (did you mean tensorboard?)",
        "-logger mlflow needs the package mlflow, which is missing; install it: pip install mlflow-skinny==3.17.2",
        "-logger trackio needs the package trackio, which is missing; install it: pip install trackio==0.43.0",
    ]


# ---- the real ones, without a network


def trained(folder: Path, name: str, step: int, *steps: int) -> dict[str, Any]:
    """Log `steps` after the optimizer step `step`; returns what is kept of the tracker's run."""
    log = log_of(folder, step, name)
    for at in steps:
        write(log, at, "train", loss=1 / at)
    write(log, steps[-1], "valid", val_loss=0.5, **{"감성/val_loss": 0.5})
    log.loggers.samples(steps[-1], "samples", SAMPLES)
    (folder / "report.html").write_text("<p>")
    end(log, True, (folder / "report.html",))
    return json.loads((folder / "trackers" / "runs.json").read_text())[name]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login, and no address of a service."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("offline")
def test_mlflow_keeps_one_run_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mlflow = pytest.importorskip("mlflow")
    before = trained(tmp_path, "mlflow", 0, 1, 2)["id"]
    assert trained(tmp_path, "mlflow", 1, 2, 3)["id"] == before
    client = mlflow.MlflowClient((tmp_path / "trackers" / "mlruns").as_uri())
    run = client.get_run(before)
    history = {name: client.get_metric_history(before, name) for name in ("loss/train", "loss/valid")}
    assert client.get_metric_history(before, "uac10uc131/loss/valid")[0].value == 0.5
    assert [(entry.step, entry.value) for entry in history["loss/train"]] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert [entry.step for entry in history["loss/valid"]] == [2, 3]
    assert (run.info.status, run.info.run_name, run.data.params["batch_size"]) == ("FINISHED", tmp_path.name, "8")
    assert [file.path for file in client.list_artifacts(before, "samples")] == [
        "samples/step2.json",
        "samples/step3.json",
    ]
    assert "report.html" in [file.path for file in client.list_artifacts(before)]
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("offline")
def test_wandb_goes_on_by_its_id_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb")
    before = trained(tmp_path, "wandb", 0, 1, 2)["id"]
    assert trained(tmp_path, "wandb", 1, 2, 3)["id"] == before
    folders = list((tmp_path / "trackers" / "wandb").glob(f"offline-run-*-{before}"))
    assert sum(len(list(path.glob("files/media/table/samples_*.json"))) for path in folders) == 2
    assert all((path / f"run-{before}.wandb").stat().st_size for path in folders)
    told = f"-logger wandb: no login, so the run stays in {tmp_path}/trackers/wandb; wandb sync uploads it\n"
    assert capsys.readouterr().out == told * 2


@pytest.mark.usefixtures("offline")
def test_trackio_goes_on_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when the package is imported
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    folder = tmp_path / "감성 1"  # letters that the name of a file may not have there
    folder.mkdir()
    before = trained(folder, "trackio", 0, 1, 2)["id"]
    assert trained(folder, "trackio", 1, 2, 3)["id"] == before
    logs = SQLiteStorage.get_logs("seq2seq", before)
    losses = [(entry["step"], entry["loss/train"]) for entry in logs if "loss/train" in entry]
    assert losses == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert [entry["step"] for entry in logs if "samples" in entry] == [2, 3]
    assert "-logger" not in capsys.readouterr().out
