"""Reading JSON that others may have written: bounded in bytes and in depth."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from utils.errors import UserError

LARGEST = 1 << 28  # bytes; the largest tokenizers have a tenth of that
DEEPEST = 100  # levels; json gives up near 1,000, and what goes through its content later on may do so earlier


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON in UTF-8, larger than `LARGEST`, nested deeper than `DEEPEST`, or a pipe or device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("no regular file")
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"larger than {LARGEST:,} bytes")
    return parse_json(content.decode("utf-8"))


def read_object(path: Path, place: str) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Raises:
        UserError: opened by `place`: the file cannot be read, or holds something else.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: {path} is torn or no JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{place}: {path} is damaged: an object is expected, not {str(content)[:60]}")
    return content


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, with a ValueError for what is nested deeper than `DEEPEST`."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from None
    depth, level = 0, [content]
    while level := [value for value in level if isinstance(value, dict | list)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        level = [child for value in level for child in (value.values() if isinstance(value, dict) else value)]
    return content
