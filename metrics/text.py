"""Metrics of texts, added up block by block so that memory holds no corpus: exact match, BLEU, chrF, ROUGE.

All offline, on raw texts, without torch. A block is a list of (reference, prediction) pairs.
"""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib import metadata
from typing import Any, Protocol

from config.user_code import errors_of_user_code
from metrics.registry import METRICS, POINTS, TEXTS, Metric, number_of, register
from postprocessors.answers import expected
from postprocessors.base import FREE_TEXT, Postprocessor
from utils.errors import UserError

MECAB = "mecab_ko"  # the module that sacrebleu's tokenizer ko-mecab needs
BLOCK = 4096  # rows whose texts are in memory at once

Pair = tuple[str, str]  # reference, prediction


class TextMetric(Protocol):
    """A metric, or several that are computed together, of the rows that were added."""

    def add(self, block: Sequence[Pair]) -> None:
        """Take rows in."""

    def result(self) -> tuple[dict[str, float], dict[str, str]]:
        """The figures, and under the same names how they were computed; at least one row must have been added."""


class RowSums(ABC):
    """A `TextMetric` whose figures follow from sums over the rows alone, so that rows can also be drawn and weighed."""

    sums: Sequence[float] = ()

    @abstractmethod
    def rows(self, block: Sequence[Pair]) -> Sequence[Sequence[float]]:
        """What is added up: of every row as many numbers."""

    @abstractmethod
    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """The figures, from the sums over at least one row."""

    @abstractmethod
    def details(self) -> dict[str, str]:
        """How they were computed."""

    def add(self, block: Sequence[Pair]) -> None:
        rows = self.rows(block)
        self.sums = [sum(column) for column in zip(self.sums or [0] * len(rows[0]), *rows, strict=True)]

    def result(self) -> tuple[dict[str, float], dict[str, str]]:
        return self.figures(self.sums), self.details()


class ExactMatch(RowSums):
    """`exact_match`: share of predictions equal to their reference, 0 to 1."""

    def rows(self, block: Sequence[Pair]) -> Sequence[Sequence[float]]:
        return [(1, reference == prediction) for reference, prediction in block]

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        return {"exact_match": sums[1] / sums[0]}

    def details(self) -> dict[str, str]:
        return {}


class CorpusScore(RowSums):
    """What `corpus_score` of a sacrebleu metric gives for all rows together, with its signature as the detail.

    `corpus_score` keeps the counts of every row, and sacrebleu has no public way to add them up part by part.
    """

    def __init__(self, name: str, metric: Any) -> None:
        self.name, self.metric = name, metric

    def rows(self, block: Sequence[Pair]) -> Sequence[Sequence[float]]:
        references, predictions = zip(*block, strict=True)
        counts: Sequence[Sequence[float]] = self.metric._extract_corpus_statistics(predictions, [references])
        return counts

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        return {self.name: float(self.metric._compute_score_from_stats(sums).score)}

    def details(self) -> dict[str, str]:
        return {self.name: str(self.metric.get_signature())}


class Bleu(CorpusScore):
    """BLEU of the whole corpus in points (sacrebleu, Post 2018). Different tokenizers' figures cannot be compared.

    Args:
        tokenizer: as sacrebleu calls it; the standard one is `13a`, which splits at blanks and punctuation only, so
            that Korean particles and endings cling to their words.
    """

    def __init__(self, name: str, tokenizer: str) -> None:
        from sacrebleu.metrics.bleu import BLEU

        # force: no warning on standard error about lines that end in a detached period
        super().__init__(name, BLEU(tokenize=tokenizer, force=True))


class Chrf(CorpusScore):
    """chrF2 of the whole corpus in points (character 6-grams; sacrebleu, Popović 2015), chrF++ with word 2-grams."""

    def __init__(self, name: str) -> None:
        from sacrebleu.metrics.chrf import CHRF

        super().__init__(name, CHRF(word_order=2 if name == "chrf++" else 0))


class WordTokenizer:
    r"""Words for ROUGE: runs of letters and digits (`\w+`) of the lower-case NFC text, in any script, no stemming.

    The tokenizer that comes with `rouge_score` keeps a-z and 0-9 only, which drops every Hangul word.
    """

    def tokenize(self, text: str) -> list[str]:
        """The words of `text`; empty when it has none."""
        return re.findall(r"\w+", unicodedata.normalize("NFC", text).lower())


class FunctionTokenizer:
    """A function from a text to its tokens, as `rouge_score` wants it."""

    def __init__(self, tokenize: Callable[[str], list[str]]) -> None:
        self.tokenize = tokenize


def korean_morphemes() -> Callable[[str], list[str]]:
    """The function that splits a text as sacrebleu's tokenizer `ko-mecab` does."""
    from sacrebleu.tokenizers.tokenizer_ko_mecab import TokenizerKoMecab

    tokenizer: Callable[[str], str] = TokenizerKoMecab()  # type: ignore[no-untyped-call]
    return lambda text: tokenizer(text).split()


def kiwi_morphemes() -> Callable[[str], list[str]]:
    """The function that splits a text into the forms of the morphemes that Kiwi finds, in their order."""
    from kiwipiepy import Kiwi

    kiwi = Kiwi()
    return lambda text: [token.form for token in kiwi.tokenize(text)]


def ascii_words() -> Callable[[str], list[str]]:
    """The function that splits a text as `rouge_score` does by itself."""
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer().tokenize  # type: ignore[no-any-return]


# The tokens of ROUGE by the ending of the metric's name: what makes the function, and how a report calls them.
ROUGE_TOKENS: dict[str, tuple[Callable[[], Callable[[str], list[str]]], str]] = {
    "": (lambda: WordTokenizer().tokenize, r"words: NFC, lower case, \w+ (keeps Hangul), no stemming"),
    "_space": (lambda: str.split, "words parted by blanks, as they stand"),
    "_char": (lambda: lambda text: list("".join(text.split())), "characters as they stand, without blanks"),
    "_ko_mecab": (korean_morphemes, "morphemes of mecab-ko (sacrebleu's ko-mecab)"),
    "_kiwi": (kiwi_morphemes, "morphemes of kiwipiepy"),
    "_korouge": (lambda: lambda text: re.split(r"\s+", text.lower()), "words in lower case, as korouge-score has them"),
    "_ascii": (ascii_words, "words of a-z and 0-9 alone, as rouge_score has them, no stemming"),
}
ROUGE_NEEDS = {"_ko_mecab": MECAB, "_kiwi": "kiwipiepy"}


class Rouge(RowSums):
    """Mean over the rows of the ROUGE F-measure, 0 to 1 (rouge_score, Lin 2004).

    A row without a token (for `rouge2`: without two) on one side counts 0, as in `rouge_score`. `rougeLsum` takes each
    line of a text for a sentence.

    Args:
        names: of metrics that have the same tokens.
        tokens: the ending of their names, in `ROUGE_TOKENS`.
    """

    def __init__(self, names: Sequence[str] = ("rouge1", "rouge2", "rougeL"), tokens: str = "") -> None:
        from rouge_score.rouge_scorer import RougeScorer

        self.tokens = tokens
        self.types = {name.removesuffix(tokens): name for name in names}
        self.scorer = RougeScorer(list(self.types), tokenizer=FunctionTokenizer(ROUGE_TOKENS[tokens][0]()))

    def rows(self, block: Sequence[Pair]) -> Sequence[Sequence[float]]:
        found = {pair: self.scorer.score(*pair) for pair in set(block)}
        return [[1, *(float(found[pair][kind].fmeasure) for kind in self.types)] for pair in block]

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        return {name: total / sums[0] for name, total in zip(self.types.values(), sums[1:], strict=True)}

    def details(self) -> dict[str, str]:
        version = f" {metadata.version('kiwipiepy')}" if self.tokens == "_kiwi" else ""
        return {f"rouge{self.tokens}": f"F-measure, mean of rows; {ROUGE_TOKENS[self.tokens][1]}{version}"}


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
    parts: dict[str, TextMetric] = {}
    for compute, shared in names.items():
        with errors_of_user_code(f"metric {shared[0]}"):
            parts[shared[0]] = compute(
                shared, (expected(postprocessor, text, "") for text in references if text is not None)
            )
    found: dict[str, float] = {}
    details: dict[str, str] = {}
    if not parts:
        return found, details
    rows = 0
    for block in scored_blocks(references, predictions, postprocessor):
        rows += len(block)
        for name, part in parts.items():
            with errors_of_user_code(f"metric {name}"):
                part.add(block)
    for name, part in parts.items() if rows else ():
        with errors_of_user_code(f"metric {name}"):
            result: Any = part.result()
        if not (isinstance(result, tuple) and len(result) == 2 and all(isinstance(one, dict) for one in result)):
            wanted_form = "({name: figure}, {name: words})"
            raise UserError(f"metric {name}: result() gives {result!r:.100}, and not {wanted_form}")
        figures, how = result
        found |= {figure: number_of(figure, value) for figure, value in figures.items()}
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
    return Chrf("chrf")


def _chrf_with_words(*_: Any) -> TextMetric:
    return Chrf("chrf++")


def _bleu(names: Sequence[str], references: Iterable[str]) -> TextMetric:  # noqa: ARG001 (called as all are)
    return Bleu("bleu", "char" if mostly_cjk(references) else "13a")


def _bleu_of(tokenizer: str, names: Sequence[str], references: Iterable[str]) -> TextMetric:  # noqa: ARG001
    return Bleu(names[0], tokenizer)


def _rouge(names: Sequence[str], references: Iterable[str]) -> TextMetric:  # noqa: ARG001
    return Rouge(names)


def _rouge_of(tokens: str, names: Sequence[str], references: Iterable[str]) -> TextMetric:  # noqa: ARG001
    return Rouge(names, tokens)


def _tokenized() -> Iterator[Metric]:
    """The metrics with a tokenizer in their names."""
    for tokenizer in ("13a", "char", "intl", "ko-mecab"):
        name, compute = "bleu_" + tokenizer.replace("-", "_"), partial(_bleu_of, tokenizer)
        needs = MECAB if tokenizer == "ko-mecab" else ""
        description = f"BLEU (sacrebleu; tokenizer {tokenizer})"
        yield Metric(name, TEXTS, description, compute, scale=POINTS, default=False, needs=needs)
    for tokens in filter(None, ROUGE_TOKENS):
        compute = partial(_rouge_of, tokens)
        for kind in ("1", "2", "L", "Lsum"):
            name, needs = f"rouge{kind}{tokens}", ROUGE_NEEDS.get(tokens, "")
            description = f"ROUGE-{kind} F, {ROUGE_TOKENS[tokens][1]}"
            yield Metric(name, TEXTS, description, compute, how=f"rouge{tokens}", default=False, needs=needs)


register(
    Metric("exact_match", TEXTS, "share of outputs equal to their reference", _exact_match),
    Metric("chrf", TEXTS, "chrF2 of character 6-grams (sacrebleu)", _chrf, scale=POINTS),
    Metric("bleu", TEXTS, "BLEU (sacrebleu; tokenizer char for mostly CJK references, else 13a)", _bleu, scale=POINTS),
    Metric("rouge1", TEXTS, "ROUGE-1 F, words in any script", _rouge, how="rouge"),
    Metric("rouge2", TEXTS, "ROUGE-2 F, words in any script", _rouge, how="rouge"),
    Metric("rougeL", TEXTS, "ROUGE-L F, words in any script", _rouge, how="rouge"),
    Metric("chrf++", TEXTS, "chrF2 with word 2-grams (sacrebleu)", _chrf_with_words, scale=POINTS, default=False),
    *_tokenized(),
)
