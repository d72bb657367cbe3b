"""What a kind of output gives, and the plainest one: free text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Postprocessor(Protocol):
    """What the texts of a model stand for; scorer, report, validation and prediction ask it and know no kinds."""

    @property
    def name(self) -> str:
        """The word for one in reports: `label`."""

    @property
    def kind(self) -> str:
        """What its metrics take (`metrics.registry`), and the word for several in reports: `labels`."""

    @property
    def correction(self) -> str:
        """What `correct` gives, for reports: `nearest label by edit distance`."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that values are made of, each value a tuple of them; empty where any other may come."""

    @property
    def choices(self) -> tuple[str, ...]:
        """All texts that a model should write, for constrained decoding; empty where they cannot be listed."""

    @property
    def longest_texts(self) -> Sequence[str]:
        """Texts of which one is the longest that a model should write; empty without a bound."""

    def value(self, text: str) -> Any | None:
        """What `text` stands for; None when it is not exactly as the model should write it."""

    def correct(self, predictions: Sequence[str], max_distance: int | None = None) -> list[str | None]:
        """Every prediction as the model should have written it; None where that cannot be told, or is farther than
        `max_distance` characters away."""

    def reference_problem(self, reference: str) -> str:
        """Why nothing can be scored against this reference, in a few words; empty when it can."""

    def describe(self) -> str:
        """In a few words, for messages."""


class FreeText:
    """Every text stands for itself; nothing is invalid, and nothing is corrected."""

    name = "text"
    kind = "texts"
    correction = "none"
    texts: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    longest_texts: tuple[str, ...] = ()

    def value(self, text: str) -> str:
        """The text."""
        return text

    def correct(self, predictions: Sequence[str], max_distance: int | None = None) -> list[str | None]:  # noqa: ARG002
        """The predictions."""
        return list(predictions)

    def reference_problem(self, reference: str) -> str:  # noqa: ARG002
        """Nothing."""
        return ""

    def describe(self) -> str:
        """`free text`."""
        return "free text"


FREE_TEXT = FreeText()


def said(postprocessor: Postprocessor) -> str:
    """What the texts stand for, in a message: `labels: 0=no, 1=yes`, `labels: free text`, `outputs: spans of PS`."""
    word = "labels" if postprocessor.kind in (FREE_TEXT.kind, "labels") else "outputs"
    return f"{word}: {postprocessor.describe()}"
