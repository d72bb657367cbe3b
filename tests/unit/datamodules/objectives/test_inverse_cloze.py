"""Inverse cloze: a sentence of a document as the query, and what is around it as its passage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.flags.objective import ObjectiveFlags
from datamodules.objectives.build import build_cloze, build_objective
from datamodules.objectives.protocol import Objective
from tests.small_models import KOREAN_CORPUS, unigram_tokenizer
from utils.errors import UserError

SENTENCES = ("이 영화는 정말 재미있었어요.", "The movie was great!", "다시 보고 싶은 영화입니다.")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return unigram_tokenizer(Path(tmp_path_factory.mktemp("cloze")), (*KOREAN_CORPUS, "query: passage:"))


def built(tokenizer: Any, longest: int = 64, target: int = 0) -> Objective:
    return build_objective(ObjectiveFlags(objective="inverse_cloze"), tokenizer, longest, target)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def texts(tokenizer: Any, pair: tuple[np.ndarray, np.ndarray]) -> tuple[str, str]:
    query, passage = (tokenizer.decode(side, skip_special_tokens=True) for side in pair)
    assert [int(side[-1]) for side in pair] == [tokenizer.eos_token_id] * 2
    assert (query[:6], passage[:8]) == ("query:", "passage:")
    return query[6:].strip(), passage[8:].strip()


def test_every_sentence_is_asked_for_and_mostly_left_out_of_its_passage(t5: Any) -> None:
    """Of the documents in a row the longest is taken."""
    eos = t5.eos_token_id
    row = np.array([*ids_of(t5, "short."), eos, *ids_of(t5, " ".join(SENTENCES)), eos, *ids_of(t5, "it")], np.uint16)
    objective, kept = built(t5), 0
    sources, targets = objective.lengths(np.full(600, len(row)), np.arange(600), 7)
    asked = []
    for sample in range(600):
        pair = objective.apply(row, sample, 7)
        assert len(pair[0]) <= sources[sample]
        assert len(pair[1]) <= targets[sample]
        query, passage = texts(t5, pair)
        asked.append(query)
        kept += passage == " ".join(SENTENCES)
        others = [sentence for sentence in SENTENCES if sentence != query]
        assert passage in (" ".join(others), " ".join(SENTENCES))
    assert {*asked} == {*SENTENCES}
    assert min(asked.count(sentence) for sentence in SENTENCES) > 150
    assert 35 < kept < 90
    again = [texts(t5, objective.apply(row, sample, 7))[0] for sample in range(20)]
    assert again == asked[:20]


def test_a_sentence_that_the_row_has_cut_is_asked_for_where_there_is_no_other(t5: Any) -> None:
    row = np.array(ids_of(t5, " ".join(SENTENCES))[1:-2], np.uint16)
    assert {texts(t5, built(t5).apply(row, sample, 3))[0] for sample in range(40)} == {SENTENCES[1]}
    two = np.array(ids_of(t5, " ".join(SENTENCES[:2]))[:-2], np.uint16)
    assert len({texts(t5, built(t5).apply(two, sample, 3))[0] for sample in range(40)}) == 2


def test_a_document_of_one_sentence_is_cut_at_a_word_and_a_long_query_at_its_limit(t5: Any) -> None:
    one = np.array(ids_of(t5, "다시 보고 싶은 최고의"), np.uint16)
    found = {texts(t5, built(t5).apply(one, sample, 1)) for sample in range(60)}
    assert found == {("다시 보고", "싶은 최고의"), ("다시 보고", "다시 보고 싶은 최고의")}
    limit = len(ids_of(t5, "query:")) + 1 + 2
    query, _ = built(t5, limit, 64).apply(np.array(ids_of(t5, " ".join(SENTENCES)), np.uint16), 3, 1)
    assert len(query) == limit
    word = np.array(ids_of(t5, "보고")[:1], np.uint16)
    query, passage = built(t5).apply(word, 0, 1)
    assert (word[0] in query, word[0] in passage) == (True, True)


def test_a_passage_takes_the_whole_row(t5: Any) -> None:
    assert built(t5, 32, 64).raw_length(32, 64) == 64 - 1 - len(ids_of(t5, "passage:"))


def test_beside_another_objective_any_part_of_a_longer_row_is_taken(t5: Any) -> None:
    """One sentence is cut in its middle: query and passage are the part, or the passage alone is."""
    flags, word = ObjectiveFlags(inverse_cloze_weight=0.5), ids_of(t5, "보고")[0]
    others = [piece for piece in range(len(t5)) if t5.convert_ids_to_tokens(piece).isalpha()][:9]
    row = np.array([word, *others], np.uint16)
    room = 4 + len(ids_of(t5, "passage:")) + 1
    cloze = build_cloze(flags, t5, 64, room)
    parts = set()
    for sample in range(60):
        query, passage = (
            side[len(ids_of(t5, name)) : -1]
            for side, name in zip(cloze.apply(row, sample, 1), ("query:", "passage:"), strict=True)
        )
        parts.add(tuple(passage if len(passage) == 4 else np.concatenate((query, passage))))
    assert parts == {tuple(row[start : start + 4]) for start in range(7)}
    assert [side.tolist() for side in cloze.apply(row[:4], 5, 1)] == [
        side.tolist() for side in built(t5).apply(row[:4], 5, 1)
    ]
    with pytest.raises(UserError, match=r"-inverse_cloze_weight 0\.5: -max_query_length 8 and -max_passage_length 8"):
        build_cloze(flags, t5, 8, 8)
