"""The first process is killed while the others start: none of them stays behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from tests.cli.command import ROOT, environment
from tests.cli.tiny import T5, flag_list, write_config


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_second_process_dies_with_the_first_however_early(letters: Path, tmp_path: Path) -> None:
    """Killed as soon as it has started the other one, which then waits for a connection that never comes."""
    flags = {
        "train_data": letters / "train.tsv",
        "config_path": write_config(tmp_path / "t5.json", T5),
        "save_path": tmp_path / "run",
        "cpu_processes": 2,
    }
    command = [sys.executable, "train.py", *flag_list(flags)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL) as first:
        while not (started := children_of(first.pid)):
            assert first.poll() is None
        second = os.pidfd_open(started[0])
        first.kill()
    died, _, _ = select.select([second], [], [], 30)
    if not died:
        signal.pidfd_send_signal(second, signal.SIGKILL)
    assert died
