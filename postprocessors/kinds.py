"""The kinds of output that a task may name as its `postprocessor`, and how one is read from a task file."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from postprocessors.answers import Answers
from postprocessors.base import FREE_TEXT, Postprocessor
from postprocessors.dependencies import Dependencies
from postprocessors.labels import LabelMap
from postprocessors.numbers import Number
from postprocessors.passages import Passage
from postprocessors.spans import TaggedText
from postprocessors.structured import JsonValue
from utils.errors import UserError, closest, errors_at, raise_if_any

# Frozen dataclasses with defaults for all fields, which are texts, numbers, yes or no, or lists of texts.
KINDS: dict[str, Callable[..., Postprocessor]] = {
    kind.kind: kind for kind in (Number, Answers, TaggedText, Dependencies, JsonValue, Passage)
}


def register(kind: Any) -> None:
    """Make a kind of output known to tasks under the `kind` of its class; best derived from `base.FreeText`.

    Raises `ValueError` when another one has the name, and for a class that a task file could not describe.
    """
    if not getattr(getattr(kind, "__dataclass_params__", None), "frozen", False):
        raise ValueError(f"{kind.__name__} is no frozen dataclass")
    if kind.kind in (FREE_TEXT.kind, LabelMap.kind) or KINDS.setdefault(kind.kind, kind) is not kind:
        raise ValueError(f"a kind of output named {kind.kind!r} is there already")


def postprocessor_of(value: object, place: str) -> Postprocessor:
    """What the name of a kind stands for, or a mapping with `kind` and fields of its class; scalars may be texts.

    Raises `UserError` with every problem; `place` opens them.
    """
    content: Mapping[str, Any] = value if isinstance(value, Mapping) else {"kind": value}
    kind = content.get("kind", "")
    if not isinstance(kind, str) or kind not in KINDS:
        known_kinds = f"{closest(str(kind), list(KINDS))}; known: {', '.join(KINDS)}"
        raise UserError(f"{place}: unknown kind {kind!r}{known_kinds}")
    types_of = typing.get_type_hints(KINDS[kind])
    known = {field.name: types_of[field.name] for field in dataclasses.fields(typing.cast(Any, KINDS[kind]))}
    problems = list(_unknown_fields(content, kind, known, place))
    values = {}
    for name in known.keys() & content.keys():
        try:
            values[name] = _field_value(content[name], known[name])
        except ValueError as error:
            problems.append(f"{place}: {name} {error}, not {content[name]!r}")
    raise_if_any(problems)
    with errors_at(place):
        return KINDS[kind](**values)


def _unknown_fields(content: Mapping[str, Any], kind: str, known: Mapping[str, Any], place: str) -> Iterator[str]:
    for name in content.keys() - known.keys() - {"kind"}:
        choices = f"{closest(str(name), list(known))}; known: {', '.join(known)}" if known else "; it has none"
        yield f"{place}: unknown field {name!r} of {kind}{choices}"


def _field_value(value: Any, kind: Any) -> Any:
    """Value of a field from primitives; `ValueError` says what it must be."""
    if isinstance(kind, types.UnionType):  # `float | None`
        return None if value in (None, "") else _field_value(value, kind.__args__[0])
    if typing.get_origin(kind) is tuple:
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ValueError("must be a list of texts")
    if kind is bool:
        words = {"true": True, "false": False}
        if str(value).lower() in words:
            return words[str(value).lower()]
        raise ValueError("must be true or false")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be plain text or a number")
    try:
        return kind(str(value))
    except ValueError:
        raise ValueError("must be a whole number" if kind is int else "must be a number") from None


def postprocessor_dict(postprocessor: Postprocessor) -> dict[str, Any]:
    """Inverse of `postprocessor_of`: primitives for checkpoints and JSON."""
    values = dataclasses.asdict(typing.cast(Any, postprocessor))
    lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
    return {"kind": postprocessor.kind, **values, **lists}
