"""A prediction that is killed and started again ends with the bytes of the one that nobody killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.command import ROOT, TIMEOUT, environment, infer, infer_ok

ROWS = 200
ENDINGS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


def flags(copy_run: Path, letters: Path, output: Path) -> list[str]:
    """200 rows in 50 parts, n-best lists with scores."""
    return [
        *("-model", str(copy_run / "run" / "best"), "-test_data", str(letters / "train.tsv")),
        *("-save_output", str(output), "-batch_size", "4", "-beam_size", "3", "-num_return", "2"),
    ]


def start_and_stop(command: list[str], parts: Path, count: int, signum: signal.Signals) -> str:
    """Run until there are `count` more parts, send the signal, and give back what was printed."""
    before = len(list(parts.glob("part-*")))
    process = subprocess.Popen(
        [sys.executable, "inference.py", *command],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until = time.monotonic() + TIMEOUT
    while len(list(parts.glob("part-*"))) < before + count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signum)
    printed, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == ENDINGS[signum], printed
    return printed


def test_killed_anywhere_and_completed_by_others(copy_run: Path, letters: Path, tmp_path: Path) -> None:
    infer_ok(*flags(copy_run, letters, tmp_path / "whole.jsonl"))
    output = tmp_path / "out.jsonl"
    parts = tmp_path / "out.jsonl.parts"
    command = flags(copy_run, letters, output)
    start_and_stop(command, parts, 5, signal.SIGKILL)
    assert not output.exists()
    kept = len(list(parts.glob("part-*")))
    assert kept >= 5
    refused = infer(*command[:-4], "-beam_size", "2", "-num_return", "2")
    assert refused.code == 2
    assert refused.err.splitlines()[-2:] == ["  what        parts  now", "  -beam_size  3      2"]
    printed = start_and_stop([*command, "-cpu_processes", "2"], parts, 5, signal.SIGTERM)
    assert f"{4 * kept:,} of {ROWS} rows were finished before, in {parts}\n" in printed
    kept = len(list(parts.glob("part-*")))
    assert f"{4 * kept:,} of {ROWS} rows are finished, in {parts}; the same command goes on from there\n" in printed
    assert "Traceback" not in printed
    done = infer_ok(*command, "-cpu_processes", "3")
    assert f"{4 * kept:,} of {ROWS} rows were finished before" in done.out
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "whole.jsonl"]


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
