"""Correlations and the F1 of similar pairs: KLUE's and SciPy's figures."""

from __future__ import annotations

import json
import math

import pytest

from metrics.numbers import pearson, spearman
from metrics.report import report_dict, report_text
from metrics.score import score
from postprocessors.kinds import postprocessor_of
from postprocessors.numbers import Number
from tests.official_scorers import differing
from utils.errors import UserError

SIMILARITY = Number(0, 5, 1)
TEXTS = ["3.8", "4", "2.5점", "", " 1.2 ", "5.0.", "3,5", "약 4", "0", "-1", "4.25", "６.０"]
GOLDS = [4.857142857142857, 1.428571428571429, 1.285714285714286, 3.714285714285714, 2.5, 1.142857142857143]
GOLDS += [3.6, 1.285714285714286, 0.0, 2.2, 2.5, 3.4]


def scored(references, predictions):
    return score([str(number) for number in references], [str(text) for text in predictions], SIMILARITY)


def test_texts_count_as_klue_counts_them():
    scores = scored(GOLDS, TEXTS)
    assert scores.metrics == pytest.approx(
        {"pearson": 38.445750418752375, "spearman": 35.207227196501236, "sts_f1": 50.0}, rel=1e-9
    )
    told = "no number as they stand: 5 of 12, counted as 0.0; 2 out of bounds, counted as they stand"  # -1 and 6.0
    assert scores.details == dict.fromkeys(scores.metrics, told)
    assert scores.invalid_outputs == 5
    assert {item["output"]: item["label"] for item in scores.corrections} == {
        "2.5점": "2.5", "": None, "5.0.": "5.0", "3,5": "3", "약 4": "4",
    }  # fmt: skip


def test_klue_sts():
    def figures(case):
        found = scored(case["references"], case.get("prediction_texts", case["predictions"])).metrics
        if "raises" in case["expected"]:
            return {"pearson": found["pearson"], "spearman": found["spearman"]}
        return {"pearson": found["pearson"], "spearman": found["spearman"], "f1_at_3": found["sts_f1"]}

    assert differing("klue_sts", figures) == []


def test_scipys_correlations():
    def figures(case):
        sides = [[float(number) for number in case[side]] for side in ("references", "predictions")]
        if len(sides[0]) != len(sides[1]):
            with pytest.raises(ValueError, match="3 references, but 2 predictions"):
                pearson(*sides)
            return {}
        return {"pearson": pearson(*sides), "spearman": spearman(*sides)}

    assert differing("sts_correlation", figures) == []


@pytest.mark.parametrize(
    "references, predictions, detail",
    [
        ([1, 2, 3], ["2.5", "2.5", "2.5"], "all numbers of a side are equal"),
        ([1, 2], ["nan", "many"], "no number as they stand: 2 of 2, counted as 0.0; all numbers of a side are equal"),
        ([4], ["4"], "a single row"),
    ],
)
def test_an_undefined_correlation_is_said_to_be_so(references, predictions, detail):
    scores = scored(references, predictions)
    assert math.isnan(scores.metrics["pearson"])
    assert f"  pearson             undefined   {detail}\n" in report_text(scores)
    report = json.loads(json.dumps(report_dict(scores, {}), allow_nan=False))
    assert (report["metrics"]["spearman"], report["settings"]["metric_details"]["spearman"]) == (None, detail)


def test_a_row_that_occurs_twice_counts_twice():
    once, twice = (scored([1, 2, 4][:n] + [4] * (n > 2), ["1", "3", "2", "2"][: n + (n > 2)]) for n in (2, 3))
    assert once.metrics["pearson"] == pytest.approx(100)
    assert twice.metrics["pearson"] == pytest.approx(100 * pearson([1, 2, 4, 4], [1, 3, 2, 2]))


def test_a_reference_that_is_no_number_is_named():
    with pytest.raises(ValueError, match=r"reference '3,5' is no number"):
        scored(["3,5"], ["3.5"])


def test_the_fields_of_a_task_file():
    number = postprocessor_of({"kind": "numbers", "lowest": "0", "highest": "5", "decimals": 2}, "postprocessor")
    assert number == Number(0.0, 5.0, 2)
    assert (number.longest_texts, number.describe()) == (("0.00", "5.00"), "numbers from 0 to 5")
    assert Number().correct(["약 -3점", "3점", "없음"], max_distance=1) == [None, "3", None]
    assert Number().correct(["1e5", "-.5점", "１.5점", "9" * 400 + "점"]) == ["1e5", "-.5", "１.5", None]  # too large
    with pytest.raises(UserError, match=r"^postprocessor: highest 1e\+308 is beyond 1e\+15$"):
        postprocessor_of({"kind": "numbers", "lowest": 0, "highest": "1e308"}, "postprocessor")
    with pytest.raises(UserError) as mistakes:
        postprocessor_of({"kind": "numbers", "lowest": 5, "highest": 0, "decimals": -1}, "postprocessor")
    assert mistakes.value.problems == (
        "postprocessor: lowest 5 is above highest 0",
        "postprocessor: decimals -1 is not from 0 to 15",
    )
