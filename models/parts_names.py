"""Names around an output: the folder of its parts, and what its ending says. No torch import."""

from __future__ import annotations

import os
from pathlib import Path

PARTS_SUFFIX = ".parts"
MANIFEST = "manifest.json"
CLAIMS_NAME = "claims"
STRUCTURED = (".jsonl", ".tsv")


def parts_folder(output: Path) -> Path:
    """Where the finished parts of an output lie until it is whole."""
    return output.with_name(output.name + PARTS_SUFFIX)


def has_parts(output: Path) -> bool:
    """Whether a prediction for this output was begun and not ended: its folder of parts is there, with its manifest."""
    return bool(output.name) and os.path.isfile(parts_folder(output) / MANIFEST)


def is_structured(path: str | Path) -> bool:
    """Whether a file of that name holds more than the texts: scores and all else that was asked for."""
    return str(path).lower().endswith(STRUCTURED)
