"""Metrics of answers to questions, each equal to the scorer of its data set: KLUE-MRC, KorQuAD 1.0, SQuAD 1.1, 2.0.

A row's figure is the best over its right answers. They differ in what they take for the same text; see docs/metrics.md.
"""

from __future__ import annotations

import difflib
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from metrics.labels import CountedRows
from metrics.registry import NO_ANSWER, POINTS, Figure, Metric, register
from metrics.score import Scores
from postprocessors.answers import Answers
from utils.tables import counted

AnswerScore = Callable[[str, Sequence[str]], float]  # of an answer and the right ones of its question, 0 to 1

_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_KLUE_MARKS = re.compile(r"""['"《》<>〈〉]\(\)‘’""")  # as KLUE's scorer has it, which hardly any text holds
_KORQUAD_MARKS = str.maketrans(dict.fromkeys("'\"《》<>〈〉()‘’", " "))
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _one_blank(text: str) -> str:
    return " ".join(text.split())


def klue_normal(text: str) -> str:
    """In lower case, without ASCII punctuation, with one blank between words."""
    return _one_blank(_KLUE_MARKS.sub(" ", text.lower()).translate(_ASCII_PUNCTUATION))


def korquad_normal(text: str) -> str:
    """As `klue_normal`, but quotes and brackets, also Korean ones, become blanks."""
    return _one_blank(text.translate(_KORQUAD_MARKS).lower().translate(_ASCII_PUNCTUATION))


def squad_normal(text: str) -> str:
    """In lower case, without ASCII punctuation and then without English articles, with one blank between words."""
    return _one_blank(_ARTICLES.sub(" ", text.lower().translate(_ASCII_PUNCTUATION)))


def klue_em(answer: str, golds: Sequence[str]) -> float:
    """1 for a right answer, of an unanswerable question for none."""
    return float(klue_normal(answer) in map(klue_normal, golds or [""]))


def rouge_w(answer: str, golds: Sequence[str]) -> float:
    """F1 of the longest common substring over the characters of both: what KLUE calls ROUGE-W.

    The substring is that of `difflib`: in a right answer of 200 characters or more it does not begin with one that
    makes up more than a hundredth of it.
    """

    def f1(gold: str) -> float:
        if not gold or not found:
            return float(gold == found)
        common = difflib.SequenceMatcher(None, found, gold).find_longest_match().size
        return 2 * common / (len(found) + len(gold))

    found = klue_normal(answer)
    return max(f1(klue_normal(gold)) for gold in golds or [""])


def korquad_em(answer: str, golds: Sequence[str]) -> float:
    """1 for a right answer."""
    return float(korquad_normal(answer) in map(korquad_normal, golds))


def korquad_f1(answer: str, golds: Sequence[str]) -> float:
    """F1 of the characters, in any order and without blanks."""
    found = korquad_normal(answer).replace(" ", "")
    return max(_common_f1(found, korquad_normal(gold).replace(" ", "")) for gold in golds)


def squad_em(answer: str, golds: Sequence[str]) -> float:
    """1 for a right answer."""
    return float(squad_normal(answer) in map(squad_normal, golds))


def squad_f1(answer: str, golds: Sequence[str]) -> float:
    """F1 of the words, in any order; 0 where there is none."""
    found = squad_normal(answer).split()
    return max(_common_f1(found, squad_normal(gold).split()) for gold in golds)


def squad_v2_em(answer: str, golds: Sequence[str]) -> float:
    """As `squad_em`, but right answers without a word do not count; none is right where there is no other."""
    return squad_em(answer, _with_words(golds))


def squad_v2_f1(answer: str, golds: Sequence[str]) -> float:
    """As `squad_f1` of the right answers with a word; 1 for none where there is no such answer."""
    golds = _with_words(golds)
    return squad_f1(answer, golds) if golds != [""] else float(not squad_normal(answer))


def _with_words(golds: Sequence[str]) -> list[str]:
    return [gold for gold in golds if squad_normal(gold)] or [""]


def _common_f1(found: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of what two sides have in common, as often as both have it."""
    common = (Counter(found) & Counter(gold)).total()
    return 2 * common / (len(found) + len(gold)) if common else 0.0


def _by_row(measure: AnswerScore, of_unanswerable: bool) -> Callable[[CountedRows, Answers], list[float]]:
    """`measure` of each row in points; NaN of a question without a right answer, unless it knows such ones."""

    def compute(rows: CountedRows, postprocessor: Answers) -> list[float]:
        questions = zip(map(postprocessor.golds, rows.references), rows.predictions, strict=True)
        return [
            100 * measure(postprocessor.value(answer), golds) if golds or of_unanswerable else math.nan
            for golds, answer in questions
        ]

    return compute


def _mean(by_row: Callable[[CountedRows, Answers], list[float]]) -> Callable[[CountedRows, Answers], Figure]:
    """The mean of the rows, and of answerable and other questions by themselves where there are both."""

    def compute(rows: CountedRows, postprocessor: Answers) -> Figure:
        sums, counts = [0.0, 0.0], [0, 0]  # of answerable questions, of the others
        for reference, figure, count in zip(rows.references, by_row(rows, postprocessor), rows.counts, strict=True):
            kind = not postprocessor.golds(reference)
            sums[kind] += count * figure
            counts[kind] += count
        if math.isnan(sums[1]):
            told = f"{counted(counts[1], 'question')} without a right answer; SQuAD 2.0's figures know such"
            return Figure(math.nan, told)
        parts = [
            f"{name} {total / count:.2f} of {count:,}"
            for name, total, count in zip(("answerable", "unanswerable"), sums, counts, strict=True)
            if count
        ]
        return Figure(sum(sums) / sum(counts), ", ".join(parts) if counts[1] else "")

    return compute


def with_no_answer(
    scores: Scores,
    references: Sequence[str | None],
    predictions: Sequence[str],
    probabilities: Iterable[float],
) -> Scores:
    """`scores` with the figures of SQuAD 2.0 at the best threshold of the probability that there is no answer.

    A question above the threshold counts as unanswered, whatever was predicted. Of equal figures the lowest threshold
    is told, as the official scorer does.

    Args:
        probabilities: of each row.
    """
    answers = scores.postprocessor
    assert isinstance(answers, Answers)
    gains: dict[str, list[tuple[float, float]]] = {name: [] for name in BEST}
    unanswerable = 0
    for reference, prediction, probability in zip(references, predictions, probabilities, strict=True):
        if reference is None:
            continue
        golds, answer = answers.golds(reference), answers.value(prediction)
        unanswerable += not golds
        for name, measure in BEST.items():
            gains[name].append((probability, measure(answer, golds) if golds else -float(bool(answer))))
    figures, details = {}, {}
    for name, of_rows in gains.items():
        figure, threshold = _best_threshold(of_rows, unanswerable)
        figures[name] = 100 * figure / len(of_rows) if of_rows else math.nan
        details[name] = f"unanswered above {threshold:g}"
    return replace(scores, metrics=scores.metrics | figures, details={**scores.details, **details})


def _best_threshold(gains: Sequence[tuple[float, float]], unanswered: int) -> tuple[float, float]:
    """The largest sum of scores, and its threshold: questions are answered by rising probability of no answer."""
    best = current = float(unanswered)
    threshold = 0.0
    for probability, gain in sorted(gains, key=lambda pair: pair[0]):
        current += gain
        if current > best:
            best, threshold = current, probability
    return best, threshold


BEST: dict[str, AnswerScore] = {"squad_v2_best_em": squad_v2_em, "squad_v2_best_f1": squad_v2_f1}
register(
    *(
        Metric(name, NO_ANSWER, f"{name[-2:].upper()} of SQuAD 2.0 at the best threshold of no answer", scale=POINTS)
        for name in BEST
    )
)
SCORES: dict[str, tuple[AnswerScore, bool, str]] = {
    "klue_em": (klue_em, True, "share of right answers (KLUE-MRC)"),
    "rouge_w": (rouge_w, True, "F1 of the longest common substring (KLUE-MRC)"),
    "korquad_em": (korquad_em, False, "share of right answers (KorQuAD 1.0)"),
    "korquad_f1": (korquad_f1, False, "F1 of the characters (KorQuAD 1.0)"),
    "squad_em": (squad_em, False, "share of right answers (SQuAD 1.1)"),
    "squad_f1": (squad_f1, False, "F1 of the words (SQuAD 1.1)"),
    "squad_v2_em": (squad_v2_em, True, "share of right answers (SQuAD 2.0)"),
    "squad_v2_f1": (squad_v2_f1, True, "F1 of the words (SQuAD 2.0)"),
}
register(
    *(
        Metric(
            name,
            "answers",
            description,
            _mean(by_row),
            scale=POINTS,
            default=name.startswith("squad_v2"),  # defined for every row in any language
            by_row=by_row,
        )
        for name, by_row, description in (
            (name, _by_row(measure, of_unanswerable), description)
            for name, (measure, of_unanswerable, description) in SCORES.items()
        )
    )
)
