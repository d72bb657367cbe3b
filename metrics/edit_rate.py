"""Metrics that count edits over the length of the references: above 1 (or 100) where much is added.

`wer` and `cer` give what jiwer 4 gives, `ter` what sacrebleu gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from metrics.registry import FRACTION, POINTS, TEXTS, Metric, register
from metrics.text import CorpusScore, Pair, RowSums

_BLANKS = re.compile(r"\s\s+")


class EditRate(RowSums):
    """Insertions, deletions and substitutions of all rows over the units of all references.

    References without any unit count with the others; alone they give the number of insertions.
    """

    def __init__(self, name: str, units: Callable[[str], Sequence[str]], how: str) -> None:
        self.name, self.units, self.how = name, units, how

    def rows(self, block: Sequence[Pair]) -> Sequence[Sequence[float]]:
        import editdistance

        found = {}
        for reference, prediction in set(block):
            wanted = self.units(reference)
            edits = int(editdistance.eval(wanted, self.units(prediction)))
            found[reference, prediction] = edits, len(wanted)
        return [found[pair] for pair in block]

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        edits, length = sums
        return {self.name: edits / (length or 1)}

    def details(self) -> dict[str, str]:
        return {self.name: self.how}


def words(text: str) -> list[str]:
    """Words as jiwer has them: runs of two or more blanks are one, and a blank (no single tab, no line break) parts."""
    return [word for word in _BLANKS.sub(" ", text).strip().split(" ") if word]


def _ter(*_: Any) -> CorpusScore:
    from sacrebleu.metrics.ter import TER

    return CorpusScore("ter", TER())


def _wer(*_: Any) -> EditRate:
    return EditRate("wer", words, "words parted by blanks, as they stand")


def _cer_nospace(*_: Any) -> EditRate:
    how = "Unicode characters as they stand, all blanks left out on both sides"
    return EditRate("cer_nospace", lambda text: "".join(text.split()), how)


def _cer(*_: Any) -> EditRate:
    return EditRate("cer", str.strip, "Unicode characters as they stand (NFC and NFD differ), blanks inside count")


register(
    *(
        Metric(name, TEXTS, description, compute, higher_is_better=False, scale=scale, default=False)
        for name, description, compute, scale in (
            ("ter", "edits and shifts of words over reference words (sacrebleu)", _ter, POINTS),
            ("wer", "edits of words over reference words, all rows together", _wer, FRACTION),
            ("cer", "edits of characters over reference characters, all rows together", _cer, FRACTION),
            ("cer_nospace", "the same without blanks", _cer_nospace, FRACTION),
        )
    )
)
