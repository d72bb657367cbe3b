"""A run that was stopped and resumed ends bit for bit as the one that was not."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests.cli.command import listing, run, train, train_ok
from tests.cli.tiny import flag_list, json_lines
from tests.cli.whole import flags_of
from tests.faults.harness import assert_same_end, start

KEPT_STEPS = {2, 4, 6, 7, 8, 10, 12, 13, 14}  # every second one, the five best validations, ends of epochs


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
    assert [entry["epoch"] for entry in json.loads((tmp_path / "new" / "log.json").read_text())] == [0, 1, 2]
    again = train(*flag_list(flags))
    assert again.code == 2
    assert again.errors == [
        f"-save_path {tmp_path / 'new'}: holds what became of -resume_checkpoint {whole_run / 'run'};"
        " -resume_checkpoint last goes on with it, or choose another folder"
    ]


def test_finished_run_says_so(whole_run: Path, letters: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole_run / "run", tmp_path / "run")
    page = (run / "report.html").read_bytes()
    (run / "report.html").unlink()  # as a kill before it was written leaves the run
    before = listing(run)
    result = train_ok(*flag_list(flags_of(whole_run, letters, save_path=run)), "-resume_checkpoint", "last")
    assert (run / "report.html").read_bytes() == page
    (run / "report.html").unlink()
    finished = "the run is finished: 2 epochs, optimizer step 14; a larger -max_epoch trains on\n"
    assert result.out == finished
    assert listing(run) == before
    flags = flags_of(whole_run, letters, save_path=tmp_path / "other", test_data=letters / "test.tsv")
    result = train_ok(*flag_list(flags), "-resume_checkpoint", run)
    assert result.out == (
        f"{finished}no test rows are scored: there is no {tmp_path / 'other' / 'best'}; the finished run is"
        f" {run / 'saved_checkpoints' / 'last.ckpt'}\n"
    )
    assert not (tmp_path / "other").exists()


REFUSED = {
    "flags": (
        {"learning_rate": 1e-3, "label_smoothing": 0.1, "float_precision": "bf16"},
        """\
  what              checkpoint  now
  -learning_rate    0.002       0.001
  -label_smoothing  0.0         0.1
  -float_precision  32          bf16
""",
    ),
    "plan": (
        {"batch_size": 16, "grad_acc": 1, "seed": 1},
        """\
  what         checkpoint  now
  -batch_size  8           16
  -grad_acc    2           1
  -seed        123456      1
""",
    ),
    "label map": (
        {"label_map": "a=A,b=B,c=C,d=D"},
        """\
  what        checkpoint  now
  -label_map  None        a=A, b=B, c=C, d=D
""",
    ),
    "devices": (
        {"cpu_processes": 2},
        """\
  what               checkpoint  now
  number of devices  1           2
""",
    ),
    "data": ({"train_data": "{}/valid.tsv:2"}, "\n  training rows               100"),
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
    assert result.errors == [
        f"-resume_checkpoint {checkpoint}: the run was saved with other settings; give those, or -resume_force to go on"
        " all the same, though not exactly"
    ]
    assert message in result.err
    assert "Traceback" not in result.err
    assert listing(run) == before


# ---- which checkpoint


def test_torn_newest_checkpoint_is_passed_over(whole_run: Path, letters: Path, tmp_path: Path) -> None:
    """Torn, then missing: the one before is taken, that is said, and the end is the same. No flag is given again."""
    run = shutil.copytree(whole_run / "run", tmp_path / "run")
    checkpoints = run / "saved_checkpoints"
    for path in [*checkpoints.glob("epoch01-global_step1[34]*"), checkpoints / "last.ckpt"]:
        content = path.read_bytes()
        path.unlink()
        if path.name != "epoch01-global_step14.ckpt":
            path.write_bytes(content[: len(content) // 2])
    result = train_ok("-save_path", run, "-resume_checkpoint", "last")
    first, *lines = result.out.splitlines()
    assert first.startswith(f"flags of {run / 'config.json'}: -train_data {letters / 'train.tsv'}:2 -valid_data ")
    assert lines[0].startswith(f"passed over: -resume_checkpoint {checkpoints / 'last.ckpt'}: the file is torn")
    assert f"continuing from the one before: {checkpoints / 'epoch01-global_step12.ckpt'}, optimizer step 12" in lines
    assert_same_end(run, whole_run / "run")


def test_no_whole_checkpoint_is_an_error(whole_run: Path, letters: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole_run / "run", tmp_path / "run")
    for path in (run / "saved_checkpoints").iterdir():
        path.write_bytes(b"torn")
    before = listing(run)
    for value in ("last", "auto"):
        result = train(*flag_list(flags_of(whole_run, letters, save_path=run, resume_checkpoint=value)))
        assert result.code == 2
        *torn, advice = result.errors
        assert all("the file is torn or no checkpoint" in error for error in torn)
        assert advice.startswith("no checkpoint is whole: put one back from a copy of the run, or begin again with")
        assert listing(run) == before


def test_best_continues_from_the_best_validation(whole_run: Path, letters: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole_run / "run", tmp_path / "run")
    state = json.loads((run / "best" / "training_state.json").read_text())
    (run / "best" / "training_state.json").write_text(json.dumps({**state, "global_step": 7}))  # as it was then
    flags = flags_of(whole_run, letters, save_path=run, resume_checkpoint="best")
    told = train_ok(*flag_list(flags)).out
    assert "epoch01-global_step8.ckpt, of a later step, is removed" in told
    assert_same_end(run, whole_run / "run")
    shutil.rmtree(run / "best")
    result = train(*flag_list(flags))
    assert result.code == 2
    assert result.errors == [
        f"-resume_checkpoint best: no checkpoint of {run / 'best'} in {run / 'saved_checkpoints'};"
        " -resume_checkpoint last continues from the newest"
    ]


def test_auto_starts_afresh_resumes_and_ends(whole_run: Path, letters: Path, tmp_path: Path) -> None:
    """One command line for ever: also after a kill before the first checkpoint, whose logs are dropped."""
    run = tmp_path / "run"
    flags = flags_of(whole_run, letters, save_path=run, resume_checkpoint="auto")
    killed = start(flags, {"FAULT_ON": "training_step", "FAULT_AT": "4"})
    assert killed.code == -9
    assert (run / "config.json").is_file()
    assert list((run / "saved_checkpoints").glob("*.ckpt")) == []
    last = train(*flag_list({**flags, "resume_checkpoint": "last"}))
    assert last.code == 2
    assert last.errors[0].startswith("-resume_checkpoint last: no such file: ")
    train_ok(*flag_list(flags))
    assert_same_end(run, whole_run / "run")
    before = listing(run)
    assert "the run is finished: 2 epochs" in train_ok(*flag_list(flags)).out
    assert listing(run) == before
    shutil.rmtree(run / "saved_checkpoints")
    result = train(*flag_list(flags))
    assert result.code == 2
    assert (
        f"-resume_checkpoint auto: {run} holds a model (best, last) and no checkpoint to continue" in result.errors[0]
    )
    assert (run / "best" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["best", "last"])
def test_kill_between_the_last_checkpoint_and_its_folder_is_mended(
    whole_run: Path, letters: Path, tmp_path: Path, name: str
) -> None:
    run = shutil.copytree(whole_run / "run", tmp_path / "run")
    shutil.rmtree(run / name)
    result = train_ok(*flag_list(flags_of(whole_run, letters, save_path=run, resume_checkpoint="auto")))
    assert f"{run / name} was not finished: written anew from the checkpoint of optimizer step" in result.out
    assert_same_end(run, whole_run / "run")
    names = [sorted(path.name for path in (folder / name).iterdir()) for folder in (run, whole_run / "run")]
    assert names[0] == names[1]


# ---- -resume_force


def test_forced_resume_says_what_is_not_exact(whole_run: Path, letters: Path, tmp_path: Path) -> None:
    """Other batches, optimizer, rate and validation rows: the run ends, at the number of steps that was told."""
    changes = {"batch_size": 16, "grad_acc": 1, "optim": "adafactor", "learning_rate": 1e-3}
    flags = flags_of(whole_run, letters, save_path=tmp_path / "new", resume_force="true", **changes)
    flags["valid_data"] = f"{letters / 'valid.tsv'}:2"
    flags["resume_checkpoint"] = next((whole_run / "run" / "saved_checkpoints").glob("epoch00-global_step4.ckpt"))
    result = train_ok(*flag_list(flags))
    told = result.out[result.out.index("-resume_force: ") :]
    expected = """\
-resume_force: the run goes on with other settings, so its result is not that of either alone
  what                          checkpoint"""
    assert told.startswith(expected)
    assert "the batches are others: epoch 0 goes on at batch 4 of 7 (it was batch 8 of 13); rows of this epoch" in told
    assert "the optimizer begins with an empty state\n" in told
    assert "the learning rate is that of step 4 of 14 in the schedule of the flags\n" in told
    assert "the best score so far is of another measure: the next validation begins anew\n" in told
    assert "trained to optimizer step 14; best val_loss" in told
    log = json_lines(tmp_path / "new" / "metrics.jsonl")
    before = [line for line in json_lines(whole_run / "run" / "metrics.jsonl") if line["step"] <= 4]
    assert log[: len(before)] == before
    assert max(line["learning_rate"] for line in log[len(before) :] if "loss" in line) <= 1e-3
    # Stopped and resumed by plain flags, the forced run keeps its own course.
    stopped = {**flags, "save_path": tmp_path / "stopped", "max_steps": 9}
    train_ok(*flag_list(stopped))
    train_ok(*flag_list({**stopped, "max_steps": 0, "resume_force": None, "resume_checkpoint": "last"}))
    assert_same_end(tmp_path / "stopped", tmp_path / "new")


# ---- the disk


def test_disk_that_refuses_a_checkpoint(whole_run: Path, letters: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands for a full disk: the path, the bytes, and everything earlier is whole."""
    flags = flags_of(whole_run, letters, save_path=tmp_path / "run", max_steps=3)
    train_ok(*flag_list(flags))
    size = max(path.stat().st_size for path in (tmp_path / "run" / "saved_checkpoints").iterdir())
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "saved_checkpoints").iterdir()}
    flags |= {"max_steps": 0, "resume_checkpoint": "last"}
    command = shlex.join([sys.executable, "train.py", *flag_list(flags)])  # a fork would not have the limit
    result = run("bash", "-c", f"ulimit -f {size // 2048}; {command}")
    assert result.code == 1
    assert re.fullmatch(
        rf"{tmp_path}/run/saved_checkpoints/epoch00-global_step4\.ckpt could not be written: the disk is full, or a"
        r" limit of file sizes or a quota is reached \(about [\d,]+ bytes are needed, [\d,]+ are free\); earlier files"
        r" are untouched",
        result.errors[0],
    )
    assert "Traceback" not in result.err
    after = {path: path.read_bytes() for path in (tmp_path / "run" / "saved_checkpoints").iterdir()}
    assert after == before
    train_ok(*flag_list(flags))
    assert_same_end(tmp_path / "run", whole_run / "run")


def test_folder_that_cannot_be_written(whole_run: Path, letters: Path) -> None:
    result = train(*flag_list(flags_of(whole_run, letters, save_path="/proc/run")))
    assert result.code == 2
    assert len(result.errors) == 1
    assert result.errors[0].startswith("-save_path /proc/run: ")
