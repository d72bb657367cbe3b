"""Which words of a source speak for its label: those whose removal lowers the label's probability.

Leave-one-out over whitespace words (Li et al. 2016, "Understanding Neural Networks through Representation Erasure",
section 3). All removals of a batch are encoded and scored together, like lengths in one batch.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from config.templates import Variable
from datamodules.encoding.tokens import make_encoder
from metrics.uncertainty.calibration import Floats

WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class VariableWords:
    """The words of a source that stand where a template has its variables; those of the template itself are left out.

    Blanks of the template are any white space, as tokenizers fold it. Where a text of the template is not there, the
    source was cut: what stands before it goes on to the end.

    Args:
        parts: of the template (`config.templates.Template.parts`); none = every word.
        only: the variable whose words are wanted; "" = all.
    """

    parts: tuple[str | Variable, ...] = ()
    only: str = ""

    def find(self, text: str) -> list[tuple[int, int]]:
        """Begin and end of every word."""
        spans, end = [], len(text)
        parts = self.parts or (Variable(self.only),)
        names: list[str] = []  # of the variables whose text ends at `end`
        for number, part in reversed(list(enumerate(parts))):
            if isinstance(part, Variable):
                names.append(part.name)
                continue
            place = _place(part, text, end, first=number == 0)
            if place:
                spans.append((names, place[1], end))
                names, end = [], place[0]
        spans.append((names, 0, end))
        wanted = [(begin, end) for names, begin, end in reversed(spans) if names and self.only in ("", *names)]
        return [word.span() for begin, end in wanted for word in WORD.finditer(text, begin, end)]


def _place(literal: str, text: str, end: int, first: bool) -> tuple[int, int] | None:
    """Where the words of a literal stand before `end`, at the beginning or for the last time; None if nowhere."""
    words = re.compile(r"\s*" * first + r"\s+".join(map(re.escape, literal.split())))
    found = [words.match(text, 0, end)] if first else deque(words.finditer(text, 0, end), maxlen=1)
    return found[0].span() if literal.split() and found and found[0] else None


class Highlighter:
    """The words of sources, each with the probability that the label loses without it.

    Args:
        tokenizer: sources are read back with it, so that the words are those that the model saw.
        words: which words are looked at.
    """

    def __init__(self, tokenizer: Any, words: VariableWords) -> None:
        self.tokenizer = tokenizer
        self.encoder = make_encoder(tokenizer)
        self.words = words

    def __call__(
        self,
        sources: Sequence[np.ndarray],
        labels: Sequence[int],
        probabilities: Floats,
        score: Callable[[Sequence[np.ndarray]], Floats],
    ) -> list[tuple[tuple[str, float], ...]]:
        """(word, loss of probability) of every word of every source, in order.

        Args:
            labels: the label of each source.
            probabilities: (sources, labels) of the whole sources.
            score: (sources, labels) probabilities of other sources.
        """
        words: list[list[str]] = []
        shorter: list[str] = []
        for source in sources:
            text = self.tokenizer.decode(source, skip_special_tokens=True)
            spans = self.words.find(text)
            words.append([text[start:end] for start, end in spans])
            shorter += [_without(text, *span) for span in spans]
        if not shorter:
            return [() for _ in sources]
        unique = {text: number for number, text in enumerate(dict.fromkeys(shorter))}
        tokens = self.encoder.encode(pa.array(list(unique), pa.large_string()), 0, False)
        found = score([tokens.row(row) for row in range(len(unique))])
        left = iter([found[unique[text]] for text in shorter])
        return [
            tuple((word, float(shares[label] - next(left)[label])) for word in of_row)
            for of_row, label, shares in zip(words, labels, probabilities, strict=True)
        ]


def _without(text: str, start: int, end: int) -> str:
    """`text` without a word and one blank beside it: the one before it, else the one behind it."""
    if text[start - 1 : start].isspace():
        return text[: start - 1] + text[end:]
    return text[:start] + text[end + text[end : end + 1].isspace() :]
