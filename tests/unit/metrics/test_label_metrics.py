"""Metrics of labels against KLUE's scorers and scikit-learn, on golden cases and on a few short ones."""

from __future__ import annotations

import math

import pytest

from metrics.labels import CountedRows, LabelTables, label_tables
from metrics.registry import METRICS
from metrics.report import report_text
from metrics.score import CHOSEN, score
from metrics.uncertainty.probabilities import auprc, with_probabilities
from postprocessors.labels import LabelMap
from task_utils import Task
from tests.official_scorers import differing, golden_cases

TOPICS = ("정치", "경제", "사회", "생활문화", "세계", "IT과학", "스포츠")
RELATION_LIST = """
    no_relation org:dissolved org:founded org:place_of_headquarters org:alternate_names org:member_of org:members
    org:political/religious_affiliation org:product org:founded_by org:top_members/employees
    org:number_of_employees/members per:date_of_birth per:date_of_death per:place_of_birth per:place_of_death
    per:place_of_residence per:origin per:employee_of per:schools_attended per:alternate_names per:parents
    per:children per:siblings per:spouse per:other_family per:colleagues per:product per:religion per:title
"""
RELATIONS = RELATION_LIST.split()


def labels(*texts, separator=""):
    return LabelMap(tuple((str(number), text) for number, text in enumerate(texts)), separator)


def figures(references, predictions, label_map, *names):
    return score(references, predictions, label_map, correction="none", names=names).metrics


@pytest.mark.parametrize(
    "name, references, predictions, expected",
    [
        ("klue_macro_f1", "세계 세계 정치", "세계 정치 정치", 100 * (2 / 3 + 2 / 3) / 2),
        ("klue_macro_f1", "세계 세계 정치", "세계 세계경제 정치", 100 * (2 / 3 + 1 + 0) / 3),  # other outputs: a class
        ("klue_macro_f1", "세계 정치", "경제 정치", 100 * (0 + 0 + 1) / 3),  # so is one that no reference has
        ("weighted_f1", "세계 세계 정치", "세계 정치 정치", 2 / 3),
        ("subset_accuracy", "세계 세계 정치", "세계 정치 정치", 2 / 3),
    ],
)
def test_one_label_a_row(name, references, predictions, expected):
    found = figures(references.split(), predictions.split(), labels(*TOPICS), name)
    assert found == {name: pytest.approx(expected, rel=1e-12)}


@pytest.mark.parametrize(
    "references, predictions, expected",
    [
        ("없음 없음", "없음 없음", 0.0),  # nothing to find
        ("없음 출생지", "사망지 출생지", 100 * 2 / 3),
        ("출생지 출생지 사망지", "없음 출생지 사망지", 80.0),
        ("출생지 출생지", "출생 출생지", 100 * 2 / 3),  # an output that is no label costs recall alone
    ],
)
def test_no_relation_is_found_by_its_id(references, predictions, expected):
    label_map = LabelMap((("no_relation", "없음"), ("per:place_of_birth", "출생지"), ("per:place_of_death", "사망지")))
    found = figures(references.split(), predictions.split(), label_map, "klue_re_f1")
    assert found == {"klue_re_f1": pytest.approx(expected, rel=1e-12)}


def test_without_no_relation_its_metric_is_undefined():
    scores = score(["세계"], ["세계"], labels(*TOPICS), names=["klue_re_f1"])
    assert "  klue_re_f1          undefined   no label has the id or text 'no_relation'\n" in report_text(scores)


def test_klue_ynat():
    def of_case(case):
        found = score(case["references"], case["predictions"], labels(*TOPICS), "none", names=["klue_macro_f1"])
        return {"macro_f1": found.metrics["klue_macro_f1"], "invalid": found.invalid_outputs}

    assert differing("klue_ynat", of_case) == []


def test_klue_nli():
    names = ("entailment", "contradiction", "neutral")

    def of_case(case):
        scores = score(case["references"], case["predictions"], labels(*names), "none", names=["accuracy"])
        rows = zip(names, scores.confusion_matrix["rows"], strict=True)
        found = {wanted: dict(zip(names, counts[:-1], strict=True)) for wanted, counts in rows}
        assert found == {wanted: case["expected"]["confusion"][wanted] for wanted in names}
        return {"accuracy": 100 * scores.metrics["accuracy"], "invalid": scores.invalid_outputs}

    assert differing("klue_nli", of_case) == []


def test_klue_re():
    def of_case(case):
        found = figures(case["references"], case["predictions"], labels(*RELATIONS), "klue_re_f1", "accuracy")
        return {"micro_f1": found["klue_re_f1"], "accuracy_all_30": 100 * found["accuracy"]}

    assert differing("klue_re", of_case) == []


def test_klue_re_auprc():
    def of_case(case):
        return {"auprc": 100 * auprc(case["predictions"], [RELATIONS.index(label) for label in case["references"]])}

    assert differing("klue_re_auprc", of_case) == []


def test_the_area_under_the_curve_is_that_of_trapezoids():
    # of the first label the curve goes from (recall 1, precision 1/2) over (1/2, 1/2) and (1/2, 1) to (0, 1)
    shares = [(0.9, 0.1), (0.8, 0.2), (0.7, 0.3), (0.1, 0.9)]
    first = (1 / 2 * (2 / 3 + 1 / 2) / 2) + 1 / 2 * 1
    second = 1 / 2 * 1 + 1 / 2 * (1 / 2 + 2 / 3) / 2
    assert auprc(shares, [0, 1, 0, 1]) == pytest.approx((first + second) / 2)
    assert auprc([(1.0, 0.0)], [0]) == (1 + 0.5) / 2  # a label without a row


def test_a_task_may_name_the_area_and_gets_it_with_probabilities():
    label_map = labels("a", "b", "c")
    task = Task("own", "", label_map=label_map, metrics=("accuracy", "klue_re_auprc"))
    assert task.generated_metrics("val_loss") == ("exact_match", "accuracy")  # a validation has no probabilities
    references = ["a", "b", None, "a"]
    scores = score(references, ["a", "b", "a", "b"], label_map, CHOSEN, names=task.metrics)
    assert "  klue_re_auprc       undefined   needs -label_decoding score\n" in report_text(scores)
    shares = [(0.8, 0.1, 0.1), (0.2, 0.7, 0.1), None, (0.3, 0.6, 0.1)]
    found = with_probabilities(scores, references, shares)
    assert found.metrics["klue_re_auprc"] == pytest.approx(100 * (1 + 1 + 0.5) / 3)
    assert "area under precision and recall; 1 label without a row: 0.5\n" in report_text(found)
    assert "klue_re_auprc" not in with_probabilities(score(["a"], ["a"], label_map), ["a"], [(1, 0, 0)]).metrics


def several(case, label_map):
    """The tables of a case of scikit-learn's: rows of any number of labels, none too."""
    joined = [[label_map.separator.join(row) for row in case[side]] for side in ("references", "predictions")]
    return LabelTables(CountedRows(*map(tuple, joined), (), (1,) * len(joined[0])), label_map, [], [], None)


def test_scikit_learns_averages_of_several_labels():
    def of_case(case):
        tables = several(case, labels(*case["options"]["labels"], separator=" | "))
        found = {name: METRICS[name].compute(tables).value for name in ("samples_f1", "subset_accuracy", "weighted_f1")}
        if "raises" in case["expected"]:
            return {"samples": found["samples_f1"]}
        case["expected"] |= {f"{key}_f1": case["expected"][key]["f1"] for key in ("samples", "weighted")}
        return found

    assert differing("multilabel", of_case) == []


def test_macro_and_micro_of_several_labels_are_scikit_learns():
    checked = 0
    for case in golden_cases("multilabel"):
        names = case["options"]["labels"]
        valid = all(row and set(row) <= set(names) for side in ("references", "predictions") for row in case[side])
        if valid and "raises" not in case["expected"]:
            checked += 1
            label_map = labels(*names, separator=" | ")
            joined = [[" | ".join(row) for row in case[side]] for side in ("references", "predictions")]
            tables = score([label_map.lookup(row) for row in joined[0]], joined[1], label_map)
            assert tables.metrics["micro_f1"] == pytest.approx(case["expected"]["micro"]["f1"], rel=1e-9)
            by_class = [row["f1"] or 0.0 for row in tables.per_class]
            assert math.fsum(by_class) / len(names) == pytest.approx(case["expected"]["macro"]["f1"], rel=1e-9)
    assert checked >= 3


def test_several_labels_as_they_are_written():
    label_map = labels("재미", "감동", "연기", separator=", ")
    references, predictions = ["재미, 감동", "연기", "연기"], ["감동,재미, 감동", "연기, 없는말", ""]
    scores = score(references, predictions, label_map, names=["samples_f1", "subset_accuracy", "weighted_f1"])
    weighted = (1 * 1 + 1 * 1 + 2 * 2 / 3) / 4
    assert scores.metrics == pytest.approx({"samples_f1": 2 / 3, "subset_accuracy": 2 / 3, "weighted_f1": weighted})
    assert set(scores.details.values()) == {"raw; 1 named that are no label, left out"}
    single = label_tables(CountedRows(("재미",), ("재미",), ("재미",), (1,)), labels("재미", separator=", "))
    assert math.isnan(METRICS["samples_f1"].compute(single).value)


def test_accuracy_of_other_corpora():
    def of_case(case):
        label_map = labels(*case["options"].get("labels", ("긍정", "부정")))
        if len(case["references"]) != len(case["predictions"]):
            with pytest.raises(ValueError, match="references, but"):
                figures(case["references"], case["predictions"], label_map, "accuracy")
            return {}
        return figures(case["references"], case["predictions"], label_map, "accuracy")  # without rows none

    assert differing("accuracy", of_case) == []


def test_exact_match():
    def of_case(case):
        return {} if case["options"] else score(case["references"], case["predictions"], names=["exact_match"]).metrics

    assert differing("exact_match", of_case) == []


def test_label_correction():
    for case in golden_cases("label_correction"):
        names = case["options"]["labels"]
        nearest = {
            text: min(names, key=distances.__getitem__)  # the first of equals; by code points, the tool by graphemes
            for text, distances in case["expected"]["editdistance_code_points"].items()
        }
        found = labels(*names).correct(case["predictions"])
        assert found == [nearest.get(text, text) for text in case["predictions"]], case["id"]
        if "NFD" not in case["case"]:
            assert found == case["expected"]["corrected"], case["id"]
