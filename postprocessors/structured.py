"""Outputs that are JSON: the fields of a document, a list of triples, a function call."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

_OPENING = re.compile(r"[\[{]")
_CLOSING = {"{": "}", "[": "]"}


@dataclass(frozen=True)
class JsonValue:
    """A JSON object or list. Two are equal whose values are: blanks, the order of keys and how a number is written
    (1, 1.0, 1e0) do not count."""

    name = "JSON value"
    kind = "json"
    correction = "JSON found in the text, an unfinished end closed"
    texts = ()
    choices = ()
    longest_texts = ()

    def value(self, text: str) -> Any | None:
        """The object or list that the whole text is; None where it is none, has a key twice, NaN or infinity."""
        try:
            found = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_number)
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict | list) else None

    def correct(self, predictions: Sequence[str], max_distance: int | None = None) -> list[str | None]:
        """Every prediction that is a value, of the others the first one in it, closed where the text ends too early;
        None where there is none, or more than `max_distance` characters were left out or added."""
        return [text if self.value(text) is not None else self._found(text, max_distance) for text in predictions]

    def _found(self, text: str, max_distance: int | None) -> str | None:
        start = _OPENING.search(text)
        if start is None:
            return None
        found = _closed(text[start.start() :])
        if found is None or self.value(found) is None:
            return None
        changed = len(text) - 2 * len(_common_start(text[start.start() :], found)) + len(found)
        return None if max_distance is not None and changed > max_distance else found

    def reference_problem(self, reference: str) -> str:
        """It must be an object or a list."""
        return "reference is no JSON object or list" if self.value(reference) is None else ""

    def describe(self) -> str:
        """`JSON`."""
        return "JSON"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _number(text: str) -> int | float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(text)
    return int(number) if number.is_integer() else number


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _closed(text: str) -> str | None:
    """`text` up to the end of the value that it begins with; where it ends before, with what is missing there."""
    scan = _scanned(text)
    if scan is None or scan.end:
        return text[: scan.end] if scan else None
    whole = text + '"' * scan.inside + scan.closing
    if JsonValue().value(whole) is not None or scan.comma < 0:
        return whole
    before = _scanned(text[: scan.comma])  # what follows the last comma cannot be made whole
    return text[: scan.comma] + before.closing if before else None


class _Scan(NamedTuple):
    """Where the first value of a text ends (0: it does not), and else what it takes to close it."""

    end: int
    closing: str = ""
    inside: bool = False  # a text in quotes
    comma: int = -1  # the last one outside of them


def _scanned(text: str) -> _Scan | None:
    """None where a bracket is closed by another one."""
    open_: list[str] = []
    inside = escaped = False
    comma = -1
    for position, character in enumerate(text):
        if inside:
            inside = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            inside = True
        elif character in _CLOSING:
            open_.append(_CLOSING[character])
        elif character == ",":
            comma = position
        elif character in "}]":
            if not open_ or open_.pop() != character:
                return None
            if not open_:
                return _Scan(position + 1)
    return _Scan(0, "".join(reversed(open_)), inside, comma)


def _common_start(one: str, other: str) -> str:
    length = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]
