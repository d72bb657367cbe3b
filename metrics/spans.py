"""Metrics of tagged sentences, as KLUE scores named entities: spans, and characters, from generated text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from metrics.f1 import f1, f1_by_class, mean
from metrics.labels import CountedRows
from metrics.registry import POINTS, Figure, Metric, register
from postprocessors.spans import Span, TaggedText, spans_of_tags, tags_of_spans
from utils.tables import counted

_PAIR = re.compile(r"<(.+?:[A-Z][A-Z])>")


@dataclass
class SpanCounts:
    """Spans and characters of sentences, added up as KLUE-baseline does (`metrics/functional.py`).

    Characters are all but U+0020. Before and after each sentence stands an O, the place of [CLS] and [SEP] in the
    original: it counts as a character, and no span goes from one sentence to the next.
    """

    types: Sequence[str]
    right: Counter[str] = field(default_factory=Counter)  # spans by type
    expected: Counter[str] = field(default_factory=Counter)
    given: Counter[str] = field(default_factory=Counter)
    characters: Counter[tuple[str, str]] = field(default_factory=Counter)  # (tag of the reference, of the prediction)

    def add(self, reference: Sequence[str], prediction: Sequence[str], count: int) -> None:
        """Take in a sentence that occurs `count` times: a tag for each of its characters."""
        wanted, found = set(spans_of_tags(reference)), set(spans_of_tags(prediction))
        for counts, spans in ((self.right, wanted & found), (self.expected, wanted), (self.given, found)):
            for span in spans:
                counts[span.type] += count
        for pair in zip(reference, prediction, strict=True):
            self.characters[pair] += count
        self.characters["O", "O"] += 2 * count

    def entity_macro_f1(self) -> float:
        """Mean over the types that occur on either side; NaN without any."""
        kinds = self.expected.keys() | self.given.keys()
        scores = [f1(self.right[kind], self.expected[kind], self.given[kind]) for kind in kinds]
        return 100 * mean(scores) if scores else math.nan

    def entity_micro_f1(self) -> float:
        """Over all spans; 0 without any."""
        return 100 * f1(self.right.total(), self.expected.total(), self.given.total())

    def character_macro_f1(self) -> float:
        """Mean over O and the B and I of every type; a tag that is on neither side counts 1."""
        found = f1_by_class(self.characters)
        tags = ["O", *(f"{mark}-{kind}" for kind in self.types for mark in "BI")]
        return 100 * mean(found.get(tag, 1.0) for tag in tags)


@dataclass
class PairCounts:
    """Pairs of an entity and its type in lines of text, wherever they stand, as the older tool counts them
    (etri-crossmodal/llm-downstream-s2s, `tools/compute-metric-ner.py`): any two capitals are a type; an entity that is
    found has the type of its last mark; each time that it is expected counts as found, so that F1 may exceed 1; a
    prediction without any counts as one that is wrong."""

    right: int = 0
    expected: int = 0
    given: int = 0

    def add(self, reference: str, prediction: str, count: int) -> None:
        """Take in a row that occurs `count` times."""
        wanted, found = ([pair.rsplit(":", 1) for pair in _PAIR.findall(text)] for text in (reference, prediction))
        types: dict[str, str] = dict(found)
        self.right += count * sum(types.get(text) == kind for text, kind in wanted)
        self.expected += count * len(wanted)
        self.given += count * max(len(found), 1)

    def f1(self) -> float:
        """F1 as the tool computes it; NaN without an expected pair."""
        if not self.expected:
            return math.nan
        precision, recall = self.right / self.given, self.right / self.expected
        return 2 * precision * recall / (precision + recall + 1e-8)

    @classmethod
    def of(cls, rows: CountedRows, postprocessor: TaggedText) -> PairCounts:  # noqa: ARG003 (as metrics are called)
        """Those of all rows."""
        counts = cls()
        for row in zip(rows.references, rows.predictions, rows.counts, strict=True):
            counts.add(*row)
        return counts


def tags_without_spaces(text: str, spans: Sequence[Span]) -> list[str]:
    """The tags of the characters of a sentence but U+0020."""
    tags = tags_of_spans(spans, len(text))
    return [tag for character, tag in zip(text, tags, strict=True) if character != " "]


@lru_cache(maxsize=1)
def counted_spans(rows: CountedRows, postprocessor: TaggedText) -> tuple[SpanCounts, SpanCounts, int]:
    """Counts by the strict rule, where a prediction with another text than its reference marks nothing; counts after
    alignment; and how many rows have another text."""
    strict, aligned, altered = SpanCounts(postprocessor.types), SpanCounts(postprocessor.types), 0
    for reference, prediction, count in zip(rows.references, rows.predictions, rows.counts, strict=True):
        text, spans = postprocessor.value(reference)
        wanted = tags_without_spaces(text, spans)
        found = postprocessor.strict(prediction)
        same = found.text == text
        altered += count * (not same)
        strict.add(wanted, tags_without_spaces(text, found.spans if same else ()), count)
        aligned.add(wanted, tags_without_spaces(text, postprocessor.aligned(prediction, text)), count)
    return strict, aligned, altered


def _strict(rows: CountedRows, postprocessor: TaggedText) -> SpanCounts:
    return counted_spans(rows, postprocessor)[0]


def _aligned(rows: CountedRows, postprocessor: TaggedText) -> SpanCounts:
    return counted_spans(rows, postprocessor)[1]


def _figure(
    counts: Callable[[CountedRows, TaggedText], SpanCounts], value: Callable[[SpanCounts], float]
) -> Callable[[CountedRows, TaggedText], Figure]:
    def compute(rows: CountedRows, postprocessor: TaggedText) -> Figure:
        figure = value(counts(rows, postprocessor))
        if counts is _aligned:
            return Figure(figure, "these rows aligned with the source")
        rows_altered = f"{counted(counted_spans(rows, postprocessor)[2], 'row')} of {sum(rows.counts):,}"
        return Figure(figure, f"{rows_altered} with another text than the source: nothing is marked there")

    return compute


register(
    Metric(
        "pair_f1",
        TaggedText.kind,
        "F1 of pairs of a text and its type, wherever they stand, as the older tool counts them",
        lambda rows, postprocessor: Figure(PairCounts.of(rows, postprocessor).f1()),
        counts=PairCounts.of,
        of_counts=PairCounts.f1,
        default=False,
    ),
    *(
        Metric(
            name,
            TaggedText.kind,
            description,
            _figure(counts, value),
            scale=POINTS,
            how="spans" if counts is _strict else "",
            counts=counts,
            of_counts=value,
        )
        for name, description, counts, value in (
            ("entity_macro_f1", "mean F1 of the types of spans that occur", _strict, SpanCounts.entity_macro_f1),
            ("entity_micro_f1", "F1 over all spans", _strict, SpanCounts.entity_micro_f1),
            ("character_macro_f1", "mean F1 of the tags of characters", _strict, SpanCounts.character_macro_f1),
            (
                "entity_macro_f1_aligned",
                "the first after alignment with the source",
                _aligned,
                SpanCounts.entity_macro_f1,
            ),
        )
    ),
)
