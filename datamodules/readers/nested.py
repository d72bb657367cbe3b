"""Dotted names of columns: keys within keys and places in lists of JSON, fields within structs of Arrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import pyarrow as pa

MISSING = object()

Node = TypeVar("Node")


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """The value of a key, of `a.b`: key b of the object at key a, or of `a.0`: the first of the list at key a;
    `MISSING` where there is none.

    A key that holds the dot itself wins.
    """
    if name in row:
        return row[name]
    inner = (_inner_value(value, rest) for value, rest in _steps(name, row.get))
    return next((value for value in inner if value is not MISSING), MISSING)


def _inner_value(value: Any, name: str) -> Any:
    if isinstance(value, list):
        place, _, rest = name.partition(".")
        value = value[int(place)] if place.isdecimal() and int(place) < len(value) else MISSING
        if not rest or value is MISSING:
            return value
        name = rest
    return value_at(value, name) if isinstance(value, Mapping) else MISSING


def fields_at(schema: pa.Schema, name: str) -> tuple[str, ...] | None:
    """The column and the fields in it that a name stands for, by the rule of `value_at`; None where there are none."""
    if name in schema.names:
        return (name,)
    types = dict(zip(schema.names, schema.types, strict=True))
    for kind, rest in _steps(name, types.get):
        if pa.types.is_struct(kind):
            inner = fields_at(pa.schema(list(kind)), rest)
            if inner:
                return name.removesuffix(f".{rest}"), *inner
    return None


def _steps(name: str, at: Callable[[str], Node | None]) -> Iterator[tuple[Node, str]]:
    """What stands at the start of a dotted name, the longest start first, and the rest of the name."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        node = at(".".join(parts[:length]))
        if node is not None:
            yield node, ".".join(parts[length:])
