"""Sentences with marked spans, `<김하늘:PS> 최고`: written from tags, read back, aligned with the source. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from typing import NamedTuple

from utils.errors import raise_if_any


class Span(NamedTuple):
    """Characters `start` to `end` (not included) of a sentence, and their type."""

    start: int
    end: int
    type: str


class TaggedSentence(NamedTuple):
    """A sentence without its marks, and its spans from left to right; none overlap."""

    text: str
    spans: tuple[Span, ...] = ()


def spans_of_tags(tags: Iterable[str]) -> tuple[Span, ...]:
    """The spans of IOB2 tags, read strictly: only B opens one, and only I of the same type goes on with it."""
    spans: list[Span] = []
    kind: str | None = None  # of the open span
    start = 0
    for place, tag in enumerate([*tags, "O"]):
        mark, _, tag_type = tag.partition("-")
        if kind is not None and not (mark == "I" and tag_type == kind):
            spans.append(Span(start, place, kind))
            kind = None
        if mark == "B":
            start, kind = place, tag_type
    return tuple(spans)


def tags_of_spans(spans: Iterable[Span], length: int) -> list[str]:
    """An IOB2 tag for each of `length` characters."""
    tags = ["O"] * length
    for start, end, kind in spans:
        tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tags


def tagged_text(sentence: TaggedSentence) -> str:
    """The sentence as a model should write it."""
    pieces, end = [], 0
    for span in sentence.spans:
        pieces += [sentence.text[end : span.start], f"<{sentence.text[span.start : span.end]}:{span.type}>"]
        end = span.end
    return "".join([*pieces, sentence.text[end:]])


@dataclass(frozen=True)
class TaggedText:
    """Sentences in which spans of these types are marked as `<text:TYPE>`; every text is one, and none is corrected.

    What a prediction says of its source is not in its text alone: the metrics read it against the reference.
    """

    types: tuple[str, ...] = ()

    name = "tagged sentence"
    kind = "spans"
    correction = "none"
    texts = ()
    choices = ()
    longest_texts = ()

    def __post_init__(self) -> None:
        problems = [] if self.types else ["types: name the types of spans, for example [PS, LC, OG]"]
        wrong = "is no type; it needs a letter or digit first, then none of < > : and no blank"
        problems += [f"types: {kind!r} {wrong}" for kind in self.types if not re.fullmatch(r"\w[^\s<>:]*", kind)]
        problems += [f"types: {kind!r} stands there twice" for kind in set(self.types) if self.types.count(kind) > 1]
        raise_if_any(problems)

    def value(self, text: str) -> TaggedSentence:
        """What a text stands for that is well formed, such as a reference: a mark opens at the bracket next to it.

        Of `<`s in a row all belong to the span but the first. All 4,000 sentences of KLUE that we looked at are read
        back as they were tagged, with brackets in the text of 14; `strict` fails on three.
        """
        return self._read(text, self._nearest)

    def strict(self, text: str) -> TaggedSentence:
        """What the strictest rule gives: of `<shortest text:TYPE>`, found from the left, the marks are removed."""
        return self._read(text, self._leftmost)

    def aligned(self, text: str, source: str) -> tuple[Span, ...]:
        """The spans of the source that a text marks, as far as they can be told.

        Brackets that could be marks or text are settled by the source. Where the text is another than the source, both
        are aligned, and a span stays if at least half of its characters are found.
        """
        for tagged in (self.strict(text), self.value(text)):
            if tagged.text == source:
                return tagged.spans
        spans = self._settled(text, source)
        return _projected(self.value(text), source) if spans is None else spans

    def correct(self, predictions: Sequence[str], max_distance: int | None = None) -> list[str | None]:  # noqa: ARG002
        """The predictions."""
        return list(predictions)

    def reference_problem(self, reference: str) -> str:
        """Its marks must be of known types: `<서울:AIRPORT>`, in capitals, is taken for one of another."""
        stranger = re.search(r"<[^<>:]+:[A-Z][A-Z_]+>", self.value(reference).text)
        return "reference marks a span of a type that the task does not name" if stranger else ""

    def describe(self) -> str:
        """`spans of PS, LC`."""
        return f"spans of {', '.join(self.types)}"

    @cached_property
    def _leftmost(self) -> re.Pattern[str]:
        return re.compile(f"<(.+?):({self._alternatives})>")

    @cached_property
    def _nearest(self) -> re.Pattern[str]:
        return re.compile(f"<(<*[^<\n]+?):({self._alternatives})>")

    @property
    def _alternatives(self) -> str:
        return "|".join(map(re.escape, self.types))

    @staticmethod
    def _read(text: str, pattern: re.Pattern[str]) -> TaggedSentence:
        pieces: list[str] = []
        spans = []
        end = length = 0
        last = text.rfind(">") + 1  # behind it no mark ends: thousands of `<` are not searched for one
        for match in pattern.finditer(text, 0, last):
            start = length + match.start() - end
            pieces += [text[end : match.start()], match[1]]
            length = start + len(match[1])
            spans.append(Span(start, length, match[2]))
            end = match.end()
        return TaggedSentence("".join([*pieces, text[end:]]), tuple(spans))

    def _settled(self, text: str, source: str) -> tuple[Span, ...] | None:
        """The spans if some of the brackets are marks without which the text is the source; else None."""
        closing = [(f":{kind}>", kind) for kind in self.types]
        # at each place of the text: (characters of the source so far, start of the open span or -1) -> spans so far
        reached: list[dict[tuple[int, int], tuple[Span, ...]]] = [{} for _ in range(len(text) + 1)]
        reached[0][0, -1] = ()
        for place, character in enumerate(text):
            for (length, start), spans in reached[place].items():
                if length < len(source) and character == source[length]:
                    reached[place + 1].setdefault((length + 1, start), spans)
                if character == "<" and start < 0:
                    reached[place + 1].setdefault((length, length), spans)
                for mark, kind in closing if -1 < start < length else ():
                    if text.startswith(mark, place):
                        closed = (*spans, Span(start, length, kind))
                        reached[place + len(mark)].setdefault((length, -1), closed)
        return reached[-1].get((len(source), -1))


def _projected(tagged: TaggedSentence, source: str) -> tuple[Span, ...]:
    """The spans moved to where the source has their characters."""
    matcher = SequenceMatcher(None, tagged.text, source, autojunk=False)
    place = {
        block.a + offset: block.b + offset for block in matcher.get_matching_blocks() for offset in range(block.size)
    }
    spans = []
    for start, end, kind in tagged.spans:
        found = [place[character] for character in range(start, end) if character in place]
        if found and 2 * len(found) >= end - start:
            spans.append(Span(found[0], found[-1] + 1, kind))
    return tuple(spans)
