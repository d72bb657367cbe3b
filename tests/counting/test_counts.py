"""On a device that counts: no operation mixes devices, results are those of the CPU, waits of the host are pinned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("t5", "mt5", "umt5", "bart", "mbart")


def test_what_a_gpu_would_be_asked_for() -> None:
    """One process for all architectures: its start takes as long as the counting."""
    command = [sys.executable, "-m", "tests.counting", *ARCHITECTURES]
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    jobs = {
        (architecture, precision, job): counts
        for architecture, precisions in found.items()
        for precision, jobs in precisions.items()
        for job, counts in jobs.items()
    }
    assert {job for job, counts in jobs.items() if counts.get("as on the CPU") is False} == set()
    waiting = {job: counts["syncs"] for job, counts in jobs.items() if job[2] in ("training", "validation")}
    assert {job: places for job, places in waiting.items() if places} == {}
    assert len(waiting) == 2 * 2 * len(ARCHITECTURES)
    adafactor = jobs["t5", "fp32", "adafactor"]
    # Of six shapes, however many parameters there are of each: 12 layers have 199 launches as well, for 257.
    assert (adafactor["syncs"], adafactor["launches"], adafactor["parameters"]) == ({}, 199, 47)
    decoding = {job: counts for job, counts in jobs.items() if "steps" in counts}
    # One look in four steps, one copy of the outputs, and whether all scores were finite.
    often = {job: counts["syncs"] for job, counts in decoding.items() if waits(counts) > counts["steps"] // 4 + 2}
    assert often == {}
    assert {waits(counts) for job, counts in jobs.items() if job[2] == "label scores"} == {1}


def waits(counts: dict[str, Any]) -> int:
    """How often the host waited for the device."""
    return sum(counts["syncs"].values())
