"""On a device that counts: no operation mixes devices, results are those of the CPU, waits of the host are pinned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("t5", "mt5", "umt5", "bart", "mbart")
# The layers of T5-base, ByT5-small and BART-base: casts and, at most, launches of a training step in bf16. In
# docs/benchmarks.md they stand beside those of `transformers`.
SIZES = {"t5:12+12": (263, 4137), "mt5:12+4": (159, 2715), "bart:6+6": (130, 2256)}


@pytest.mark.slow
def test_what_a_gpu_would_be_asked_for() -> None:
    """One process for all architectures: its start takes as long as the counting."""
    command = [sys.executable, "-m", "tests.counting", *ARCHITECTURES, *SIZES, "loss"]
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    check_the_loss(found.pop("loss"))
    large = {name: found.pop(name)["bf16"]["training"] for name in SIZES}
    assert {name: counts["casts"] for name, counts in large.items()} == {name: pair[0] for name, pair in SIZES.items()}
    assert {name for name, counts in large.items() if counts["launches"] > SIZES[name][1]} == set()
    jobs = {
        (architecture, precision, job): counts
        for architecture, precisions in found.items()
        for precision, jobs in precisions.items()
        for job, counts in jobs.items()
    }
    assert {job for job, counts in jobs.items() if counts.get("as on the CPU") is False} == set()
    waiting = {job: counts["syncs"] for job, counts in jobs.items() if job[2] in ("training", "validation", "resumed")}
    assert {job: places for job, places in waiting.items() if places} == {}
    assert len(waiting) == (2 * 2 + 1) * len(ARCHITECTURES)
    assert [counts["syncs"] for job, counts in jobs.items() if job[2] == "retrieval"] == [{}] * 4
    # Whole numbers are not among them, so that -deterministic refuses nothing of training and its validations.
    assert {job[2] for job, counts in jobs.items() if counts["not deterministic"]} == {"samples"}
    adafactor = jobs["t5", "fp32", "adafactor"]
    # Of six shapes, however many parameters there are of each: 12 layers have 199 launches as well, for 257.
    assert (adafactor["syncs"], adafactor["launches"], adafactor["parameters"]) == ({}, 199, 47)
    decoding = {job: counts for job, counts in jobs.items() if "steps" in counts}
    # One look in four steps, one copy of the outputs, and whether all scores were finite.
    often = {job: counts["syncs"] for job, counts in decoding.items() if waits(counts) > counts["steps"] // 4 + 2}
    assert often == {}
    assert {waits(counts) for job, counts in jobs.items() if job[2] == "label scores"} == {1}
    # In bf16, a step: the embedding, three norms of each of two layers, the last one; a batch: sources, looks, outputs.
    casts = {job: (counts["casts"], counts["steps"]) for job, counts in decoding.items() if job[1] == "bf16"}
    assert {job: told for job, told in casts.items() if told[0] > 8 * told[1] + 24} == {}
    released = {job: counts for job, counts in jobs.items() if job[2] == "released"}
    assert len(released) == 2 * len(ARCHITECTURES)
    assert {counts["no token beyond"] for counts in released.values()} == {True}
    # One copy of the weights; in the small models norms and the positions of BART are a tenth of them, in fp32.
    assert {job: counts["bytes a parameter"] for job, counts in released.items() if not is_lean(job[1], counts)} == {}


def is_lean(precision: str, counts: dict[str, Any]) -> bool:
    """Whether little more than one copy of the weights is left."""
    return counts["bytes a parameter"][1] < {"fp32": 4.5, "bf16": 2.5}[precision]


def check_the_loss(precisions: dict[str, Any]) -> None:
    """Logits are not rounded below fp32, gradients once, to the precision of the products."""
    for precision, error in (("float32", 1e-6), ("bfloat16", 4e-3), ("float16", 5e-4)):
        loss, *gradients = precisions[precision]["errors"]
        assert loss < 1e-6, precision
        assert len(gradients) == 3
        assert max(gradients) < error, precision
        assert precisions[precision]["syncs"] == {}


def waits(counts: dict[str, Any]) -> int:
    """How often the host waited for the device."""
    return sum(counts["syncs"].values())
