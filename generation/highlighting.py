"""Which words of a source speak for its label: those whose removal lowers the label's probability.

Leave-one-out over whitespace words (Li et al. 2016, "Understanding Neural Networks through Representation Erasure",
section 3). All removals of a batch are encoded and scored together, like lengths in one batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from config.templates import Template
from datamodules.encoding.tokens import make_encoder
from metrics.calibration import Floats

WORD = re.compile(r"\S+")


class Highlighter:
    """The words of sources, each with the probability that the label loses without it.

    Args:
        tokenizer: sources are read back with it, so that the words are those that the model saw.
        around: how many words at the beginning and at the end of a source are the template's, and are left out.
    """

    def __init__(self, tokenizer: Any, around: tuple[int, int] = (0, 0)) -> None:
        self.tokenizer = tokenizer
        self.encoder = make_encoder(tokenizer)
        self.around = around

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
            found = list(WORD.finditer(text))
            found = found[self.around[0] : len(found) - self.around[1]]
            words.append([word.group() for word in found])
            shorter += [_without(text, *word.span()) for word in found]
        if not shorter:
            return [() for _ in sources]
        tokens = self.encoder.encode(pa.array(shorter, pa.large_string()), 0, False)
        left = iter(score([tokens.row(row) for row in range(len(shorter))]))
        return [
            tuple((word, float(shares[label] - next(left)[label])) for word in of_row)
            for of_row, label, shares in zip(words, labels, probabilities, strict=True)
        ]


def _without(text: str, start: int, end: int) -> str:
    """`text` without a word and the blank before it; without the blank behind it where it is the first."""
    return text[: start - 1] + text[end:] if start else text[end + 1 :]


def template_words(template: Template) -> tuple[int, int]:
    """How many whole words a template puts before its first variable, and behind its last."""
    parts = template.parts or ()
    first, last = (part if isinstance(part, str) else "" for part in (parts[:1] or ("",)) + (parts[-1:] or ("",)))
    before = len(first.split()) - bool(first and not first[-1].isspace())
    behind = len(last.split()) - bool(last and not last[0].isspace())
    return max(before, 0), max(behind, 0)
