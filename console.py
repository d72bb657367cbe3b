"""Printing that outlives its reader: a closed pipe or a full disk behind standard output ends no run."""

from __future__ import annotations

import os
import sys


def prepare_streams() -> None:
    """Make standard output and error usable: never missing, and never an error for a letter they cannot show."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open for the whole process)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def tell(*lines: str) -> None:
    """Print lines at once; when standard output is gone, go on in silence."""
    try:
        for line in lines:
            print(line, flush=True)
    except OSError:
        silence()


def silence() -> None:
    """Give up standard output for good."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open for the rest of the process)
