"""A run that was stopped and resumed ends bit for bit as the one that was not."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.command import listing, run, train, train_ok, train_until
from tests.cli.tiny import BART, flag_list, json_lines, write_config

KEPT_STEPS = {2, 4, 6, 7, 8, 10, 12, 13, 14}  # every second one, the five best validations, ends of epochs
CLOCK = ("tokens_per_second", "rows_per_second", "seconds")  # figures that time decides


def flags_of(folder: Path, letters: Path, **changes: Any) -> dict[str, Any]:
    """100 rows in batches of 8, 2 to an optimizer step: 7 steps an epoch, the last one short; dropout on."""
    flags = {
        "train_data": f"{letters / 'train.tsv'}:2",
        "valid_data": letters / "valid.tsv",
        "config_path": folder / "bart.json",
        "save_path": folder / "run",
        "cache_dir": folder / "cache",
        "batch_size": 8,
        "grad_acc": 2,
        "max_epoch": 2,
        "learning_rate": 2e-3,
        "valid_check_interval": 0.4,
        "valid_generate_rows": 10,
        "save_every": 2,
        "save_last_k": 20,
        "log_every": 4,
    }
    return {**flags, **changes}


@pytest.fixture(scope="session")
def whole_run(once: Callable[[str, Callable[[Path], None]], Path], letters: Path) -> Path:
    """The run that nobody stopped."""

    def make(folder: Path) -> None:
        write_config(folder / "bart.json", BART, dropout=0.2, attention_dropout=0.1, activation_dropout=0.1)
        train_ok(*flag_list(flags_of(folder, letters)))

    return once("whole_run", make)


def without_clock(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name not in CLOCK} for entry in entries]


def assert_same(one: Any, other: Any, place: str = "") -> None:
    """Equal bit for bit, tensors included."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert list(one) == list(other), place
        for key in one:
            assert_same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{place}/{index}")
    else:
        assert one == other, place


def assert_same_end(run_folder: Path, whole: Path) -> None:
    """Weights, optimizer, schedule, loop position, best score, exported folders and logs."""
    mine, reference = (
        torch.load(folder / "saved_checkpoints" / "last.ckpt", weights_only=True) for folder in (run_folder, whole)
    )
    for part in (mine, reference):
        part["s2s"].pop("flags")
        part["s2s_log"] = {"meters": part["s2s_log"]["meters"][0][:-1]}
        part["callbacks"]["Checkpointer"].pop("kept")
    assert_same(mine, reference)
    for name in ("best", "last"):
        assert (run_folder / name / "model.safetensors").read_bytes() == (
            whole / name / "model.safetensors"
        ).read_bytes()
    logs = [json.loads((folder / "log.json").read_text(encoding="utf-8")) for folder in (run_folder, whole)]
    assert without_clock(logs[0]) == without_clock(logs[1])
    lines = [json_lines(folder / "metrics.jsonl") for folder in (run_folder, whole)]
    assert without_clock(lines[0]) == without_clock(lines[1])


def test_the_whole_run_saved_at_every_kind_of_moment(whole_run: Path) -> None:
    names = {path.name for path in (whole_run / "run" / "saved_checkpoints").iterdir()}
    steps = {int(match[1]) for name in names if (match := re.search(r"global_step(\d+)", name))}
    assert steps == KEPT_STEPS
    ended = [name for name in names if "endofepoch" in name]
    assert sorted(name[:21] for name in ended) == ["epoch00-global_step7-", "epoch01-global_step14"]
    valid = [line["step"] for line in json_lines(whole_run / "run" / "metrics.jsonl") if line["phase"] == "valid"]
    assert valid == [3, 6, 7, 10, 13, 14]


MOMENTS = {
    "in an epoch, between log lines": "epoch00-global_step2.ckpt",
    "at a validation": "epoch01-global_step10-val_loss*.ckpt",
    "at the end of an epoch": "epoch00-global_step7-val_loss*_endofepoch.ckpt",
    "between a validation and the end of an epoch": "epoch01-global_step12.ckpt",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_resumed_run_ends_the_same(whole_run: Path, letters: Path, tmp_path: Path, moment: str) -> None:
    """From a copy of the folder as it was then: logs that reach further than the checkpoint are cut back."""
    shutil.copytree(whole_run / "run", tmp_path / "run")
    checkpoint = next((tmp_path / "run" / "saved_checkpoints").glob(MOMENTS[moment]))
    step = int(re.search(r"global_step(\d+)", checkpoint.name)[1])  # type: ignore[index]
    for path in (tmp_path / "run" / "saved_checkpoints").iterdir():
        if path != checkpoint:
            path.unlink()
    shutil.rmtree(tmp_path / "run" / "last")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as log:
        log.write('{"step": 15, "torn')
    flags = flags_of(whole_run, letters, save_path=tmp_path / "run", resume_checkpoint=checkpoint)
    result = train_ok(*flag_list(flags))
    assert "trained to optimizer step 14; best val_loss" in result.out
    assert_same_end(tmp_path / "run", whole_run / "run")
    steps = {
        int(match[1])
        for path in (tmp_path / "run" / "saved_checkpoints").iterdir()
        if (match := re.search(r"global_step(\d+)", path.name))
    }
    assert steps == {saved for saved in KEPT_STEPS if saved >= step}


def test_resuming_into_a_new_folder_takes_the_best_along(whole_run: Path, letters: Path, tmp_path: Path) -> None:
    """A run's folder names its newest checkpoint; here more epochs are asked for, and that is said."""
    flags = flags_of(whole_run, letters, save_path=tmp_path / "new", resume_checkpoint=whole_run / "run", max_epoch=3)
    result = train_ok(*flag_list(flags))
    assert "-max_epoch was 2 and is 3 now: " in result.out
    assert "trained to optimizer step 21; best val_loss" in result.out
    assert (tmp_path / "new" / "best" / "model.safetensors").is_file()
    assert [entry["epoch"] for entry in json.loads((tmp_path / "new" / "log.json").read_text())] == [2]


def test_finished_run_says_so(whole_run: Path, letters: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole_run / "run", tmp_path / "run")
    before = listing(run)
    result = train_ok(*flag_list(flags_of(whole_run, letters, save_path=run)), "-resume_checkpoint", "last")
    assert result.out == "the run is finished: 2 epochs, optimizer step 14; a larger -max_epoch trains on\n"
    assert listing(run) == before


REFUSED = {
    "flags": (
        {"learning_rate": 1e-3, "label_smoothing": 0.1, "float_precision": "bf16"},
        "the run was made with other settings: -learning_rate (checkpoint: 0.002, now: 0.001); "
        "-label_smoothing (checkpoint: 0.0, now: 0.1); -float_precision (checkpoint: 32, now: bf16)",
    ),
    "plan": (
        {"batch_size": 16, "grad_acc": 1, "seed": 1},
        "the run cannot be continued, it differs in -batch_size (checkpoint: 8, now: 16); "
        "-grad_acc (checkpoint: 2, now: 1); -seed (checkpoint: 123456, now: 1)",
    ),
    "data": (
        {"train_data": "{}/valid.tsv:2"},
        "the run cannot be continued, it differs in training data and encoding (",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_data_or_flags_are_refused(whole_run: Path, letters: Path, tmp_path: Path, what: str) -> None:
    """Nothing of the refused try stays: no encoded rows of the other data either."""
    changes, message = REFUSED[what]
    changes = {name: str(value).replace("{}", str(letters)) for name, value in changes.items()}
    run = shutil.copytree(whole_run / "run", tmp_path / "run")
    checkpoint = next((run / "saved_checkpoints").glob("epoch00-global_step2.ckpt"))
    before = listing(run)
    changes |= {"save_path": run, "cache_dir": None, "resume_checkpoint": checkpoint}
    result = train(*flag_list(flags_of(whole_run, letters, **changes)))
    assert result.code == 2
    assert len(result.errors) == 1
    assert message in result.errors[0]
    assert result.errors[0].startswith("-resume_checkpoint")
    assert "Traceback" not in result.err
    assert listing(run) == before


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_run_prints_the_command_that_resumes_it(
    whole_run: Path, letters: Path, tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    """The printed command is run as it stands; a folder with a blank in its name is quoted."""
    flags = flags_of(whole_run, letters, save_path=tmp_path / "my run", overwrite="true")
    if signum == signal.SIGTERM:  # more to do after the signal, and no validation in the way
        flags |= {"log_every": 1, "max_epoch": 2}
    stopped = train_until(flag_list(flags), "[Epoch 0] [TRAIN]", signum)
    assert stopped.code == code, stopped.out
    assert f"{signum.name}: saving at the next optimizer step; Ctrl-C leaves at once\n" in stopped.out
    assert "Traceback" not in stopped.out
    lines = stopped.out.splitlines()
    told = lines.index("stopped and saved; this resumes it:")
    command = shlex.split(lines[told + 1])
    assert command[:2] == ["python", "train.py"]
    assert "-overwrite" not in command
    assert (tmp_path / "my run" / "saved_checkpoints" / "last.ckpt").is_file()
    position = json.loads((tmp_path / "my run" / "last" / "training_state.json").read_text())
    assert 0 < position["global_step"] < 14
    resumed = run(*command)
    assert resumed.code == 0, resumed.err
    if signum == signal.SIGINT:
        assert_same_end(tmp_path / "my run", whole_run / "run")
    else:
        weights = [
            (folder / "last" / "model.safetensors").read_bytes() for folder in (tmp_path / "my run", whole_run / "run")
        ]
        assert weights[0] == weights[1]


def test_seed_drawn_at_random_is_in_the_resume_command() -> None:
    from train import resume_command

    tokens = ["-seed", "-1", "-save_path", "a b", "-overwrite", "-batch_size", "8", "--resume-checkpoint=x.ckpt"]
    command = resume_command(tokens, 77)
    assert shlex.split(command)[2:] == [
        *("-save_path", "a b", "-batch_size", "8", "-seed", "77", "-resume_checkpoint", "last")
    ]
