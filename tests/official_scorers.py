"""Golden cases: small data sets with the figures of the field's own scorers, in a folder beside the repository."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "scorers"


def golden_cases(name: str) -> list[dict[str, Any]]:
    """The cases of a file; the test is skipped where they are not at hand."""
    path = FOLDER / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"no golden cases: {path} is not there")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def differing(name: str, figures: Callable[[dict[str, Any]], dict[str, float]], tolerance: float = 1e-9) -> list[str]:
    """The golden cases of a file whose figures are others, each told in a line.

    Args:
        figures: of a case, under names of its `expected`; NaN where the scorer has None, or stops.
    """
    told = []
    for case in golden_cases(name):
        for key, figure in figures(case).items():
            expected = case["expected"].get(key)
            same = (
                math.isnan(figure)
                if expected is None
                else math.isclose(figure, expected, rel_tol=tolerance, abs_tol=tolerance)
            )
            if not same:
                told.append(f"{case['id']} ({case['case']}): {key} {figure}, expected {expected}")
    return told
