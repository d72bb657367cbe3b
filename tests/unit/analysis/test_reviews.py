"""What an analysis reads, hands to the second model, writes and counts; and models that do not go together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.reviews import PairScores, Review, Reviews, analyses, save_json_lines, write_pairs
from analysis.stages import Stages
from config.flags.analyze import AnalyzeFlags
from generation.engines.base import Prediction
from task_utils import Task, get_task
from utils.errors import RunError, UserError

KEYWORDS = Task.from_dict(
    {
        "name": "k",
        "source_column": "text",
        "target_column": "labels",
        "label_map": {"p": "가격", "d": "배송", "n": "없음"},
        "label_separator": ", ",
    }
)
SENTIMENTS = get_task("keyword-sentiment")


def flags(**more: Any) -> AnalyzeFlags:
    return AnalyzeFlags(**{"keyword_model": "a", "sentiment_model": "b", "no_keyword": "없음", **more})


STAGES = Stages.of(flags(), KEYWORDS, SENTIMENTS)
FOUND = [
    Prediction("가격, 배송", -1.0, label_probabilities=(0.9, 0.8, 0.0)),
    Prediction("없음", -1.0, label_probabilities=(0.2, 0.1, 0.7)),
    Prediction("", -1.0, label_probabilities=(0.1, 0.1, 0.1)),
    Prediction("배송", -1.0, label_probabilities=(0.1, 0.6, 0.1)),
]
SHARES = (0.1, 0.1, 0.1, 0.6, 0.1)
JUDGED = [
    Prediction("긍정", -1.0, label_probabilities=SHARES, words=(("싸고", 0.2), ("빨라", 0.4), ("요", 0.4))),
    Prediction("부정", -1.0, label_probabilities=SHARES, words=()),
    Prediction("중립", -1.0, label_probabilities=SHARES, words=(("늦", -0.1),)),
]


def read(path: Path, *rows: dict[str, Any], **more: Any) -> list[Review]:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return list(Reviews(flags(data=(str(path),), **more), STAGES, escapes=True))


def test_right_keywords_and_sentiments_stand_in_the_order_of_the_row(tmp_path: Path) -> None:
    found = read(
        tmp_path / "a.jsonl",
        {"text": "싸고 늦다", "labels": "d,p", "sentiments": "부정, 긍정"},
        {"text": "싸다", "labels": "가격"},
        {"text": "그냥", "labels": "없음", "sentiments": "중립"},
        {"text": "몰라요"},
    )
    assert found == [
        Review("싸고 늦다", {"배송": "부정", "가격": "긍정"}),
        Review("싸다", {"가격": None}),
        Review("그냥", {}),
        Review("몰라요", None),
    ]


@pytest.mark.parametrize(
    ("sentiments", "told"),
    [
        ("긍정", "a.jsonl:1: 2 keyword(s), but 1 sentiment(s): '가격, 배송' and '긍정'"),
        ("긍정, 좋음", "a.jsonl:1: sentiment '좋음' is no label of -sentiment_model: 매우부정=매우부정, 부정=부정"),
    ],
)
def test_right_sentiments_that_fit_nothing_are_told_with_their_line(tmp_path: Path, sentiments: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path / "a.jsonl", {"text": "a", "labels": "가격, 배송", "sentiments": sentiments})
    assert told in str(error.value)


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    row = {"리뷰": "싸다", "키워드": "가격", "감성": "긍정"}
    names = {"review_column": "리뷰", "keyword_column": "키워드", "sentiment_column": "감성"}
    assert read(tmp_path / "a.jsonl", row, **names) == [Review("싸다", {"가격": "긍정"})]


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n')
    reviews = Reviews(flags(data=(str(path),)), STAGES, escapes=True)
    reviews.check()
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    with pytest.raises(RunError, match="has changed while its reviews were analysed"):
        reviews.check()


def test_pairs_go_to_the_second_model_and_come_back_to_their_reviews(tmp_path: Path) -> None:
    reviews = [
        Review("싸고 빨라 요", {"가격": "긍정", "배송": None}),
        Review("x", None),
        Review("y", {}),
        Review("늦", None),
    ]
    assert write_pairs(tmp_path / "pairs.jsonl", reviews, FOUND, STAGES) == 3
    lines = (tmp_path / "pairs.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [
        {"review": "싸고 빨라 요", "keyword": "가격", "sentiment": "긍정"},
        {"review": "싸고 빨라 요", "keyword": "배송", "sentiment": None},
        {"review": "늦", "keyword": "배송", "sentiment": None},
    ]
    save_json_lines(tmp_path / "new" / "o.jsonl", analyses(reviews, FOUND, JUDGED, STAGES), overwrite=False)
    first, *others = map(json.loads, (tmp_path / "new" / "o.jsonl").read_text(encoding="utf-8").splitlines())
    assert first["keywords"][0] == {
        "keyword": "가격",
        "probability": 0.9,
        "sentiment": "긍정",
        "sentiment_probabilities": dict(zip(STAGES.sentiments.texts, SHARES, strict=True)),
        "highlight": "빨라",
        "words": [{"word": "싸고", "loss": 0.2}, {"word": "빨라", "loss": 0.4}, {"word": "요", "loss": 0.4}],
    }
    assert [(row["id"], row["review"], row["reference"]) for row in (first, *others)] == [
        (number, review.text, review.right) for number, review in enumerate(reviews)
    ]
    found = [[(keyword["keyword"], keyword["sentiment"]) for keyword in row["keywords"]] for row in (first, *others)]
    assert found == [[("가격", "긍정"), ("배송", "부정")], [], [], [("배송", "중립")]]


def test_pairs_are_scored_where_all_is_known() -> None:
    reviews = [
        Review("a", {"가격": "긍정", "배송": "긍정"}),
        Review("b", {"가격": None}),
        Review("c", {}),
        Review("d", None),
    ]
    scores = PairScores()
    assert len(list(scores.seen(analyses(reviews, FOUND, JUDGED, STAGES)))) == 4
    assert scores.to_dict() == {"reviews": 2, "support": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert scores.lines() == [
        "2 pairs of keyword and sentiment in 2 reviews: precision 0.5000, recall 0.5000, f1 0.5000"
    ]
    assert PairScores().lines() == []


def test_models_that_do_not_go_together_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        Stages.of(flags(), get_task("klue-nli"), get_task("multi-label"))
    assert error.value.problems == (
        "-keyword_model a: task klue-nli is no task of several labels a row; train it with -task multi-label, or with"
        " -label_map and -label_separator",
        "-sentiment_model b: task multi-label is no task of one label a row; train it with -task keyword-sentiment, or"
        " with -label_map",
        "-sentiment_model b: task multi-label reads source ('{{ source }}'); it must read two columns, the review and"
        " the keyword",
    )
    with pytest.raises(
        UserError, match=r"-no_keyword x: no label of -keyword_model: p=가격, d=배송, n=없음; a row may"
    ):
        Stages.of(flags(no_keyword="x"), KEYWORDS, SENTIMENTS)
    with pytest.raises(UserError, match=r"^-keyword_column text: is the column of the reviews or sentiments; name"):
        Stages.of(flags(), replace(KEYWORDS, source_column="text", target_column="text"), SENTIMENTS)


def test_the_review_is_the_source_column_else_what_the_prompt_reads_first() -> None:
    def columns(**more: Any) -> tuple[str, str]:
        state = {**SENTIMENTS.to_dict(), **more}
        stages = Stages.of(flags(), KEYWORDS, Task.from_dict(state))
        return stages.review_column, stages.keyword_column

    assert columns() == ("review", "keyword")
    assert columns(input_template="{{ keyword }}: {{ review }}") == ("review", "keyword")
    assert columns(input_template="{{ keyword }}: {{ source }}") == ("source", "keyword")
    assert columns(input_template="{{ a }} {{ b }}", source_column=1) == ("a", "b")
    assert columns(input_template="{% if b %}{{ a }}{% endif %} {{ b }}", source_column="b") == ("b", "a")
