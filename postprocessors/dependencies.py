"""Dependency trees of the words of a sentence, as one line of text: written, and read back word by word. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from utils.errors import raise_if_any

MARK = "▁"  # U+2581, between words
START = "deprel: "


class Arc(NamedTuple):
    """The head of a word, counted from 1 (0: the root), and its relation to it; None where they cannot be read."""

    head: int | None
    relation: str | None


NO_ARC = Arc(None, None)


def dependency_line(words: Sequence[str], arcs: Sequence[Arc]) -> str:
    """The tree as a model should write it: `deprel: (1/2, 3, NP_SBJ)▁...`, the word's number and its length in
    characters, its head and its relation; the number of words on a second line."""
    pieces = [
        f"({number}/{len(word)}, {head}, {relation})"
        for number, (word, (head, relation)) in enumerate(zip(words, arcs, strict=True), 1)
    ]
    return _joined(pieces)


def _joined(pieces: Sequence[str]) -> str:
    return f"{START}{MARK.join(pieces)}\nword_counts: {len(pieces)}"


@dataclass(frozen=True)
class Dependencies:
    """Dependency lines with these relations, in the order that metrics know them by; written as capitals and `_`."""

    relations: tuple[str, ...] = ()

    name = "dependency line"
    kind = "dependencies"
    correction = "words that can be read"
    texts = ()
    choices = ()
    longest_texts = ()

    def __post_init__(self) -> None:
        problems = [] if self.relations else ["relations: name the relations, for example [NP_SBJ, NP_OBJ, VP]"]
        problems += [
            f"relations: {relation!r} is no relation; it may have capital letters and _ only"
            for relation in self.relations
            if not re.fullmatch("[A-Z_]+", relation)
        ]
        twice = {relation for relation in self.relations if self.relations.count(relation) > 1}
        problems += [f"relations: {relation!r} stands there twice" for relation in sorted(twice)]
        raise_if_any(problems)

    @cached_property
    def number(self) -> dict[str, int]:
        """The place of every relation in the list."""
        return {relation: place for place, relation in enumerate(self.relations)}

    def arcs(self, text: str) -> list[Arc]:
        """The arc of every word, by its place in the first line that starts `depre`.

        Its numbers, lengths and word count are not checked, nor what stands behind a word. (The rule of the scripts in
        etri-crossmodal/llm-downstream-s2s, `tools/compute-metric-dp.py`.)
        """
        line = next((line for line in text.split("\n") if line.startswith("depre")), None)
        if line is None:
            return []
        found = [re.match(r"\(.*?, (\d{1,999}), ([A-Z_]+)\)", piece) for piece in line[len(START) :].split(MARK)]
        return [Arc(int(match[1]), match[2]) if match else NO_ARC for match in found]

    def value(self, text: str) -> tuple[Arc, ...] | None:
        """The arcs, if every word is written as it should be, with a head in the sentence and a known relation."""
        tree = self.tree(text)
        complete = text.startswith(START) and text.endswith(f")\nword_counts: {len(tree)}")
        return tree if tree and complete else None

    def tree(self, text: str) -> tuple[Arc, ...]:
        """The arcs that `arcs` reads, if all have a head in the sentence and a known relation; else none."""
        arcs = self.arcs(text)
        known = all(head is not None and head <= len(arcs) and relation in self.number for head, relation in arcs)
        return tuple(arcs) if known else ()

    def correct(self, predictions: Sequence[str], max_distance: int | None = None) -> list[str | None]:  # noqa: ARG002
        """The words that can be read, whatever stands between them: some tokenizers write a blank for `▁`, and none for
        a newline. None without any."""
        return [self._corrected(text) for text in predictions]

    def _corrected(self, text: str) -> str | None:
        pieces = re.findall(r"\(([^(),]*), *(\d+), *([A-Z_]+)\)", text)
        if self.value(text) is not None or not pieces:
            return text if pieces else None
        return _joined([f"({', '.join(piece)})" for piece in pieces])

    def reference_problem(self, reference: str) -> str:
        """It must be a tree."""
        arcs = self.arcs(reference)
        if any(arc == NO_ARC for arc in arcs) or not arcs:
            return "reference is no dependency line"
        unknown = [
            f"{arc.relation} (word {place})" for place, arc in enumerate(arcs, 1) if arc.relation not in self.number
        ]
        if unknown:
            return f"reference has a relation that the task does not name: {unknown[0]}"
        return "" if self.tree(reference) else "reference has a head beyond its last word"

    def describe(self) -> str:
        """`dependencies with 38 relations`."""
        return f"dependencies with {len(self.relations)} relations"
