"""Cases computed by the official scorers of each field; they lie outside the tree, beside it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.command import ROOT

FOLDER = ROOT.parent / "shared" / "data" / "scorers"


def golden_cases(name: str) -> list[dict[str, Any]]:
    """The cases of one file, in its order; the test is skipped where the file is missing."""
    path = FOLDER / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there: cases computed by official scorers are kept out of the tree")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
