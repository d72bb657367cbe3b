"""Hostile files of every kind, seeded: a result or one of our errors, soon, and nothing left or touched beside them."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest

from tests.fuzz_trials import TRIALS, try_one

TRIES = 10  # of each kind; benchmarks/fuzz.py goes on from there


@pytest.mark.parametrize("name", TRIALS)
def test_hostile_files_are_told_in_a_line(name: str, tmp_path: Path) -> None:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [(seed, *try_one(name, seed, tmp_path)) for seed in range(TRIES)]
    logging.disable(logging.NOTSET)
    assert [result for result in results if result[2]] == []
    assert list(tmp_path.iterdir()) == []
