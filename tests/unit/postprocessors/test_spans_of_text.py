"""Tagged sentences: written from tags, read back, and aligned with the source that they should have kept."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postprocessors.base import FREE_TEXT, said
from postprocessors.labels import LabelMap
from postprocessors.spans import Span, TaggedSentence, TaggedText, spans_of_tags, tagged_text, tags_of_spans
from utils.errors import UserError

KLUE = TaggedText(("PS", "LC", "OG", "DT", "TI", "QT"))


def marked(sentence: TaggedSentence) -> list[tuple[str, str]]:
    return [(sentence.text[start:end], kind) for start, end, kind in sentence.spans]


def test_tags_become_text_and_text_becomes_tags_again() -> None:
    characters, tags = "김하늘 최고", ["B-PS", "I-PS", "I-PS", "O", "O", "O"]
    sentence = TaggedSentence(characters, spans_of_tags(tags))
    assert tagged_text(sentence) == "<김하늘:PS> 최고"
    assert KLUE.value("<김하늘:PS> 최고") == sentence
    assert tags_of_spans(sentence.spans, len(characters)) == tags


def test_only_b_opens_a_span_and_another_type_ends_it() -> None:
    assert spans_of_tags(["I-PS", "B-PS", "I-LC", "I-PS", "B-LC", "B-LC", "I-LC"]) == (
        Span(1, 2, "PS"),
        Span(4, 5, "LC"),
        Span(5, 7, "LC"),
    )


@pytest.mark.parametrize(
    "text, read, strictly",
    [
        ("영화 <<레이:PS>>는", [("<레이", "PS")], [("<레이", "PS")]),
        ("<해바라기> <강석범:PS> 감독", [("강석범", "PS")], [("해바라기> <강석범", "PS")]),
        ("<01:23:39:TI>에 :PS> <XX:ZZ>", [("01:23:39", "TI")], [("01:23:39", "TI")]),
        ("<:PS> <가:PS", [], []),
    ],
)
def test_brackets_may_be_text(text: str, read: list[tuple[str, str]], strictly: list[tuple[str, str]]) -> None:
    assert marked(KLUE.value(text)) == read
    assert marked(KLUE.strict(text)) == strictly
    assert tagged_text(KLUE.value(text)) == text


@pytest.mark.parametrize(
    "text, source, spans",
    [
        ("<해바라기> <강석범:PS> 감독", "<해바라기> 강석범 감독", [("강석범", "PS")]),
        ("<a<b:PS>", "a<b", [("a<b", "PS")]),  # only the source tells
        ("<a<b:PS>", "<ab", [("b", "PS")]),
        ("<김하늘:PS> 최고!", "김하늘 최고", [("김하늘", "PS")]),
        ("<김하늘:PS> 최고", "김 하늘은 최고", [("김 하늘", "PS")]),
        ("<김하늘:PS 최고 <서울:LC>", "김하늘 최고 서울", [("서울", "LC")]),
        ("<부산:LC>", "김하늘 최고", []),
        ("", "김하늘", []),
    ],
)
def test_alignment_with_the_source(text: str, source: str, spans: list[tuple[str, str]]) -> None:
    assert marked(TaggedSentence(source, KLUE.aligned(text, source))) == spans


@given(st.text("가나 <:>PS", max_size=12), st.lists(st.tuples(st.integers(0, 11), st.integers(1, 4)), max_size=4))
def test_whatever_was_marked_in_a_text_the_source_gives_spans_in_order(text: str, places: list) -> None:
    spans, end = [], 0
    for start, length in sorted(places):
        if start >= end and start + length <= len(text):
            spans.append(Span(start, start + length, "PS"))
            end = start + length
    written = tagged_text(TaggedSentence(text, tuple(spans)))
    found = KLUE.aligned(written, text)
    assert tagged_text(TaggedSentence(text, found)) == written or KLUE.strict(written).text == text
    assert all(before.end <= after.start for before, after in itertools.pairwise(found))


def test_messages_name_the_outputs() -> None:
    assert said(KLUE) == "outputs: spans of PS, LC, OG, DT, TI, QT"
    assert (said(FREE_TEXT), said(LabelMap.parse("0=a"))) == ("labels: free text", "labels: 0=a")


def test_types_are_named_once_and_can_be_marked() -> None:
    with pytest.raises(UserError) as caught:
        TaggedText(("PS", "A:B", "PS", ""))
    assert caught.value.problems == (
        "types: 'A:B' is no type; it needs a letter or digit first, then none of < > : and no blank",
        "types: '' is no type; it needs a letter or digit first, then none of < > : and no blank",
        "types: 'PS' stands there twice",
    )
    with pytest.raises(UserError, match="name the types of spans"):
        TaggedText()


@pytest.mark.parametrize(
    "reference, has_problem", [("<서울:LC>에", False), ("<서울:AIRPORT>에", True), ("<:-O> 가", False)]
)
def test_a_reference_has_known_types(reference: str, has_problem: bool) -> None:
    problem = "reference marks a span of a type that the task does not name" if has_problem else ""
    assert KLUE.reference_problem(reference) == problem
