"""Reports as a user sees them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from metrics.report import Outputs, report_dict, report_text
from metrics.score import CHOSEN, score
from postprocessors.base import FREE_TEXT
from postprocessors.labels import LabelMap

SENTIMENT = LabelMap((("0", "부정"), ("1", "긍정"), ("2", "아주 긍정")))

LABEL_REPORT = """\
references:  3
predictions: 4
1 row without a reference: left out of the metrics

predicted labels, as generated: 3 unique
  prediction        count
  긍젱                  2
  부정                  1
  \\u001b[31m나쁨\\n      1

correction: nearest label by edit distance, at most 2 edits
invalid outputs (no label text): 3 of 4
  output                label  count
  긍젱                   긍정      2
  \\u001b[31m나쁨\\n  (invalid)      1

labels after correction
  label      count
  부정           1
  긍정           2
  아주 긍정      0
  (invalid)      1

per class, after correction
  label      precision  recall      f1  support
  ---------------------------------------------
  부정          1.0000  1.0000  1.0000        1
  긍정          1.0000  0.5000  0.6667        2
  아주 긍정          -       -       -        0
  ---------------------------------------------
  macro         1.0000  0.7500  0.8333        3
  micro         1.0000  0.6667  0.8000        3

confusion matrix, after correction (rows: reference, columns: prediction)
             부정  긍정  아주 긍정  (invalid)
  부정          1     0          0          0
  긍정          0     1          0          1
  아주 긍정     0     0          0          0

metrics (fractions)
  accuracy             0.3333   raw, as generated
  accuracy_corrected   0.6667
  macro_f1             0.8333
  micro_f1             0.8000
"""


def label_scores():
    return score(["부정", "긍정", None, "긍정"], ["부정", "긍젱", "긍젱", "\x1b[31m나쁨\n"], SENTIMENT, max_distance=2)


def test_the_whole_report_of_a_label_task():
    assert report_text(label_scores()) == LABEL_REPORT


def test_report_of_free_text():
    scores = score(["수업은 열한 시", "만 원"], ["수업은 열한 시", ""])
    details = {"bleu": "tok:char", "chrf": "nc:6", "rouge": "words"}
    scores = replace(scores, metrics={**scores.metrics, "chrf": 52.8149}, details=details)
    assert report_text(scores) == (
        "references:  2\n"
        "predictions: 2\n"
        "\n"
        "predicted texts: 2 unique\n"
        "  prediction      count\n"
        "  수업은 열한 시      1\n"
        "  (empty)             1\n"
        "\n"
        "metrics (fractions, chrf and bleu in points of 100)\n"
        "  exact_match          0.5000\n"
        "  chrf                  52.81   nc:6\n"
        "  bleu                  71.65   tok:char\n"
        "  rouge1               0.5000   words\n"
        "  rouge2               0.5000\n"
        "  rougeL               0.5000\n"
    )


@pytest.mark.parametrize(
    "names, units",
    [
        (["chrf", "bleu", "ter"], "points of 100"),
        (["chrf", "exact_match", "bleu", "ter"], "fractions, chrf, bleu and ter in points of 100"),
        (["chrf", "exact_match"], "fractions, chrf in points of 100"),
        (["exact_match"], "fractions"),
    ],
)
def test_the_units_of_the_figures(names, units):
    assert f"\nmetrics ({units})\n" in report_text(score(["가 나"], ["가 다"], names=names))


def test_long_lists_are_cut_at_twenty():
    predictions = [f"문장 {number}" for number in range(1000)]
    assert "predicted texts: 1,000 unique\n  and 1,000 more\n" in report_text(score([None] * 1000, predictions))
    text = report_text(score([None] * 1002, ["같은 문장", "같은 문장", *predictions]))
    assert "  prediction  count\n  같은 문장       2\n  and 1,000 more\n" in text

    text = report_text(score([None] * 1000, predictions, SENTIMENT))
    lines = text.splitlines()
    assert lines.count("  and 980 more") == 2  # unique predictions, corrections
    assert len(lines) < 65


def many_labels(count: int) -> LabelMap:
    return LabelMap(tuple((str(number), f"label {number}") for number in range(count)))


def test_of_a_big_confusion_matrix_the_confused_pairs_are_printed():
    scores = score(["label 3"] * 4, ["label 3", "label 4", "label 4", "zz"], many_labels(21), correction="none")
    assert (
        "labels taken for each other, after correction\n"
        "  reference  prediction  count\n"
        "  label 3    label 4         2\n"
        "  label 3    (invalid)       1\n"
    ) in report_text(scores)
    assert report_dict(scores, {})["confusion_matrix"]["rows"][3][3:5] == [1, 2]


def test_of_very_many_labels_only_what_occurs_is_kept_and_printed():
    labels = many_labels(40_000)
    scores = score(["label 3", "label 3", "label 39999"], ["label 3", "label 4", "label 39999"], labels)
    assert scores.confusion_matrix == {
        "pairs": [
            {"reference": "label 3", "prediction": "label 3", "count": 1},
            {"reference": "label 3", "prediction": "label 4", "count": 1},
            {"reference": "label 39999", "prediction": "label 39999", "count": 1},
        ]
    }
    assert scores.metrics == {
        "accuracy": pytest.approx(2 / 3),
        "accuracy_corrected": pytest.approx(2 / 3),
        "macro_f1": pytest.approx((2 / 3 + 0 + 1) / 3),
        "micro_f1": pytest.approx(2 / 3),
    }
    text = report_text(scores)
    assert "  and 39,997 more, see -save_report\n" in text
    assert len(text.splitlines()) < 60


def test_labels_that_were_chosen_are_not_called_corrected():
    text = report_text(score(["부정", "긍정"], ["부정", "부정"], SENTIMENT, correction=CHOSEN))
    assert "predicted labels: 1 unique\n" in text
    assert "\n\nper class\n" in text
    assert "\n\nconfusion matrix (rows: reference, columns: prediction)\n" in text
    assert "  accuracy             0.5000\n  macro_f1             0.3333\n" in text
    assert [word for word in ("correct", "generated", "invalid") if word in text.replace("(invalid)", "")] == []


def test_examples_of_free_text_show_the_wrong_rows_first():
    references = ["열한 시", "만 원", None, "끝", "가" * 40]
    predictions = ["열한 시", "만\x1b 원", "모름", "", "나"]
    cut = [False, True, False, False, True]
    outputs = Outputs.of(zip(references, predictions, cut, strict=True), lambda row: f"원문 {row}")
    text = report_text(score(references, predictions, names=["exact_match"]), outputs)
    assert "\n2 outputs of 5 reached the length limit and were cut\n" in text
    assert (
        "examples: 3 of 3 rows that differ from the reference\n"
        "\n"
        "  source      원문 1\n"
        "  reference   만 원\n"
        "  prediction  만\\u001b 원\n"
        "\n"
        "  source      원문 3\n"
        "  reference   끝\n"
        "  prediction  (empty)\n"
        "\n"
        "  source      원문 4\n"
        f"  reference   {'가' * 29}…\n"
        "  prediction  나\n"
        "\n"
        "  source      원문 0\n"
    ) in text
    assert "\n  source      원문 2\n  prediction  모름\n" in text  # a row without a reference
    right = Outputs.of([("가", "가", False)], lambda row: f"원문 {row}")
    assert "\nexamples: no row differs from its reference\n" in report_text(score(["가"], ["가"]), right)


@pytest.mark.parametrize("postprocessor", [FREE_TEXT, SENTIMENT])
def test_without_references_no_number_is_made_up(postprocessor):
    for references, predictions in (([], []), ([None], ["긍정"])):
        scores = score(references, predictions, postprocessor)
        text = report_text(scores)
        assert text.endswith("\n\nmetrics: none, no row has a reference\n")
        assert "per class" not in text
        assert report_dict(scores, {})["metrics"] == {}


def test_correction_none_is_said():
    assert "\ncorrection: none\n" in report_text(score(["부정"], ["긍젱"], SENTIMENT, correction="none"))


def test_report_dict_is_the_json_of_save_report():
    report = report_dict(
        label_scores(), {"model": Path("runs/x"), "labels": SENTIMENT, "limit": float("inf"), "beams": (1, 4)}
    )
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report) == [
        "rows", "scored_rows", "metrics", "invalid_outputs", "per_class", "confusion_matrix", "settings",
    ]  # fmt: skip
    assert (report["rows"], report["scored_rows"], report["invalid_outputs"]) == (4, 3, 3)
    assert report["metrics"]["accuracy"] == 1 / 3
    assert report["per_class"][1] == {"label": "긍정", "precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 2}
    assert report["confusion_matrix"]["rows"] == [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert report["settings"] == {
        "model": "runs/x",
        "labels": {"entries": [["0", "부정"], ["1", "긍정"], ["2", "아주 긍정"]], "separator": ""},
        "limit": None,
        "beams": [1, 4],
        "metric_details": {},
    }


def test_details_of_the_metrics_are_in_the_settings():
    details = report_dict(score(["가나다라"], ["가나다라"]), {})["settings"]["metric_details"]
    assert "tok:char" in details["bleu"]
    assert "keeps Hangul" in details["rouge"]
