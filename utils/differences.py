"""What a saved piece of work and the present command do not share, as a table for the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.tables import format_table, visible

LONGEST_VALUE = 60  # cells


@dataclass(frozen=True)
class Difference:
    """One thing that the saved work and this one do not share."""

    name: str
    saved: Any
    now: Any


def differences_of(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[Difference]:
    """Those entries of `now` that `saved` has otherwise or not at all, `prefix` before their names."""
    return [Difference(f"{prefix}{name}", saved.get(name), now[name]) for name in now if saved.get(name) != now[name]]


def difference_table(differences: Sequence[Difference], saved: str = "checkpoint") -> str:
    """Lines of name, saved value (under the heading `saved`) and present value, in columns."""
    rows = [("what", saved, "now")]
    rows += [(difference.name, _shown(difference.saved), _shown(difference.now)) for difference in differences]
    return "\n".join(format_table(rows[0], rows[1:], left=3))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()  # as the flags have it
    text = ", ".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)
    return visible(text, LONGEST_VALUE) if text else ""
