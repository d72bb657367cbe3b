"""Tagged sentences scored as KLUE does: small cases by hand, and those of the official scorers."""

from __future__ import annotations

import math

import pytest

from metrics.report import report_text
from metrics.score import score
from metrics.spans import SpanCounts, tags_without_spaces
from postprocessors.spans import TaggedText, spans_of_tags
from tests.official_scorers import golden_cases

KLUE = TaggedText(("PS", "LC", "OG", "DT", "TI", "QT"))
FIGURES = ("entity_macro_f1", "entity_micro_f1", "character_macro_f1")
OURS = dict(zip(FIGURES, ("entity_macro_f1", "entity_micro_f1", "char_macro_f1"), strict=True))


def figures(references: list[str], predictions: list[str]) -> dict[str, float]:
    return score(references, predictions, KLUE).metrics


def close(value: float, expected: float | None) -> bool:
    return math.isnan(value) if expected is None else math.isclose(value, expected, rel_tol=1e-9)


def test_gold_is_perfect_and_counts_are_those_of_spans_and_characters() -> None:
    gold = ["<김하늘:PS> 최고", "<서울:LC>에 간 <하늘:PS>"]
    assert figures(gold, gold) == dict.fromkeys((*FIGURES, "entity_macro_f1_aligned"), 100.0)
    found = figures(gold, ["<김하늘:PS> 최고", "<서울:PS>에 간 <하늘:PS>"])
    # PS: two of three given are right, two expected; LC: one expected, none given
    assert found["entity_macro_f1"] == pytest.approx(100 * (0.8 + 0.0) / 2)
    assert found["entity_micro_f1"] == pytest.approx(100 * 4 / 6)
    # B-PS 4/5, I-PS 6/7; B-LC and I-LC 0; O and the eight tags that do not occur 1
    assert found["character_macro_f1"] == pytest.approx(100 * (4 / 5 + 6 / 7 + 9) / 13)


def test_another_text_marks_nothing_unless_it_is_aligned_and_the_report_counts_it() -> None:
    gold = ["<김하늘:PS> 최고", "<서울:LC>에 간다"]
    scores = score(gold, ["<김하늘:PS> 최고!", "<서울:LC>에 간다"], KLUE)
    assert (scores.metrics["entity_macro_f1"], scores.metrics["entity_macro_f1_aligned"]) == (50.0, 100.0)
    text = report_text(scores)
    assert (
        "entity_macro_f1            50.00   1 row of 2 with another text than the source: nothing is marked there"
        in text
    )
    assert "correction" not in text


def test_without_any_span_the_macro_figure_is_undefined() -> None:
    found = figures(["최고"], ["최고"])
    assert math.isnan(found["entity_macro_f1"])
    assert (found["entity_micro_f1"], found["character_macro_f1"]) == (0.0, 100.0)


def test_klue_ner() -> None:
    for case in golden_cases("klue_ner"):
        counts = SpanCounts(KLUE.types)
        for reference, prediction in zip(case["references"], case["predictions"], strict=True):
            counts.add(reference, prediction, 1)
        for name, official in OURS.items():
            assert close(getattr(counts, name)(), case["expected"][official]), (case["id"], name)


def test_klue_ner_generated() -> None:
    for case in golden_cases("klue_ner_generated"):
        found = figures(case["references"], case["predictions"])
        expected = case["expected"]["klue"]
        for name, official in OURS.items():
            assert close(found[name], expected[official]), (case["id"], name)
        tool = case["expected"]["etri_tool"]
        if "raises" not in tool:
            pairs = score(case["references"], case["predictions"], KLUE, names=("pair_f1",)).metrics["pair_f1"]
            assert close(pairs, tool["pair_f1"]), case["id"]
        altered = []
        for row, pair in enumerate(zip(case["references"], case["predictions"], case["projected_tags"], strict=True)):
            source, read = KLUE.value(pair[0]).text, KLUE.strict(pair[1])
            altered += [row] if read.text != source else []
            spans = read.spans if read.text == source else ()
            if pair[2] is not None:
                assert tags_without_spaces(source, spans) == pair[2].split(), (case["id"], row)
        assert altered == case["altered_rows"], case["id"]


def test_seqeval_strict() -> None:
    """Spans of strict IOB2 are those of seqeval; its other schemes and its errors are not ours."""
    compared = 0
    for case in golden_cases("seqeval"):
        expected = case["expected"].get("strict", {"raises": ""})
        if case["options"]["strict_scheme"] != "IOB2" or "raises" in expected:
            continue
        counts = SpanCounts([])
        for reference, prediction in zip(case["references"], case["predictions"], strict=True):
            counts.add(reference, prediction, 1)
        assert close(counts.entity_micro_f1() / 100, expected["micro"]["f1"]), case["id"]
        assert close(counts.entity_macro_f1() / 100, expected["macro"]["f1"]), case["id"]
        compared += 1
    assert compared > 20


def test_klue_ner_rows_are_read_back_as_they_were_tagged() -> None:
    for case in golden_cases("klue_ner_rows"):
        text, spans = KLUE.value(case["target"])
        assert text == case["text"], case["id"]
        tags = tags_without_spaces(text, spans)
        assert tags == case["character_tags_without_spaces"], case["id"]
        assert len(spans_of_tags(tags)) == len(spans), case["id"]
