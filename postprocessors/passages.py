"""Passages of retrieval: texts that are found by their vectors, and that no model writes."""

from __future__ import annotations

from dataclasses import dataclass

from postprocessors.base import FreeText


@dataclass(frozen=True)
class Passage(FreeText):
    """A text that answers a query, as it stands."""

    name = "passage"
    kind = "passages"

    def describe(self) -> str:
        """`passages, found by their vectors`."""
        return "passages, found by their vectors"
