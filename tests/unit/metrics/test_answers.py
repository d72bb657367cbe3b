"""Answers to questions, scored as KLUE-MRC, KorQuAD 1.0, SQuAD 1.1 and 2.0 score them."""

from __future__ import annotations

import json
import math

import pytest

from metrics.answers import SCORES, with_no_answer
from metrics.report import Outputs, report_text
from metrics.score import score
from postprocessors.answers import Answers, expected
from postprocessors.kinds import postprocessor_of
from tests.official_scorers import differing, golden_cases

NONE = "[알 수 없음]"


def figures(golds, predictions, *names, unanswerable=""):
    """The metrics, of questions with these right answers."""
    references = [json.dumps(right, ensure_ascii=False) for right in golds]
    return score(references, predictions, Answers(unanswerable), names=names).metrics


@pytest.mark.parametrize(
    "name, prediction, golds, expected",
    [
        ("klue_em", "안드로이드 12'()‘’", ["안드로이드 12"], 1),  # the one string that its pattern matches
        ("klue_em", "《안드로이드 12》", ["안드로이드 12"], 0),
        ("klue_em", "...", [], 1),
        ("rouge_w", "안드로이드 12가", ["12가지", "안드로이드 12"], 2 * 8 / 17),
        ("rouge_w", "", ["안드로이드"], 0),
        ("korquad_em", "《세종 대왕〉", ["세종 대왕"], 1),
        ("korquad_f1", "왕대종세", ["세종대왕", "김밥"], 1),
        ("korquad_em", "()", ["..."], 1),
        ("korquad_f1", "()", ["..."], 0),
        ("squad_em", "The. Wall", ["wall"], 1),
        ("squad_em", "a는", ["는"], 0),
        ("squad_f1", "the", ["a"], 0),
        ("squad_em", "the", ["a", "cat"], 1),
        ("squad_v2_em", "the", ["a", "cat"], 0),
        ("squad_v2_f1", "the", ["a"], 1),
        ("squad_v2_f1", "two cats", ["two dogs"], 1 / 2),
        ("squad_v2_em", "the", [], 1),
    ],
)
def test_one_answer(name, prediction, golds, expected):
    assert figures([golds], [prediction], name) == {name: pytest.approx(100 * expected)}


def as_answered(case):
    """The right answers and the answer of each question that has one, and the share of these in all questions."""
    options = case.get("options", {})
    limit, shares = options.get("no_answer_threshold", 1), options.get("no_answer_probabilities", [])
    ids = [question.get("id", str(row)) for row, question in enumerate(case["references"])]
    last = dict(zip(ids, case["predictions"], strict=True))  # of questions with one id the last answer counts for all
    rows = []
    for row, (number, question) in enumerate(zip(ids, case["references"], strict=True)):
        text = last[number]
        if shares and shares[row] > limit:  # taken for unanswerable: wrong where it has an answer, whichever
            text = "∅" if question["answers"] else ""
        rows.append((row, question["answers"], text))
    there = [(row, right, text) for row, right, text in rows if text is not None]
    return there, len(there) / len(rows)


def official(file, names):
    """Golden cases that differ, over whole sets and over their single rows."""

    def of_case(case):
        rows, share = as_answered(case)
        if share < 1 and "raises" in case["expected"]:
            return {}  # every row of ours has an output
        for row, right, text in rows if "per_example" in case["expected"] else ():
            found = [(100 if file == "klue_mrc" else 1) * SCORES[name][0](text, right) for name in names]
            assert found == pytest.approx(case["expected"]["per_example"][row], rel=1e-9)
        found = figures([right for _, right, _ in rows], [text for _, _, text in rows], *names)
        return {key: found[name] * share for name, key in names.items()}

    return differing(file, of_case)


@pytest.mark.parametrize(
    "file, names",
    [
        ("klue_mrc", {"klue_em": "exact_match", "rouge_w": "rouge_w"}),
        ("korquad_v1", {"korquad_em": "exact_match", "korquad_f1": "f1"}),
        ("squad_v1", {"squad_em": "exact_match", "squad_f1": "f1"}),
        ("squad_v2", {"squad_v2_em": "exact", "squad_v2_f1": "f1"}),
    ],
)
def test_the_official_scorers(file, names):
    assert official(file, names) == []


def test_squad_2_at_the_best_threshold():
    checked = 0
    for case in golden_cases("squad_v2"):
        expected, probabilities = case["expected"], case.get("options", {}).get("no_answer_probabilities")
        if probabilities:
            checked += 1
            references = [json.dumps(question["answers"]) for question in case["references"]]
            scores = score(references, case["predictions"], Answers())
            found = with_no_answer(scores, references, case["predictions"], probabilities)
            for name, key in (("squad_v2_best_em", "best_exact"), ("squad_v2_best_f1", "best_f1")):
                assert found.metrics[name] == pytest.approx(expected[key], rel=1e-9), case["id"]
                assert found.details[name] == f"unanswered above {expected[f'{key}_thresh']:g}", case["id"]
    assert checked > 10


def test_sure_answers_count_and_unsure_ones_do_not():
    references = ['["a"]', "[]", '["b"]', None]
    scores = score(references, ["a", "b", "c", "d"], Answers())
    found = with_no_answer(scores, references, ["a", "b", "c", "d"], [0.1, 0.5, 0.9, 0.0])
    assert found.metrics["squad_v2_best_em"] == pytest.approx(200 / 3)
    assert "squad_v2_best_em      66.67   unanswered above 0.1" in report_text(found)


def test_the_report_splits_squad_2_as_its_scorer_does():
    checked = 0
    for case in golden_cases("squad_v2"):
        expected = case["expected"]
        if "no_answer_threshold" not in case.get("options", {}) and {"HasAns_total", "NoAns_total"} <= expected.keys():
            checked += 1
            references = [json.dumps(question["answers"]) for question in case["references"]]
            scores = score(references, case["predictions"], Answers(), names=["squad_v2_em", "squad_v2_f1"])
            for name, key in (("squad_v2_em", "exact"), ("squad_v2_f1", "f1")):
                parts = (("answerable", "HasAns"), ("unanswerable", "NoAns"))
                told = [f"{words} {expected[f'{of}_{key}']:.2f} of {expected[f'{of}_total']:,}" for words, of in parts]
                assert scores.details[name] == ", ".join(told), case["id"]
    assert checked > 5


def test_answers_of_the_tools_klue_mrc():
    for case in golden_cases("etri_klue_mrc"):
        golds = [question["answers"] for question in case["references"]]
        found = figures(golds, case["expected"]["answers"], "klue_em", "rouge_w", unanswerable=NONE)
        klue = case["expected"]["klue"]
        tool = Answers(NONE, two_lines=True)
        read = [tool.value(text) for text in case["predictions"]]
        assert read == ["" if answer.strip() == NONE else answer for answer in case["expected"]["answers"]]
        assert found == pytest.approx({"klue_em": klue["exact_match"], "rouge_w": klue["rouge_w"]}, rel=1e-9)


def test_unanswerable_questions_have_a_text_of_their_own_and_figures_of_their_own():
    references = ['["3일", "오는 3일"]', "[]", "[]", '["서울"]']
    predictions = ["오는 3일", NONE, "3일", NONE]
    scores = score(references, predictions, Answers(NONE), names=["squad_v2_em", "exact_match"])
    assert scores.metrics == {"squad_v2_em": 50.0, "exact_match": 0.5}  # any right answer is an exact match
    assert scores.details == {"squad_v2_em": "answerable 50.00 of 2, unanswerable 50.00 of 2"}
    assert "correction" not in report_text(scores)
    rows = [expected(Answers(NONE), *pair) for pair in zip(references, predictions, strict=True)]
    assert rows == ["오는 3일", NONE, NONE, "서울"]
    outputs = Outputs.of(zip(rows, predictions, [False] * 4, strict=True), lambda row: f"문단 {row}")
    assert "examples: 2 of 2 rows that differ from the reference" in report_text(scores, outputs)


def test_scorers_that_know_no_unanswerable_question_give_no_figure():
    scores = score(['["a"]', "[]"], ["a", ""], Answers(), names=["korquad_em", "squad_f1"])
    assert all(math.isnan(figure) for figure in scores.metrics.values())
    told = "undefined   1 question without a right answer; SQuAD 2.0's figures know such\n"
    assert f"  korquad_em          {told}" in report_text(scores)


def test_references_are_lists_of_texts():
    for reference in ("서울", '"서울"', "[1]", '{"a": 1}'):
        with pytest.raises(ValueError, match="is not a JSON list of answers"):
            score([reference], ["서울"], Answers())
    answers = postprocessor_of({"kind": "answers", "unanswerable": NONE}, "postprocessor")
    assert (answers, answers.describe()) == (Answers(NONE), f"answers, or '{NONE}' for none")
    assert set(score(['["a"]'], ["a"], Answers()).metrics) == {"squad_v2_em", "squad_v2_f1"}
