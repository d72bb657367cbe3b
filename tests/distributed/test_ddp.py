"""Two processes on the CPU: the same run as one with batches twice as large; saved once, stopped and resumed."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.command import REAL, listing, printed_command, run, train, train_ok, train_until
from tests.cli.tiny import T5, flag_list, json_lines, letter_rows, write_config, write_tsv

SLURM_BATCH_SCRIPT = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NAME": "translate",
    "SLURM_NTASKS": "1",
    "SLURM_NNODES": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


def flags_of(folder: Path, letters: Path, name: str, **changes: Any) -> dict[str, Any]:
    flags = {
        "train_data": f"{letters / 'train.tsv'}:2",
        "valid_data": letters / "valid.tsv",
        "config_path": folder / "t5.json",
        "cache_dir": folder / "cache",
        "save_path": folder / name,
        "batch_size": 5,
        "max_epoch": 2,
        "learning_rate": 1e-3,
        "valid_generate_rows": 9,
        "save_every": 4,
        "log_every": 3,
        "cpu_processes": 2,
    }
    return {**flags, **changes}


@pytest.fixture(scope="session")
def two_processes(once: Callable[[str, Callable[[Path], None]], Path], letters: Path) -> Path:
    """`two`: 100 rows, 10 steps an epoch, 5 rows on each of two processes."""

    def make(folder: Path) -> None:
        write_config(folder / "t5.json", T5)
        out = train_ok(*flag_list(flags_of(folder, letters, "two"))).out
        (folder / "stdout.txt").write_text(out, encoding="utf-8")

    return once("two_processes", make)


PROBE = """\
import os
from pathlib import Path

import torch

backward = torch.Tensor.backward


def told(*given, **named):
    found = torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    found += (os.environ.get("PYTORCH_ALLOC_CONF"),)
    Path(__file__).with_name("rank" + os.environ.get("LOCAL_RANK", "0")).write_text(repr(found))
    return backward(*given, **named)


torch.Tensor.backward = told
"""


def last_checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "saved_checkpoints" / "last.ckpt", weights_only=True)


def test_saved_and_told_once(two_processes: Path) -> None:
    out = (two_processes / "stdout.txt").read_text(encoding="utf-8")
    assert out.count("devices 2 x cpu, precision 32\n") == 1
    assert out.count("100 training rows, 40 validation rows\n") == 1
    assert out.count("trained to optimizer step 20; ") == 1
    assert "batches of 5 rows x 1 accumulated x 2 devices, 10 optimizer steps an epoch, 20 in all" in out
    run_folder = two_processes / "two"
    names = {path.name.partition("-val_loss")[0] for path in (run_folder / "saved_checkpoints").iterdir()}
    assert names == {
        "epoch00-global_step10",
        "epoch01-global_step16.ckpt",
        "epoch01-global_step20",
        "epoch01-global_step20.ckpt",
        "last.ckpt",
    }
    lines = json_lines(run_folder / "metrics.jsonl")
    assert [line["step"] for line in lines if line["phase"] == "train"] == [3, 6, 9, 10, 12, 15, 18, 20]
    log = json.loads((run_folder / "log.json").read_text())
    assert [(entry["global_step"], entry["rows"]) for entry in log] == [(10, 100), (20, 100)]


def test_equal_to_one_process_with_batches_twice_as_large(two_processes: Path, letters: Path) -> None:
    flags = flags_of(two_processes, letters, "one", cpu_processes=0, batch_size=10)
    train_ok(*flag_list(flags))
    mine, reference = last_checkpoint(two_processes / "two"), last_checkpoint(two_processes / "one")
    for name, value in mine["state_dict"].items():
        expected = reference["state_dict"][name]
        assert float((value - expected).norm() / expected.norm()) < 1e-5, name
    logs = [json_lines(two_processes / name / "metrics.jsonl") for name in ("two", "one")]
    for line, expected in zip(*logs, strict=True):
        for figure in ("loss", "gradient_norm", "val_loss"):
            if figure in expected:
                assert line[figure] == pytest.approx(expected[figure], rel=1e-5), (figure, line["step"])
        for figure in ("learning_rate", "exact_match", "token_accuracy", "chrf"):
            assert line.get(figure) == expected.get(figure)


def test_gradients_are_sent_in_bf16_on_request(two_processes: Path, letters: Path, tmp_path: Path) -> None:
    """The same descent up to the 8 bits of bf16."""
    flags = flags_of(two_processes, letters, "two", save_path=tmp_path / "run", max_steps=3, save_every=0)
    done = train(*flag_list({**flags, "gradient_compression": "bf16"}), env=REAL)
    assert done.code == 0, done.err
    line, expected = (json_lines(folder / "metrics.jsonl")[0] for folder in (tmp_path / "run", two_processes / "two"))
    assert line["step"] == expected["step"] == 3
    for figure in ("loss", "gradient_norm"):
        assert line[figure] == pytest.approx(expected[figure], rel=1e-2), figure
        assert line[figure] != pytest.approx(expected[figure], rel=1e-6), figure


def test_stopped_by_ctrl_c_on_both_processes_and_resumed(two_processes: Path, letters: Path, tmp_path: Path) -> None:
    """SIGINT goes to the process group, as from a terminal; the printed command ends bit for bit the same.

    It is run in a SLURM job of one task: there, too, it starts the second process itself. -deterministic is on in both
    processes, and changes nothing on a CPU.
    """
    (tmp_path / "probe.py").write_text(PROBE)
    changes = {"deterministic": True, "user_code": tmp_path / "probe.py"}
    flags = flags_of(two_processes, letters, "stopped", save_path=tmp_path / "run", **changes)
    stopped = train_until(flag_list(flags), "[Epoch 0] [TRAIN]", signal.SIGINT, whole_group=True)
    assert stopped.code == 130, stopped.out
    assert "Traceback" not in stopped.out
    assert stopped.out.count("SIGINT: saving at the next optimizer step; Ctrl-C leaves at once\n") == 1
    resumed = run(*printed_command(stopped.out), env=SLURM_BATCH_SCRIPT)
    assert resumed.code == 0, resumed.out + resumed.err
    set_before_cuda = (True, ":4096:8", "expandable_segments:True")
    assert [(tmp_path / name).read_text() for name in ("rank0", "rank1")] == [repr(set_before_cuda)] * 2
    mine, reference = last_checkpoint(tmp_path / "run"), last_checkpoint(two_processes / "two")
    assert mine["s2s"]["environment"]["deterministic"] is True
    for name, value in mine["state_dict"].items():
        assert torch.equal(value, reference["state_dict"][name]), name
    for number, state in mine["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, reference["optimizer_states"][0]["state"][number][name])
    clock = ("tokens_per_second", "rows_per_second", "peak_memory_gb")
    logs = [json_lines(folder / "metrics.jsonl") for folder in (tmp_path / "run", two_processes / "two")]
    for log in logs:
        for line in log:
            for name in clock:
                line.pop(name, None)
    assert logs[0] == logs[1]


def test_tasks_that_srun_started_are_the_processes(two_processes: Path, letters: Path, tmp_path: Path) -> None:
    """Two tasks train as the two processes that one starts do; the flags that resume them are told, no command."""
    flags = flags_of(two_processes, letters, "srun", save_path=tmp_path / "run", max_steps=3, save_every=0)
    step = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODELIST": "localhost"}
    with ThreadPoolExecutor(2) as pool:
        tasks = [
            pool.submit(train, *flag_list(flags), env={**SLURM_BATCH_SCRIPT, **step, **rank})
            for rank in ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, {"SLURM_PROCID": "1", "SLURM_LOCALID": "1"})
        ]
    first, second = (task.result() for task in tasks)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert (second.out, second.err) == ("", "")
    told, command = first.out.splitlines()[-2:]
    assert told.endswith("stopped at optimizer step 3 and saved; started as before with these flags it goes on:")
    assert command.startswith("  -train_data ")
    lines = [json_lines(folder / "metrics.jsonl")[0] for folder in (tmp_path / "run", two_processes / "two")]
    for line in lines:
        for name in ("tokens_per_second", "rows_per_second", "peak_memory_gb"):
            line.pop(name)
    assert lines[0] == lines[1]
    assert lines[0]["step"] == 3


def test_nan_on_one_rank_stops_both_and_harms_nothing(letters: Path, tmp_path: Path) -> None:
    """A finished epoch is trained on with a NaN in the embedding of one letter, which one row of rank 1 holds."""
    write_tsv(tmp_path / "train.tsv", [*letter_rows(39, 3), ("zz", "z")])
    write_config(tmp_path / "t5.json", T5)
    changes = {"train_data": tmp_path / "train.tsv", "valid_generate_rows": 0, "save_every": 0, "grad_clip": 0}
    flags = flags_of(tmp_path, letters, "run", **changes, max_epoch=1, log_every=4)
    train_ok(*flag_list(flags))
    run_folder = tmp_path / "run"
    checkpoint = last_checkpoint(run_folder)
    for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens"):
        checkpoint["state_dict"][f"model.{name}.weight"][ord("z") + 3] = float("nan")
    torch.save(checkpoint, run_folder / "saved_checkpoints" / "last.ckpt")
    kept = ("best", "last", "saved_checkpoints")
    before = [listing(run_folder / name) for name in kept]
    result = train(*flag_list({**flags, "max_epoch": 2, "resume_checkpoint": "last"}))
    assert result.code == 1
    # Rank 0 sees nothing before step 8: the weights that step 7 spoiled.
    start = "the loss or the gradient became NaN or infinite at optimizer step 7; best/, last/ and the checkpoints are"
    assert [error.startswith(start) for error in result.errors] == [True], result.err
    assert len(result.err.splitlines()) == 1
    assert "Traceback" not in result.out
    assert [listing(run_folder / name) for name in kept] == before
