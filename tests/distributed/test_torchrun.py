"""Two machines, each with a `torchrun` of its own: the run of two processes on one."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.command import ROOT, environment, listing
from tests.cli.tiny import flag_list
from tests.distributed.test_ddp import flags_of, two_processes
from tests.faults.harness import assert_same

__all__ = ["two_processes"]  # the fixture


def machines(flags: dict[str, Any], limit: str = "unlimited") -> list[subprocess.CompletedProcess[str]]:
    """The end of `train.py` on two machines, by `ulimit -f LIMIT` on the first."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=localhost", f"--master-port={port}"]

    def machine(rank: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torch.distributed.run", *options, f"--node-rank={rank}", "train.py"]
        limited = ["bash", "-c", f'ulimit -f {limit if rank == 0 else "unlimited"}; exec "$@"', "bash"]
        return subprocess.run(
            [*limited, *command, *flag_list(flags)], cwd=ROOT, env=environment(), capture_output=True, text=True
        )

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(machine, range(2)))


@pytest.mark.slow
def test_two_machines(two_processes: Path, letters: Path, tmp_path: Path) -> None:
    """Bit for bit the run of one; resumed, a full disk of the first ends both with one line, and harms nothing."""
    flags = flags_of(two_processes, letters, "two", save_path=tmp_path / "run", cpu_processes=1, num_nodes=2)
    first, second = machines({**flags, "max_steps": 16})
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout == ""
    name = "saved_checkpoints/epoch01-global_step16.ckpt"
    mine, reference = (
        torch.load(folder / name, weights_only=True) for folder in (tmp_path / "run", two_processes / "two")
    )
    assert_same(mine["state_dict"], reference["state_dict"])
    assert_same(mine["optimizer_states"], reference["optimizer_states"])
    saved = listing(tmp_path / "run" / "saved_checkpoints")
    size = (tmp_path / "run" / name).stat().st_size
    first, second = machines({**flags, "max_steps": 0, "resume_checkpoint": "last"}, limit=str(size // 2048))
    assert (first.returncode, second.returncode) == (1, 0)  # the second is ended without a word
    told = [line for line in (first.stderr + second.stderr).splitlines() if line.startswith("error: ")]
    assert len(told) == 1, first.stderr + second.stderr
    assert re.match(
        rf"error: {tmp_path}/run/saved_checkpoints/epoch01-global_step20\S* could not be written: ", told[0]
    )
    assert 'train.py", line' not in first.stderr + second.stderr  # a traceback of ours
    assert listing(tmp_path / "run" / "saved_checkpoints") == saved
