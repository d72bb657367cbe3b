"""Dotted names of columns: keys within keys of JSON objects, fields within structs of Arrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import pyarrow as pa

MISSING = object()

Node = TypeVar("Node")


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """The value of a key, or of `a.b`: key b of the object at key a; `MISSING` where there is none.

    A key that holds the dot itself wins.
    """
    if name in row:
        return row[name]
    inner = (value_at(value, rest) for value, rest in _steps(name, row.get) if isinstance(value, Mapping))
    return next((value for value in inner if value is not MISSING), MISSING)


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
