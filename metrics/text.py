"""Metrics of texts, added up block by block so that memory holds no corpus: exact match, BLEU, chrF, ROUGE.

All offline, on raw texts, without torch. A block is a list of (reference, prediction) pairs.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from metrics.registry import METRICS, POINTS, TEXTS, Metric, register
from postprocessors.answers import expected
from postprocessors.base import FREE_TEXT, Postprocessor

BLOCK = 4096  # rows whose texts are in memory at once

Pair = tuple[str, str]  # reference, prediction


class TextMetric(Protocol):
    """A metric, or several that are computed together, of the rows that were added."""

    def add(self, block: Sequence[Pair]) -> None:
        """Take rows in."""

    def result(self) -> tuple[dict[str, float], dict[str, str]]:
        """The figures, and under the same names how they were computed; at least one row must have been added."""


class ExactMatch:
    """`exact_match`: share of predictions equal to their reference, 0 to 1."""

    def __init__(self) -> None:
        self.rows = self.equal = 0

    def add(self, block: Sequence[Pair]) -> None:
        self.rows += len(block)
        self.equal += sum(reference == prediction for reference, prediction in block)

    def result(self) -> tuple[dict[str, float], dict[str, str]]:
        return {"exact_match": self.equal / self.rows}, {}


class CorpusScore:
    """What `corpus_score` of a sacrebleu metric gives for all rows together, with its signature as the detail.

    `corpus_score` keeps the counts of every row, and sacrebleu has no public way to add them up part by part.
    """

    def __init__(self, name: str, metric: Any) -> None:
        self.name, self.metric = name, metric
        self.counts: list[int] = []

    def add(self, block: Sequence[Pair]) -> None:
        references, predictions = zip(*block, strict=True)
        rows = self.metric._extract_corpus_statistics(predictions, [references])
        self.counts = [sum(column) for column in zip(self.counts or [0] * len(rows[0]), *rows, strict=True)]

    def result(self) -> tuple[dict[str, float], dict[str, str]]:
        score = float(self.metric._compute_score_from_stats(self.counts).score)
        return {self.name: score}, {self.name: str(self.metric.get_signature())}


class Bleu(CorpusScore):
    """`bleu`: BLEU of the whole corpus in points (sacrebleu, Post 2018).

    Args:
        characters: tokenizer `char` in place of the standard one, `13a`: for references that are `mostly_cjk`, because
            13a only splits at blanks and punctuation, and Korean particles and endings cling to their words (`ko-mecab`
            needs a dictionary that is not installed). Figures from different tokenizers cannot be compared.
    """

    def __init__(self, characters: bool) -> None:
        from sacrebleu.metrics.bleu import BLEU

        # force: no warning on standard error about lines that end in a detached period
        super().__init__("bleu", BLEU(tokenize="char" if characters else "13a", force=True))


class Chrf(CorpusScore):
    """`chrf`: chrF2 of the whole corpus in points (character 6-grams; sacrebleu, Popović 2015)."""

    def __init__(self) -> None:
        from sacrebleu.metrics.chrf import CHRF

        super().__init__("chrf", CHRF())


class WordTokenizer:
    r"""Words for ROUGE: runs of letters and digits (`\w+`) of the lower-case NFC text, in any script, no stemming.

    The tokenizer that comes with `rouge_score` keeps a-z and 0-9 only, which drops every Hangul word.
    """

    def tokenize(self, text: str) -> list[str]:
        """The words of `text`; empty when it has none."""
        return re.findall(r"\w+", unicodedata.normalize("NFC", text).lower())


class Rouge:
    """Mean over the rows of the ROUGE F-measure, 0 to 1 (rouge_score, Lin 2004; words as in `WordTokenizer`).

    A row without a word (for `rouge2`: without two) on one side counts 0, as in `rouge_score`.
    """

    def __init__(self, names: Sequence[str] = ("rouge1", "rouge2", "rougeL")) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        self.scorer = RougeScorer(list(names), tokenizer=WordTokenizer())
        self.rows, self.totals = 0, dict.fromkeys(names, 0.0)

    def add(self, block: Sequence[Pair]) -> None:
        self.rows += len(block)
        for (reference, prediction), count in Counter(block).items():
            for name, found in self.scorer.score(reference, prediction).items():
                self.totals[name] += count * float(found.fmeasure)

    def result(self) -> tuple[dict[str, float], dict[str, str]]:
        how = r"F-measure, mean of rows; words: NFC, lower case, \w+ (keeps Hangul), no stemming"
        return {name: total / self.rows for name, total in self.totals.items()}, {"rouge": how}


def text_metrics(
    references: Sequence[str | None],
    predictions: Sequence[str],
    wanted: Sequence[str],
    postprocessor: Postprocessor = FREE_TEXT,
) -> tuple[dict[str, float], dict[str, str]]:
    """The text metrics among `wanted`, in that order, and how they were computed; nothing without a reference.

    Args:
        references: None for a row that is left out.
        postprocessor: says of each reference which text a prediction is compared with.
    """
    names: dict[Any, list[str]] = {}  # what computes them -> those that it computes together
    for metric in (METRICS[name] for name in wanted):
        if metric.takes == TEXTS:
            names.setdefault(metric.compute, []).append(metric.name)
    parts: list[TextMetric] = [
        compute(shared, (expected(postprocessor, text, "") for text in references if text is not None))
        for compute, shared in names.items()
    ]
    found: dict[str, float] = {}
    details: dict[str, str] = {}
    if not parts:
        return found, details
    rows = 0
    for block in scored_blocks(references, predictions, postprocessor):
        rows += len(block)
        for part in parts:
            part.add(block)
    for part in parts if rows else ():
        figures, how = part.result()
        found.update(figures)
        details.update(how)
    return {name: found[name] for name in wanted if name in found}, details


def scored_blocks(
    references: Sequence[str | None], predictions: Sequence[str], postprocessor: Postprocessor
) -> Iterator[list[Pair]]:
    """The rows that have a reference, up to `BLOCK` at a time."""
    for start in range(0, len(references), BLOCK):
        rows = zip(references[start : start + BLOCK], predictions[start : start + BLOCK], strict=True)
        block = [
            (expected(postprocessor, text, prediction), prediction) for text, prediction in rows if text is not None
        ]
        if block:
            yield block


def mostly_cjk(texts: Iterable[str]) -> bool:
    """Whether Hangul, kana and Han make up more than half of the letters."""
    letters = cjk = 0
    for text in texts:
        letters += sum(map(str.isalpha, text))
        cjk += len(_CJK.findall(text))
    return 2 * cjk > letters


_CJK = re.compile("[\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff]")


def _exact_match(*_: Any) -> TextMetric:
    return ExactMatch()


def _chrf(*_: Any) -> TextMetric:
    return Chrf()


def _bleu(names: Sequence[str], references: Iterable[str]) -> TextMetric:  # noqa: ARG001 (called as all are)
    return Bleu(mostly_cjk(references))


def _rouge(names: Sequence[str], references: Iterable[str]) -> TextMetric:  # noqa: ARG001
    return Rouge(names)


register(
    Metric("exact_match", TEXTS, "share of outputs equal to their reference", _exact_match),
    Metric("chrf", TEXTS, "chrF2 of character 6-grams (sacrebleu)", _chrf, scale=POINTS),
    Metric("bleu", TEXTS, "BLEU (sacrebleu; tokenizer char for mostly CJK references, else 13a)", _bleu, scale=POINTS),
    Metric("rouge1", TEXTS, "ROUGE-1 F, words in any script", _rouge, how="rouge"),
    Metric("rouge2", TEXTS, "ROUGE-2 F, words in any script", _rouge, how="rouge"),
    Metric("rougeL", TEXTS, "ROUGE-L F, words in any script", _rouge, how="rouge"),
)
