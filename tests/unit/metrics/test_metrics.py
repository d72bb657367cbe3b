"""Metrics against values worked out by hand."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import unicodedata
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.registry import LABELS, TEXTS, default_metrics
from metrics.score import correct, score
from metrics.text import BLOCK, WordTokenizer, text_metrics
from postprocessors.base import FREE_TEXT
from postprocessors.labels import LabelMap

SENTIMENT = LabelMap((("0", "부정"), ("1", "긍정"), ("2", "중립적인")))
ROOT = Path(__file__).resolve().parents[3]
ROUGE = ("rouge1", "rouge2", "rougeL")


def metric_of(name, references, predictions):
    """The figure and how it was computed."""
    figures, details = text_metrics(references, predictions, [name])
    return figures[name], details.get(name)


def test_label_scores_with_a_distance_limit_an_invalid_output_and_an_unlabelled_row():
    scores = score(
        ["부정", "긍정", None, "긍정", "부정"], ["부정", "긍젱", "긍정!", "zzzzzzzz", "긍정"], SENTIMENT, max_distance=1
    )
    assert (scores.rows, scores.scored_rows, scores.invalid_outputs) == (5, 4, 3)
    # corrected: 부정, 긍정, (긍정), none, 긍정
    assert scores.metrics == {
        "accuracy": 1 / 4,
        "accuracy_corrected": 2 / 4,
        "macro_f1": pytest.approx((2 / 3 + 1 / 2) / 2),  # 중립적인 neither occurs nor is predicted
        "micro_f1": pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),
    }
    assert scores.per_class == [
        {"label": "부정", "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        {"label": "긍정", "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
        {"label": "중립적인", "precision": None, "recall": None, "f1": None, "support": 0},
    ]
    assert scores.averages == [
        {"label": "macro", "precision": 0.75, "recall": 0.5, "f1": pytest.approx(7 / 12), "support": 4},
        {"label": "micro", "precision": pytest.approx(2 / 3), "recall": 0.5, "f1": pytest.approx(4 / 7), "support": 4},
    ]
    assert scores.confusion_matrix == {
        "labels": ["부정", "긍정", "중립적인"],
        "columns": ["부정", "긍정", "중립적인", "(invalid)"],
        "rows": [[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]],
    }
    assert scores.prediction_counts == {"부정": 1, "긍젱": 1, "긍정!": 1, "zzzzzzzz": 1, "긍정": 1}
    assert scores.corrections == [
        {"output": "긍젱", "label": "긍정", "count": 1},
        {"output": "긍정!", "label": "긍정", "count": 1},
        {"output": "zzzzzzzz", "label": None, "count": 1},
    ]
    assert scores.corrected_counts == {"부정": 1, "긍정": 3, "중립적인": 0, None: 1}


def test_without_a_limit_every_output_becomes_a_label():
    scores = score(["부정", "긍정"], ["", "긍정 "], SENTIMENT)
    assert scores.metrics == {"accuracy": 0.0, "accuracy_corrected": 1.0, "macro_f1": 1.0, "micro_f1": 1.0}
    assert scores.invalid_outputs == 2
    assert scores.corrected_counts == {"부정": 1, "긍정": 1, "중립적인": 0}


def test_correction_none_takes_label_texts_only():
    scores = score(["부정", "긍정", "긍정"], ["부정", "긍젱", "긍정"], SENTIMENT, correction="none")
    assert scores.metrics["accuracy"] == scores.metrics["accuracy_corrected"] == 2 / 3
    assert scores.metrics["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores.metrics["micro_f1"] == pytest.approx(0.8)  # precision 2/2, recall 2/3
    assert scores.corrections == [{"output": "긍젱", "label": None, "count": 1}]
    assert scores.confusion_matrix["rows"][1] == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="correction 'closest' is unknown; known: nearest, none"):
        correct([], SENTIMENT, "closest")


def test_a_label_that_is_never_predicted_and_one_predicted_without_support():
    scores = score(["부정", "부정"], ["부정", "긍정"], SENTIMENT)
    assert scores.metrics["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert [row["f1"] for row in scores.per_class] == [pytest.approx(2 / 3), 0.0, None]
    scores = score(["부정", "긍정"], ["부정", "부정"], SENTIMENT)
    assert scores.per_class[1] == {"label": "긍정", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}


def test_a_single_class():
    scores = score(["네", "네"], ["네", "네"], LabelMap((("1", "네"),)))
    assert scores.metrics == {"accuracy": 1.0, "accuracy_corrected": 1.0, "macro_f1": 1.0, "micro_f1": 1.0}
    assert scores.confusion_matrix["rows"] == [[2, 0]]


def test_every_output_invalid():
    scores = score(["부정", "긍정"], ["", "???"], SENTIMENT, correction="none")
    assert scores.metrics == dict.fromkeys(default_metrics(LABELS), 0.0)
    assert [row["precision"] for row in scores.per_class] == [0.0, 0.0, None]


@pytest.mark.parametrize("postprocessor", [FREE_TEXT, SENTIMENT])
@pytest.mark.parametrize("references, predictions", [([], []), ([None, None], ["부정", ""])])
def test_no_reference_gives_no_metric(postprocessor, references, predictions):
    scores = score(references, predictions, postprocessor)
    assert (scores.rows, scores.scored_rows) == (len(predictions), 0)
    assert (scores.metrics, scores.per_class, scores.confusion_matrix) == ({}, [], None)
    assert scores.prediction_counts == dict.fromkeys(predictions, 1)
    assert scores.invalid_outputs == (1 if postprocessor is SENTIMENT and predictions else 0)


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="1 references, but 0 predictions"):
        score(["a"], [])
    with pytest.raises(ValueError, match="metric 'accuracy' needs labels; known here: exact_match, chrf, bleu"):
        score([], [], names=["accuracy"])
    with pytest.raises(ValueError, match="metric 'f1' is unknown"):
        score([], [], SENTIMENT, names=["f1"])
    with pytest.raises(ValueError, match="reference '1' is no label text; known: 0=부정, 1=긍정, 2=중립적인"):
        score(["1"], ["긍정"], SENTIMENT)


def test_names_choose_and_order_the_metrics():
    scores = score(["부정"], ["부정"], SENTIMENT, names=["micro_f1", "exact_match"])
    assert list(scores.metrics.items()) == [("micro_f1", 1.0), ("exact_match", 1.0)]
    assert tuple(score(["a b"], ["a b"]).metrics) == default_metrics(TEXTS)


def test_a_hundred_thousand_rows():
    texts = SENTIMENT.texts
    references = [texts[row % 3] for row in range(100_000)]
    predictions = [f"{texts[row % 3]}{row}" if row % 10 == 0 else texts[row % 3] for row in range(100_000)]
    scores = score(references, predictions, SENTIMENT, max_distance=5)
    assert (scores.metrics["accuracy"], scores.metrics["accuracy_corrected"]) == (0.9, 1.0)
    assert (scores.invalid_outputs, len(scores.corrections)) == (10_000, 10_000)


def test_exact_match_compares_texts_as_they_stand():
    predictions = ["a", "a ", unicodedata.normalize("NFD", "가"), ""]
    assert metric_of("exact_match", ["a", "a", "가", ""], predictions)[0] == 0.5


def test_bleu_of_english_uses_13a():
    points, signature = metric_of("bleu", ["the cat sat on the mat"], ["the cat sat on the"])
    assert points == pytest.approx(100 * math.exp(1 - 6 / 5))  # every n-gram matches; brevity penalty
    assert "tok:13a" in signature


def test_bleu_of_korean_counts_characters():
    points, signature = metric_of("bleu", ["가나 다라마"], ["가나 다라"])
    assert points == pytest.approx(100 * math.exp(1 - 5 / 4))
    assert "tok:char" in signature
    assert metric_of("bleu", ["the 고양이 sat here"], ["the 고양이 sat here"])[1] == signature.replace("char", "13a")


def test_chrf_of_korean():
    points, signature = metric_of("chrf", ["가나"], ["가"])
    assert points == pytest.approx(100 * 5 * 1 * 0.5 / (4 * 1 + 0.5))  # unigrams: precision 1, recall 1/2, beta 2
    assert "nc:6" in signature


def test_rouge_keeps_hangul():
    assert WordTokenizer().tokenize("밥을 2번, Ate!") == ["밥을", "2번", "ate"]
    result, _ = text_metrics(["나는 밥을 먹었다"], ["나는 밥을 먹는다."], ROUGE)
    assert result == {"rouge1": pytest.approx(2 / 3), "rouge2": pytest.approx(1 / 2), "rougeL": pytest.approx(2 / 3)}
    result, _ = text_metrics(["가 나 다"], ["다 가 나"], ROUGE)
    assert result == {"rouge1": 1.0, "rouge2": pytest.approx(1 / 2), "rougeL": pytest.approx(2 / 3)}


def test_rouge_is_a_mean_of_rows_over_normalised_words():
    references = ["밥을 먹었다", "Yes Sir", "하나 둘"]
    predictions = [unicodedata.normalize("NFD", "밥을 먹었다"), "yes sir", ""]
    assert text_metrics(references, predictions, ROUGE)[0] == dict.fromkeys(ROUGE, pytest.approx(2 / 3))


def test_free_text_scores_with_empty_predictions_and_unlabelled_rows():
    scores = score(["수업은 열한 시", None, "만 원"], ["수업은 열한 시", "", ""])
    assert (scores.rows, scores.scored_rows, scores.invalid_outputs) == (3, 2, 0)
    assert scores.metrics["exact_match"] == 0.5
    assert (scores.metrics["rouge1"], scores.metrics["rouge2"], scores.metrics["rougeL"]) == (0.5, 0.5, 0.5)
    # BLEU: six characters, all right, against eight in the references
    assert scores.metrics["bleu"] == pytest.approx(100 * math.exp(1 - 8 / 6))
    assert set(scores.details) == {"bleu", "chrf", "rouge"}
    assert score(["가"], [""]).metrics == dict.fromkeys(default_metrics(TEXTS), 0.0)


def test_blocks_add_up_to_what_the_libraries_say_of_the_whole(monkeypatch):
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    monkeypatch.setattr("metrics.text.BLOCK", 3)
    references = [f"the {row} cats sat on mat {row % 4}" if row % 5 else None for row in range(23)]
    predictions = [f"the {row} cats {'sat' if row % 3 else 'lay'} on mat {row % 3}" for row in range(23)]
    scored = [(ref, text) for ref, text in zip(references, predictions, strict=True) if ref is not None]
    figures, _ = text_metrics(references, predictions, default_metrics(TEXTS))
    texts, raw = [text for _, text in scored], [ref for ref, _ in scored]
    assert figures["bleu"] == BLEU().corpus_score(texts, [raw]).score
    assert figures["chrf"] == CHRF().corpus_score(texts, [raw]).score
    assert figures["exact_match"] == sum(ref == text for ref, text in scored) / len(scored)
    rouge = [RougeScorer(["rougeL"], tokenizer=WordTokenizer()).score(*pair)["rougeL"].fmeasure for pair in scored]
    assert figures["rougeL"] == pytest.approx(sum(rouge) / len(rouge))


def test_of_many_free_texts_the_most_frequent_are_counted(monkeypatch):
    monkeypatch.setattr("metrics.score.TEXTS_COUNTED", 3)
    predictions = ["a", "b", "", "b", "c", "\ud800", "", "b", "d", "c"]
    scores = score([None] * 10, predictions, names=[])
    assert (scores.unique_predictions, scores.rows, scores.scored_rows) == (6, 10, 0)
    assert list(scores.prediction_counts.items()) == [("b", 3), ("", 2), ("c", 2)]


def test_rows_are_read_one_after_the_other_and_not_kept():
    """A sequence that reads from a disk: no more than a block of its items lives at a time."""
    alive = weakref.WeakSet()
    most = 0

    class Text(str):
        pass

    class OnDisk(Sequence):
        def __len__(self):
            return 20_000

        def __getitem__(self, place):
            nonlocal most
            if isinstance(place, slice):
                return [self[row] for row in range(*place.indices(len(self)))]
            if place >= len(self):
                raise IndexError(place)
            text = Text(f"text {place % 7}")
            alive.add(text)
            most = max(most, len(alive))
            return text

    assert score(OnDisk(), OnDisk(), names=["exact_match", "rouge1"]).metrics == {"exact_match": 1.0, "rouge1": 1.0}
    assert most <= 2 * BLOCK + 10


def test_lines_that_end_in_periods_make_no_warning(capfd):
    metric_of("bleu", ["a b c d ."] * 200, ["a b c d ."] * 200)
    assert capfd.readouterr() == ("", "")


@given(st.lists(st.tuples(st.sampled_from([*SENTIMENT.texts, None]), st.sampled_from([*SENTIMENT.texts, "", "긍젱"]))))
def test_tables_agree_with_the_rows(pairs):
    scores = score([ref for ref, _ in pairs], [pred for _, pred in pairs], SENTIMENT, max_distance=1)
    assert sum(scores.prediction_counts.values()) == sum(scores.corrected_counts.values()) == len(pairs)
    assert sum(item["count"] for item in scores.corrections) == scores.invalid_outputs
    if scores.confusion_matrix is not None:
        rows = scores.confusion_matrix["rows"]
        assert [sum(row) for row in rows] == [row["support"] for row in scores.per_class]
        right = sum(row[number] for number, row in enumerate(rows))
        assert scores.metrics["accuracy_corrected"] == pytest.approx(right / scores.scored_rows)


def test_importing_the_metrics_loads_no_heavy_library():
    heavy = "{'torch', 'transformers', 'sklearn', 'numpy', 'sacrebleu', 'rouge_score', 'jinja2', 'datasets', 'rich'}"
    code = f"import sys, task_utils, metrics.score; task_utils.task_names(); print({heavy} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


MOODS = LabelMap((("0", "joy"), ("1", "anger"), ("2", "fear"), ("3", "awe")), separator=", ")


def test_rows_of_several_labels_by_hand():
    """Four rows: right; one label missed; one too many (in a strange order, and misspelt); nothing that is a label."""
    references = ["joy, anger", "joy, fear", "anger", "fear"]
    predictions = ["joy, anger", "joy", "fear,angr", "zzzzzzzzz"]
    scores = score(references, predictions, MOODS, max_distance=2)
    assert scores.invalid_outputs == 2
    assert scores.corrections == [
        {"output": "fear,angr", "label": "anger, fear", "count": 1},
        {"output": "zzzzzzzzz", "label": None, "count": 1},
    ]
    assert scores.corrected_counts == {"joy": 2, "anger": 2, "fear": 1, "awe": 0, None: 1}
    assert [(row["label"], row["precision"], row["recall"], row["support"]) for row in scores.per_class] == [
        ("joy", 1.0, 1.0, 2),
        ("anger", 1.0, 1.0, 2),
        ("fear", 0.0, 0.0, 2),
        ("awe", None, None, 0),
    ]
    # 4 decisions right, 1 false alarm, 2 misses: precision 4/5, recall 4/6, F1 8/11
    assert scores.metrics == {
        "accuracy": 0.25,
        "accuracy_corrected": 0.25,
        "macro_f1": pytest.approx(2 / 3),
        "micro_f1": pytest.approx(8 / 11),
    }
    assert [row["support"] for row in scores.averages] == [6, 6]
    assert scores.confusion_matrix is None
    assert correct(predictions, MOODS, "none") == ["joy, anger", "joy", None, None]
    with pytest.raises(ValueError, match="reference 'anger, joy' is no label text"):
        score(["anger, joy"], ["joy"], MOODS)


def test_one_label_a_row_is_the_same_with_a_separator():
    references, predictions = ["joy", "anger", "fear", "joy"], ["joy", "joy", "fear", "jo"]
    several, one = (score(references, predictions, label_map) for label_map in (MOODS, MOODS.joined_by("")))
    assert several.metrics == one.metrics
    assert (several.per_class, several.corrected_counts) == (one.per_class, one.corrected_counts)


@pytest.mark.parametrize("separator", ["", ", "])
def test_tables_of_labels_are_those_of_scikit_learn(separator):
    """Six labels, of which one never occurs and one is never predicted; also several of them in a row."""
    from sklearn.metrics import precision_recall_fscore_support

    draw = random.Random(3)
    label_map = LabelMap(tuple((str(number), letter) for number, letter in enumerate("abcdef")), separator)

    def texts(letters):
        count = 3 if separator else 1
        return [
            separator.join(sorted({draw.choice(letters) for _ in range(draw.randint(1, count))})) for _ in range(200)
        ]

    def decisions(rows):
        return [[int(letter in row.split(", ")) for letter in "abcdef"] for row in rows]

    references, predictions = texts("abcde"), texts("abcd")
    scores = score(references, predictions, label_map)
    arguments = {"labels": list(range(5)), "zero_division": 0}
    true, guess = decisions(references), decisions(predictions)
    columns = precision_recall_fscore_support(true, guess, average=None, **arguments)
    for index, row in enumerate(scores.per_class[:5]):
        found = [row[name] for name in ("precision", "recall", "f1", "support")]
        assert found == pytest.approx([column[index] for column in columns], abs=1e-12)
    assert scores.per_class[5] == {"label": "f", "precision": None, "recall": None, "f1": None, "support": 0}
    for row in scores.averages:
        expected = precision_recall_fscore_support(true, guess, average=row["label"], **arguments)[:3]
        assert [row[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected, abs=1e-12)
