"""Signals and limits: the run stops at a step, or in a validation, and resumed it ends as the one nobody stopped."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from config.flags.train import TrainConfig
from config.parser import parse_flags
from tests.cli.command import listing, printed_command, run, train, train_ok, train_until
from tests.cli.tiny import flag_list, json_lines
from tests.cli.whole import flags_of
from tests.faults.harness import assert_same_end, start
from training.signals import StopSignal, TrainingStopped, after_stop, resume_command


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_run_prints_the_command_that_resumes_it(
    whole_run: Path, letters: Path, tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    """The printed command is run as it stands; a folder with a blank in its name is quoted."""
    flags = flags_of(whole_run, letters, save_path=tmp_path / "my run", overwrite="true")
    flags |= {"num_workers": 2}  # these get the signal too, as from a terminal or scancel, and have nothing to say
    if signum == signal.SIGTERM:  # more to do after the signal, and no validation in the way
        flags |= {"log_every": 1, "max_epoch": 2}
    stopped = train_until(flag_list(flags), "[Epoch 0] [TRAIN]", signum, whole_group=True)
    assert stopped.code == code, stopped.out
    assert stopped.out.count(f"{signum.name}: saving at the next optimizer step; Ctrl-C leaves at once\n") == 1
    assert "Traceback" not in stopped.out
    command = printed_command(stopped.out)
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
    tokens = ["-seed", "-1", "-save_path", "a b", "-overwrite", "-batch_size", "8", "--resume-checkpoint=x.ckpt"]
    command = resume_command(tokens, 77)
    assert command[2:] == [*("-save_path", "a b", "-batch_size", "8", "-seed", "77", "-resume_checkpoint", "last")]


# ---- stops in a validation

IN_A_VALIDATION = {  # where, the event, and the optimizer step
    "inside an epoch": ("validation_step", 3, 3),
    "inside an epoch, in generation": ("on_validation_epoch_end", 2, 6),
    "at the end of an epoch": ("validation_step", 12, 7),
    "at the end of the run, in generation": ("on_validation_epoch_end", 6, 14),
}


@pytest.mark.parametrize("moment", IN_A_VALIDATION)
def test_stopped_in_a_validation_begins_it_anew(whole_run: Path, letters: Path, tmp_path: Path, moment: str) -> None:
    """The stop waits for no validation to end, and the resumed run ends as if there had been none."""
    event, count, step = IN_A_VALIDATION[moment]
    flags = flags_of(whole_run, letters, save_path=tmp_path / "run")
    stopped = start(flags, {"FAULT_ON": event, "FAULT_AT": str(count), "FAULT_SIGNAL": str(int(signal.SIGTERM))})
    assert stopped.code == 143, stopped.out
    assert f"stopped at optimizer step {step} and saved; this resumes it:" in stopped.out
    valid = [line["step"] for line in json_lines(tmp_path / "run" / "metrics.jsonl") if line["phase"] == "valid"]
    assert valid == [done for done in (3, 6, 7, 10, 13, 14) if done < step]
    flags["resume_checkpoint"] = "last"
    if moment == "at the end of an epoch":  # the resumed validation is logged, and the checkpoint after it is not there
        killed = start(flags, {"FAULT_ON": "replace", "FAULT_AT": "4"})  # config.json, two logs, then the checkpoint
        assert killed.code == -9
        logged = [line["step"] for line in json_lines(tmp_path / "run" / "metrics.jsonl") if line["phase"] == "valid"]
        assert logged[-1] == step
    if moment == "inside an epoch":  # the validation comes whatever the interval is now
        train_ok(*flag_list({**flags, "valid_check_interval": 1.0, "max_steps": step + 1}))
    if moment == "inside an epoch, in generation":  # a limit that is reached leaves none undone, however little time
        told = train_ok(*flag_list({**flags, "max_steps": step, "max_hours": 1e-6})).out
        assert f"stopped at optimizer step {step} and saved" in told
        valid = [line["step"] for line in json_lines(tmp_path / "run" / "metrics.jsonl") if line["phase"] == "valid"]
        assert valid == [3, step]
    train_ok(*flag_list({**flags, "max_steps": 0}))  # else that of the run goes on
    assert_same_end(tmp_path / "run", whole_run / "run")


# ---- limits, saves on request, SLURM


def test_max_steps_and_max_hours_stop_and_are_resumed(whole_run: Path, letters: Path, tmp_path: Path) -> None:
    """The same command line trains no further than -max_steps, the printed one does; stopped while it scores the test
    rows it prints one that scores them.
    """
    run_folder = tmp_path / "run"
    flags = flags_of(whole_run, letters, save_path=run_folder, resume_checkpoint="auto", test_data=letters / "test.tsv")
    flags["max_steps"] = 5
    result = train_ok(*flag_list(flags))
    assert "-max_steps 5 is reached: stopped at optimizer step 5 and saved; this resumes it:\n" in result.out
    command = printed_command(result.out)
    before = listing(run_folder)
    result = train_ok(*flag_list(flags))
    assert result.out == "-max_steps 5 is reached: the run is at optimizer step 5; -max_steps 0 trains on\n"
    assert listing(run_folder) == before
    result = train_ok(*flag_list({**flags, "max_steps": 0, "max_hours": 1e-9}))
    assert "-max_hours 1e-09 is reached: stopped at optimizer step 6 and saved; this resumes it:\n" in result.out
    stopped = train_until(command[2:], "trained to optimizer step 14", signal.SIGTERM)
    assert stopped.code == 143
    assert "the training is complete, the test rows are not scored; this resumes it:\n" in stopped.out
    assert "Traceback" not in stopped.out
    assert_same_end(run_folder, whole_run / "run")
    assert not (run_folder / "test_report.json").exists()
    scored = run(*printed_command(stopped.out))
    assert scored.code == 0, scored.err
    assert json.loads((run_folder / "test_report.json").read_text())["rows"] == 30


def test_sigusr1_saves_and_goes_on(whole_run: Path, letters: Path, tmp_path: Path) -> None:
    flags = flags_of(whole_run, letters, save_path=tmp_path / "run")
    faults = {"FAULT_ON": "training_step", "FAULT_AT": "9", "FAULT_SIGNAL": str(int(signal.SIGUSR1))}
    result = start(flags, faults)
    assert result.code == 0, result.out
    assert f"saved at optimizer step 5: {tmp_path / 'run' / 'saved_checkpoints' / 'last.ckpt'}\n" in result.out
    assert_same_end(tmp_path / "run", whole_run / "run")


def test_requeue_on_slurm(whole_run: Path, letters: Path, tmp_path: Path) -> None:
    """SLURM's signal ahead of the time limit: saved, stopped, and scontrol called with the number of this job."""
    flags = flags_of(whole_run, letters, save_path=tmp_path / "run", requeue="true")
    result = train(*flag_list(flags))
    assert result.code == 2
    assert result.errors == [
        "-requeue: only with -resume_checkpoint auto: the job runs this same command again",
        "-requeue: this is no SLURM job (no SLURM_JOB_ID, or no scontrol command); leave it out",
    ]
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    job = {"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_NAME": "translate"}
    task = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    slurm = {**job, **task, "PATH": f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"}
    faults = {"FAULT_ON": "training_step", "FAULT_AT": "9", "FAULT_SIGNAL": str(int(signal.SIGUSR1))}
    flags["resume_checkpoint"] = "auto"
    result = start(flags, {**slurm, **faults})
    assert result.code == 128 + signal.SIGUSR1, result.out
    assert "requeued: scontrol requeue 70_3\n" in result.out
    assert (tmp_path / "called").read_text() == "requeue 70_3\n"
    # A limit of steps is no lack of time: the job is not put into the queue again, which would never end.
    result = start({**flags, "max_steps": 8}, slurm)
    assert result.code == 0, result.out
    assert (tmp_path / "called").read_text() == "requeue 70_3\n"
    ended = run(*printed_command(result.out))
    assert ended.code == 0, ended.err
    assert_same_end(tmp_path / "run", whole_run / "run")


def test_signal_in_the_scoring_ends_it_at_once() -> None:
    """SLURM's too, which is requeued; one that came after the last step counts as well."""
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    for signum, early in ((signal.SIGUSR1, False), (signal.SIGTERM, False), (signal.SIGUSR1, True)):
        stop = StopSignal(talk=False, requeue=True)
        stop.received = signum if early else 0
        reached = []
        with pytest.raises(TrainingStopped) as stopped, stop.ending_at_once("not scored"):
            reached.append("begun")
            os.kill(os.getpid(), signum)
            reached.append("ended")
        assert reached == ([] if early else ["begun"])
        assert str(stopped.value) == "not scored"
        assert stopped.value.exit_code == 128 + signum
        assert stopped.value.out_of_time == (signum == signal.SIGUSR1)
        assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_launched_run_prints_flags_for_the_launcher(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Under torchrun `python train.py` alone would wait for the other machines."""
    config = parse_flags(TrainConfig, ["-save_path", "run", "-num_nodes", "2", "-max_steps", "3"])[0]
    monkeypatch.setenv("RANK", "0")
    code = after_stop(
        TrainingStopped("stopped", 0, "-max_steps 3"), config, ["-save_path", "run", "-num_nodes", "2", "-max_steps=3"]
    )
    assert code == 0
    assert capsys.readouterr().out == (
        "-max_steps 3 is reached: stopped; started as before with these flags it goes on:\n"
        "  -save_path run -num_nodes 2 -max_steps 0 -seed 123456 -resume_checkpoint last\n"
    )
