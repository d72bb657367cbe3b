"""Bootstrap: drawn rows are scored as if they stood in a file, and intervals and p-values are what they should be."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest

from metrics.registry import METRICS, TEXTS, Metric
from metrics.score import score
from metrics.uncertainty.confidence import Difference, Interval, differences, drawn_figures, intervals
from postprocessors.answers import Answers
from postprocessors.base import FREE_TEXT
from postprocessors.labels import LabelMap
from postprocessors.numbers import Number
from task_utils import get_task

SENTIMENT = LabelMap((("0", "부정"), ("1", "긍정"), ("2", "중립")))
SENTENCES = [
    "나는 어제 학교에 갔다.",
    "비가 와서 소풍이 취소되었다.",
    "그 책은 정말 재미있었다!",
    "서울의 야경은 아름답다.",
]
TEXT = (
    [SENTENCES[row % 4] for row in range(12)],
    [SENTENCES[row % 4][row % 5 :] if row % 3 else SENTENCES[row % 2] for row in range(12)],
)
LABEL = (["부정", "긍정", "중립"] * 4, ["부정", "긍정", "긍정", "부정적", "중립", "중립"] * 2)
EMOTIONS = LabelMap((("0", "기쁨"), ("1", "슬픔"), ("2", "분노")), ", ")
SEVERAL = (["기쁨, 슬픔", "분노", "슬픔"] * 4, ["슬픔, 기쁨", "분노, 기쁨", "웃음, 슬픔", "기쁨", "", "슬픔"] * 2)
RELATIONS = LabelMap((("0", "부정"), ("1", "긍정"), ("no_relation", "중립")))
NUMBERS = ([str(row / 2) for row in range(12)], [str(row % 5) if row % 4 else "약 3" for row in range(12)])
GOLDS = (['["3일", "오는 3일"]', "[]", '["서울"]'] * 4, ["3일에", "", "부산", "오는 3일", "서울", "서울 시"] * 2)


SPANS = (
    ["<김하늘:PS> 최고", "<서울:LC>의 <봄:DT>", "비가 온다"] * 4,
    ["<김하늘:PS> 최고", "<서울:OG>의 <봄:DT>", "비가 <온다:PS>", "김하늘 <최고:PS>", "<서울:LC>의 겨울", "비가 온다"]
    * 2,
)
ARCS = (
    ["deprel: (1/2, 2, NP_SBJ)▁(2/4, 0, VP)", "deprel: (1/2, 0, NP)"] * 6,
    ["deprel: (1/2, 2, NP_OBJ)▁(2/4, 0, VP)", "없음", "deprel: (1/2, 0, NP)▁(2/4, 0, VP)", "deprel: (1/2, 0, NP)"] * 3,
)


@pytest.mark.parametrize(
    "postprocessor, rows, names",
    [
        (FREE_TEXT, TEXT, "exact_match chrf chrf++ bleu bleu_13a rouge1 rougeL rouge2_char ter wer cer cer_nospace"),
        (SENTIMENT, LABEL, "accuracy accuracy_corrected macro_f1 micro_f1 klue_macro_f1 weighted_f1 exact_match"),
        (Number(), NUMBERS, "pearson spearman sts_f1"),
        (
            get_task("klue-ner").output,
            SPANS,
            "entity_macro_f1 entity_micro_f1 character_macro_f1 entity_macro_f1_aligned",
        ),
        (
            get_task("klue-dp").output,
            ARCS,
            "uas las uas_corrected las_corrected uas_macro_f1 las_macro_f1 las_micro_f1",
        ),
        (EMOTIONS, SEVERAL, "samples_f1 subset_accuracy weighted_f1 micro_f1 macro_f1 accuracy_corrected"),
        (RELATIONS, LABEL, "klue_re_f1 macro_f1 accuracy"),
        (Answers(), GOLDS, "klue_em rouge_w squad_v2_em squad_v2_f1 exact_match"),
    ],
)
def test_drawn_rows_score_as_rows_of_a_file(postprocessor, rows, names):
    references, predictions = rows
    figures = drawn_figures(names.split(), [*references, None], [*predictions, "x"], postprocessor)
    random.seed(5)
    for counts in ([1] * 12, [random.choice((0, 0, 1, 2, 3)) for _ in references]):
        drawn = [[text for text, count in zip(side, counts, strict=True) for _ in range(count)] for side in rows]
        expected = score(*drawn, postprocessor, names=names.split()).metrics
        assert figures(np.array(counts)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def accuracy_rows(right: int, rows: int = 400) -> list[str]:
    return ["긍정"] * right + ["부정"] * (rows - right)


def test_the_interval_of_a_share_is_the_textbooks():
    figures = drawn_figures(["accuracy"], ["긍정"] * 400, accuracy_rows(320), SENTIMENT)
    found = intervals(figures, 400)["accuracy"]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert (found.low, found.high) == (pytest.approx(0.8 - half, abs=0.006), pytest.approx(0.8 + half, abs=0.006))
    wider = intervals(figures, 400, level=0.99)["accuracy"]
    assert wider.low < found.low < found.high < wider.high
    assert intervals(figures, 400, draws=50, seed=3) == intervals(figures, 400, draws=50, seed=3)
    assert intervals(figures, 400, draws=50, seed=3) != intervals(figures, 400, draws=50, seed=4)


def test_draws_in_which_a_figure_is_undefined_are_counted():
    figures = drawn_figures(["pearson", "spearman"], ["1", "2", "3"], ["1", "2", "2"], Number())
    found = intervals(figures, 3, draws=200)
    assert 0 < found["pearson"].undefined < 100  # the same row thrice, or rows with one prediction
    assert found["pearson"].low <= 100 * math.sqrt(3) / 2 <= found["pearson"].high
    constant = drawn_figures(["pearson"], ["1", "2"], ["3", "3"], Number())
    assert str(intervals(constant, 2, draws=20)["pearson"]) == str(Interval(math.nan, math.nan, 20))
    assert math.isnan(differences(constant, constant, 2, draws=20)["pearson"].p_value)


def compared(first: list[str], second: list[str], draws: int = 1000) -> Difference:
    references = ["긍정"] * len(first)
    one, other = (drawn_figures(["accuracy"], references, texts, SENTIMENT) for texts in (first, second))
    return differences(one, other, len(first), draws=draws)["accuracy"]


def test_predictions_that_do_not_differ():
    assert compared(accuracy_rows(320), accuracy_rows(320)) == Difference(0.0, Interval(0.0, 0.0), 1.0)


def test_a_difference_and_how_likely_it_is_by_chance():
    large = compared(accuracy_rows(300), accuracy_rows(330))
    assert large.value == pytest.approx(0.075)
    assert large.interval.low > 0
    assert large.p_value == pytest.approx(1 / 1001)  # no draw of 1,000 is as far from their mean
    worse = compared(accuracy_rows(330), accuracy_rows(300))
    assert (worse.value, worse.p_value) == (-large.value, large.p_value)
    # 8 rows gained and 4 lost of 400: a difference of 4 with a deviation of sqrt(12), two-sided 0.25 by the normal law
    first = ["부정"] * 8 + ["긍정"] * 392
    second = ["긍정"] * 396 + ["부정"] * 4
    small = compared(first, second, draws=2000)
    assert small.value == pytest.approx(0.01)
    assert small.p_value == pytest.approx(0.25, abs=0.07)
    assert small.interval.low < 0 < small.interval.high


def test_what_cannot_be_drawn_is_named(monkeypatch):
    monkeypatch.setitem(METRICS, "own", Metric("own", TEXTS, "", lambda *_: object()))
    for name, message in (
        ("accuracy", "metric 'accuracy' is not computed of these outputs"),
        ("val_loss", "metric 'val_loss' is not computed of these outputs"),
        ("own", "metric 'own' does not follow from sums over the rows"),
    ):
        with pytest.raises(ValueError, match=message):
            drawn_figures([name], ["가"], ["가"])
    figures = drawn_figures(["exact_match"], ["가"], ["가"])
    for rows, level, message in ((0, 0.95, "no row to draw"), (1, 95, "level 95 is not between 0 and 1")):
        with pytest.raises(ValueError, match=message):
            intervals(figures, rows, level)
    assert json.dumps(intervals(figures, 1)) == '{"exact_match": [1.0, 1.0, 0]}'
