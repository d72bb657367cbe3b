"""The pages of reports: whole HTML that loads nothing, whatever the data hold, of bounded size."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metrics.report import report_dict
from metrics.score import Scores, score
from metrics.uncertainty.probabilities import with_probabilities
from postprocessors.labels import LabelMap
from reports import svg
from reports.charts import Curves, Histogram, Line, Reliability, histogram, line
from reports.images import NO_FONT, save_images
from reports.outputs import Look, worst_rows
from reports.prediction import prediction_page, score_charts
from tests.html_pages import Page

EVIL = "<script>alert(1)</script>\"'&amp;</td><img src=x onerror=alert(1)>\x00\u202e"
LABELS = LabelMap.parse("0=부정,1=긍정")


def page_of(scores: Scores, look: Look, **settings: Any) -> str:
    return prediction_page(report_dict(scores, settings), look, "Report of predictions", ("task nsmc", EVIL))


def look_of(scores: Scores, references: list[str | None], predictions: list[str], sure: list[float | None]) -> Look:
    return worst_rows(scores, references, predictions, sure, lambda row: f"{row} {EVIL}")


def test_a_page_of_labels_is_whole_and_loads_nothing() -> None:
    references, predictions = ["긍정", "긍정", "부정", None], ["긍정", "부정", EVIL, "긍정"]
    scores = score(references, predictions, LABELS, correction="none")
    scores = with_probabilities(scores, references, [(0.2, 0.8), (0.9, 0.1), (0.4, 0.6), (0.5, 0.5)])
    look = look_of(scores, references, predictions, [0.8, 0.9, 0.6, 0.5])
    look = replace(look, reliability=Reliability("calibration", "Calibration", scores.reliability))
    content = page_of(scores, look, beam_size=4, model=EVIL, label_map="")
    page = Page(content)
    assert not re.search(r"https?:|url\(|@import|<link|<script|javascript:", content)
    assert {name for name in page.attributes if name.startswith("on") or name in ("src", "href")} == set()
    assert page.text.count("<script>alert(1)</script>\"'&amp;</td>") >= 4
    assert "\x00" not in content
    assert r"\u0000" in content
    assert "4 predictions, 3 with a reference; 1 output of no value" in page.text
    assert "2 of 2 wrong rows, the surest first. Rows count from 0." in page.text
    assert '<td style="--part:0.500">1</td>' in content  # one of two 긍정 is right
    assert '<td class=miss style="--part:1.000">1</td>' in content  # the only 부정 is no label
    assert "probability of the predicted label" in content
    assert "<li><b>beam_size</b> <bdi>4</bdi></li>" in content
    assert "<b>label_map</b>" not in content  # no value


def test_the_worst_labels_are_the_surest_and_the_worst_texts_have_least_in_common() -> None:
    references: list[str | None] = ["긍정", "긍정", "부정", "부정"]
    predictions = ["부정", "부정", "부정 ", "긍정"]
    scores = score(references, predictions, LABELS)
    found = look_of(scores, references, predictions, [0.6, 0.9, 0.99, 0.7])  # the third one is corrected
    assert ([example.row for example in found.examples], found.wrong) == ([1, 3, 0], 3)
    texts = score(["abcd", "abcd", "abcd", None], ["abcd", "abxx", "zzzz", "q"])
    found = look_of(texts, ["abcd", "abcd", "abcd", None], ["abcd", "abxx", "zzzz", "q"], [None] * 4)
    assert [(example.row, example.source) for example in found.examples] == [(2, f"2 {EVIL}"), (1, f"1 {EVIL}")]
    assert found.order == "those first that have least in common with their reference"


@pytest.mark.parametrize("classes", [200, 300])
def test_many_classes_and_long_texts_make_a_small_page(classes: int) -> None:
    labels = LabelMap.parse(",".join(f"{number}=라벨{number}" for number in range(classes)))
    references = [f"라벨{number}" for number in range(classes)] * 3
    predictions = references[1:] + references[:1]
    scores = score(references, predictions, labels)
    look = worst_rows(scores, references, predictions, [0.5] * len(references), lambda _: "긴 글 " * 10_000)
    content = page_of(scores, look)
    page = Page(content)
    assert len(content.encode("utf-8")) < 150_000
    assert f"and {classes - 100:,} more" in page.text
    assert f"and {classes - 20:,} more pairs" in page.text


def test_a_page_without_references_is_whole() -> None:
    page = Page(page_of(score([None], ["x"]), Look()))
    assert "1 prediction, 0 with a reference" in page.text
    assert "Worst examples" not in page.text


def test_undefined_figures_are_said() -> None:
    scores = replace(score(["a"], ["a"]), metrics={"bleu": float("nan")})
    assert "undefined" in Page(page_of(scores, Look())).text


def test_a_line_of_many_points_keeps_its_extremes() -> None:
    values: list[tuple[int, float | None]] = [(step, 1.0) for step in range(100_000)]
    values[777], values[5], values[6] = (777, 9.0), (5, float("nan")), (6, None)
    found = line("loss", values)
    assert len(found.points) <= 300
    assert (777.0, 9.0) in found.points
    drawn = svg.curves(Curves("loss", "Loss", "step", (found, Line("val", ((50_000.0, 0.1),)))))
    assert len(drawn) < 10_000
    assert "val 0.1" in drawn
    assert svg.curves(Curves("loss", "Loss", "step", (Line("none", ()),))) == ""


def test_lengths_up_to_the_cut_off_lie_in_front_of_it() -> None:
    found = histogram("lengths", "Sources", "tokens", {"sources": [1, 10, 11, 200, 200]}, cut_off=200)
    counts = (2, 1, *[0] * 17, 2)
    assert found == Histogram("lengths", "Sources", "tokens", 10, (("sources", counts),), 200)
    tail = histogram("lengths", "", "", {"a": [5] * 999 + [90_000]})
    assert tail is not None
    assert (tail.clipped, sum(tail.counts[0][1]), len(tail.counts[0][1]) <= 24) == (True, 1000, True)
    assert "7 and more: 1" in svg.histogram(tail)
    assert histogram("lengths", "", "", {"a": []}) is None


def test_sets_of_labels_and_abstention_stand_beside_what_was_asked_for() -> None:
    report: dict[str, Any] = report_dict(score(["긍정"], ["긍정"], LABELS), {})
    report["label_sets"] = {"level": 0.9, "coverage": 0.91, "mean_size": 1.25, "sizes": {"1": 3, "2": 1}}
    report["abstain"] = {"rate": 0.05, "answered_share": 0.5, "answered": 2, "error_rate": None}
    text = Page(prediction_page(report, Look(), "")).text
    assert "sets that hold the label0.910asked for: 0.9 or more" in text
    assert "labels in a set1.2503 of 1, 1 of 2" in text
    assert "wrong answers-asked for: 0.05 or less" in text


def test_charts_become_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = score(["긍정", "부정"], ["긍정", "긍정"], LABELS)
    lengths = histogram("lengths", "Lengths", "tokens", {"a": [1, 2], "b": [3]}, 3)
    sure = Reliability("calibration", "Calibration", ((0.6, 0.5, 3), (0.9, 1.0, 1)))
    curves = Curves(
        "loss", "Loss", "step", (Line("", ((1.0, 2.0), (2.0, 1.0))), Line("검증", ((1.0, 1.0),), dots=True))
    )
    assert lengths is not None
    look = Look(lengths=(lengths,), reliability=sure)
    charts = [(chart.name, chart) for chart in (*score_charts(report_dict(scores, {}), look), curves)]
    monkeypatch.setattr("reports.images.FONTS", ())
    assert save_images(tmp_path / "images", charts, overwrite=False) == [NO_FONT]
    names = ("calibration", "classes", "confusion_matrix", "lengths", "loss")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [f"{name}.png" for name in names]
    for path in (tmp_path / "images").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
