"""Dependency trees scored as KLUE does: small cases by hand, and those of the official scorers."""

from __future__ import annotations

import math

import pytest

from metrics.dependencies import ArcCounts, macro, micro
from metrics.report import report_text
from metrics.score import score
from postprocessors.dependencies import Arc, Dependencies, dependency_line
from tests.official_scorers import golden_cases
from utils.errors import UserError

RELATIONS = (
    "NP NP_AJT VP NP_SBJ VP_MOD NP_OBJ AP NP_CNJ NP_MOD VNP DP VP_AJT VNP_MOD NP_CMP VP_SBJ VP_CMP VP_OBJ VNP_CMP"
    " AP_MOD X_AJT VP_CNJ VNP_AJT IP X X_SBJ VNP_OBJ VNP_SBJ X_OBJ AP_AJT L X_MOD X_CNJ VNP_CNJ X_CMP AP_CMP AP_SBJ R"
    " NP_SVJ"
)
KLUE = Dependencies(tuple(RELATIONS.split()))
OFFICIAL = {"uas": "uas_accuracy", "las": "las_accuracy"} | {
    name: name for name in ("uas_macro_f1", "las_macro_f1", "uas_micro_f1", "las_micro_f1")
}
LINE = "deprel: (1/2, 3, NP_SBJ)▁(2/2, 3, NP_OBJ)▁(3/4, 0, VP)\nword_counts: 3"


def figures_of(counts: ArcCounts) -> dict[str, float]:
    return {
        "uas": counts.share(counts.right_heads),
        "las": counts.share(counts.right),
        "uas_macro_f1": macro(counts.heads),
        "las_macro_f1": macro(counts.labelled),
        "uas_micro_f1": micro(counts.heads),
        "las_micro_f1": micro(counts.labelled),
    }


def check(found: dict[str, float], expected: dict[str, float], case: str) -> None:
    for name, official in OFFICIAL.items():
        assert math.isclose(found[name], expected[official], rel_tol=1e-9), (case, name)


def test_words_with_the_right_head_and_relation() -> None:
    assert set(score([LINE], [LINE], KLUE).metrics.values()) == {100.0}
    found = score([LINE], [LINE.replace("(2/2, 3, NP_OBJ)", "(2/2, 1, NP_OBJ)").replace("VP)", "NP)")], KLUE).metrics
    assert found["uas"] == found["uas_micro_f1"] == pytest.approx(200 / 3)
    assert found["las"] == found["las_micro_f1"] == pytest.approx(100 / 3)
    assert found["uas_macro_f1"] == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)  # heads 0, 3 and 1
    assert found["las_macro_f1"] == pytest.approx(100 * 1 / 5)  # NP_SBJ, NP_OBJ, VP, NP, and the wrong head's


def test_words_that_cannot_be_read_are_counted_and_found_by_correction() -> None:
    scores = score([LINE], [LINE.replace("▁", " ")], KLUE)
    assert scores.metrics["uas"] == pytest.approx(100 / 3)
    corrected = [name for name in scores.metrics if name.endswith("_corrected")]
    assert corrected == ["uas_corrected", "las_corrected", "uas_macro_f1_corrected", "las_macro_f1_corrected"]
    assert ({scores.metrics[name] for name in corrected}, scores.invalid_outputs) == ({100.0}, 1)
    assert "uas                       33.33   2 words of 3 without an arc" in report_text(scores)
    assert score([LINE], [LINE.replace("▁", " ")], KLUE, correction="none").metrics["uas_corrected"] == 0


def test_a_reference_must_be_a_tree() -> None:
    with pytest.raises(UserError, match="reference '나는 밥을' is no dependency line, for example"):
        score(["나는 밥을"], [LINE], KLUE)


def test_klue_dp() -> None:
    for case in golden_cases("klue_dp"):
        counts = ArcCounts(KLUE.relations)
        for reference, prediction in zip(case["references"], case["predictions"], strict=True):
            trees = [list(map(Arc, tree["heads"], tree["deprels"])) for tree in (reference, prediction)]
            counts.add(*trees, 1)
        check(figures_of(counts), case["expected"], case["id"])


def test_klue_dp_generated() -> None:
    for case in golden_cases("klue_dp_generated"):
        for text, parsed in zip(case["predictions"], case["parsed_predictions"], strict=True):
            assert KLUE.arcs(text) == list(map(Arc, parsed["heads"], parsed["deprels"])), case["id"]
        found = score(case["references"], case["predictions"], KLUE).metrics
        check(found, case["expected"]["klue"], case["id"])


def test_klue_dp_rows_are_written_and_read_back() -> None:
    for case in golden_cases("klue_dp_rows"):
        arcs = tuple(map(Arc, case["heads"], case["deprels"]))
        assert dependency_line(case["words"], arcs) == case["target"], case["id"]
        assert KLUE.value(case["target"]) == arcs, case["id"]


def test_plain_shares_are_those_of_conll() -> None:
    compared = 0
    for case in golden_cases("conll_dp"):
        expected = case["expected"]["conll07"]
        if "raises" in expected:
            continue
        counts = ArcCounts(())
        for reference, prediction in zip(case["references"], case["predictions"], strict=True):
            trees = [list(map(Arc, tree["heads"], tree["deprels"])) for tree in (reference, prediction)]
            counts.add(*trees, 1)
        found = (counts.right_heads, counts.right, counts.words)
        of = expected["all"]
        assert found == (of["uas"]["correct"], of["las"]["correct"], of["las"]["total"]), case["id"]
        compared += 1
    assert compared > 25
