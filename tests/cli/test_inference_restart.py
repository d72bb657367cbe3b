"""A prediction that is killed and started again ends with the bytes of the one that nobody killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.cli.command import ROOT, TIMEOUT, environment, forked_commands, infer, infer_ok

ROWS = 200
ENDINGS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


def flags(copy_run: Path, letters: Path, output: Path) -> list[str]:
    """200 rows in 50 parts, n-best lists with scores."""
    return [
        *("-model", str(copy_run / "run" / "best"), "-test_data", str(letters / "train.tsv")),
        *("-save_output", str(output), "-batch_size", "4", "-beam_size", "3", "-num_return", "2"),
    ]


def start_and_stop(command: list[str], parts: Path, count: int, signum: signal.Signals, worker: bool = False) -> str:
    """Run until there are `count` more parts, send the signal (to a worker alone), give back what was printed."""
    before = len(list(parts.glob("part-*")))
    commands = forked_commands()
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "output"
        process = commands.start(["inference.py", *command], ROOT, output, output, environment())
        until = time.monotonic() + TIMEOUT
        while len(list(parts.glob("part-*"))) < before + count:
            assert commands.ended(process) is None, output.read_text(encoding="utf-8")
            assert time.monotonic() < until
            time.sleep(0.005)
        os.kill(min(workers(parts)) if worker else process, signum)
        code = commands.wait(process, TIMEOUT)
        printed = output.read_text(encoding="utf-8")
    assert code == (1 if worker else ENDINGS[signum]), printed
    return printed


def workers(parts: Path) -> set[int]:
    """Process ids of those that work on the parts."""
    return {int(path.name.split("-")[-2]) for path in parts.glob("worker-*")}


@pytest.mark.slow
def test_killed_anywhere_and_completed_by_others(copy_run: Path, letters: Path, tmp_path: Path) -> None:
    infer_ok(*flags(copy_run, letters, tmp_path / "whole.jsonl"))
    output = tmp_path / "out.jsonl"
    parts = tmp_path / "out.jsonl.parts"
    command = flags(copy_run, letters, output)
    start_and_stop(command, parts, 5, signal.SIGKILL)
    assert not output.exists()
    kept = len(list(parts.glob("part-*")))
    assert kept >= 5
    for other, differs in others(letters, tmp_path):
        refused = infer(*command, *other)
        assert refused.code == 2
        assert refused.errors[0].endswith("give its flags and input to complete it, or -overwrite to begin again")
        assert [line.split("  ")[1] for line in refused.err.splitlines()[2:]] == differs
    printed = start_and_stop([*command, "-cpu_processes", "2"], parts, 5, signal.SIGTERM)
    assert f"{4 * kept:,} of {ROWS} rows were finished before, in {parts}\n" in printed
    kept = len(list(parts.glob("part-*")))
    assert f"{4 * kept:,} of {ROWS} rows are finished, in {parts}; the same command goes on from there\n" in printed
    assert "Traceback" not in printed
    done = infer_ok(*command, "-cpu_processes", "3")
    assert f"{4 * kept:,} of {ROWS} rows were finished before" in done.out
    assert f"\n{ROWS - 4 * kept:,} rows predicted in " in done.out
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["changed.tsv", "out.jsonl", "whole.jsonl"]


def others(letters: Path, folder: Path) -> list[tuple[list[str], list[str]]]:
    """Flags that make another command of it, and what the table names."""
    changed = folder / "changed.tsv"
    *rows, last = (letters / "train.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    source, _ = last.split("\t")
    changed.write_text("".join((*rows, f"{source}\tanother reference\n")), encoding="utf-8")
    # A flag that is given twice counts as given last, but -test_data adds rows.
    return [
        (["-beam_size", "4"], ["-beam_size"]),
        (["-max_tokens", "64"], ["-max_tokens"]),
        (["-test_data", str(changed)], ["rows", "input (token ids)", "input (texts)"]),
        (["-float_precision", "bf16"], ["-float_precision"]),
    ]


@pytest.mark.parametrize("more", [(), ("-float_precision", "bf16")], ids=["fp32", "bf16"])
def test_threads_and_processes_change_no_byte(
    copy_run: Path, letters: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """One process on two threads adds up its matrix products as two processes on one thread each do."""
    infer_ok(*flags(copy_run, letters, tmp_path / "one.jsonl"), *more, env={"OMP_NUM_THREADS": "2"})
    infer_ok(*flags(copy_run, letters, tmp_path / "two.jsonl"), *more, "-cpu_processes", "2")
    one, two = ((tmp_path / name).read_bytes().splitlines() for name in ("one.jsonl", "two.jsonl"))
    assert one == two  # line by line: what differs is shown whole


def test_a_changed_model_or_reference_is_refused(copy_run: Path, letters: Path, tmp_path: Path) -> None:
    """Changed in place, under the same names."""
    model, rows = tmp_path / "model", tmp_path / "rows.tsv"
    shutil.copytree(copy_run / "run" / "best", model)
    shutil.copy(letters / "train.tsv", rows)
    command = ["-model", str(model), "-test_data", str(rows), "-save_output", str(tmp_path / "out.txt")]
    command += ["-batch_size", "4"]
    start_and_stop(command, tmp_path / "out.txt.parts", 3, signal.SIGKILL)
    rows.write_text(rows.read_text(encoding="utf-8").rstrip("\n") + "!\n", encoding="utf-8")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "dropout": 0.5}))
    refused = infer(*command)
    assert refused.code == 2
    assert [line.split("  ")[1] for line in refused.err.splitlines()[2:]] == [
        "input (token ids)",
        "input (texts)",
        "-model",
    ]


def test_a_worker_that_is_killed_ends_the_run_and_the_same_command_completes_it(
    copy_run: Path, letters: Path, tmp_path: Path
) -> None:
    command = [*flags(copy_run, letters, tmp_path / "out.jsonl"), "-cpu_processes", "2"]
    parts = tmp_path / "out.jsonl.parts"
    infer_ok(*flags(copy_run, letters, tmp_path / "whole.jsonl"))
    printed = start_and_stop(command, parts, 3, signal.SIGKILL, worker=True)
    kept = len(list(parts.glob("part-*")))
    assert re.search(
        rf"error: prediction process [01] of 2 was ended by SIGKILL .*; {4 * kept} of {ROWS} rows are finished, in"
        rf" {re.escape(str(parts))}; the same command goes on from there\n",
        printed,
    )
    infer_ok(*command)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_keeps_what_is_finished(copy_run: Path, letters: Path, tmp_path: Path) -> None:
    """A file system of 64 KiB: some parts fit, then none; with room the same command completes it."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        command = flags(copy_run, letters, place / "out.jsonl")
        full = infer(*command)
        kept = len(list((place / "out.jsonl.parts").glob("part-*")))
        assert 0 < kept < 50
        assert full.code == 1
        assert len(full.errors) == 1
        assert (
            f"{place}/out.jsonl.parts/part-0000{kept:02d}.jsonl could not be written: the disk is full"
            in full.errors[0]
        )
        assert f"{4 * kept} of {ROWS} rows are finished, in {place}/out.jsonl.parts; the same command" in full.errors[0]
        subprocess.run(["mount", "-o", "remount,size=8m", str(place)], check=True)
        done = infer_ok(*command)
        assert f"{4 * kept} of {ROWS} rows were finished before" in done.out
        assert len((place / "out.jsonl").read_text().splitlines()) == ROWS
    finally:
        subprocess.run(["umount", str(place)], check=True)
