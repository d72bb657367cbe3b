"""-doc_stride: windows cover the passage in whole characters, keep all else of a row, and train where they should."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from config.flags.data import DataFlags, LengthFlags, TrainTaskFlags
from datamodules.batching import BatchOptions
from datamodules.encoding.store import EncodedSplit
from datamodules.encoding.windows import overlapping_pieces
from datamodules.seq2seq_datamodule import Seq2SeqDataModule
from datamodules.splits import RowEncoder, prediction_split, training_splits
from task_utils import Task, get_task
from tests.small_models import bart_tokenizer, unigram_tokenizer
from utils.errors import UserError

WORDS = " ".join(f"낱말{number}" for number in range(60))  # 7 or 8 bytes a word, and a blank
LENGTHS = LengthFlags(max_seq_length=120, doc_stride=30)


def question(name: str, *answers: tuple[str, int], text: str = "무엇?") -> dict[str, Any]:
    return {"id": name, "question": text, "answers": [{"text": gold, "answer_start": at} for gold, at in answers]}


def write_squad(path: Path, *passages: tuple[str, list[dict[str, Any]]]) -> str:
    paragraphs = [{"context": context, "qas": questions} for context, questions in passages]
    content = json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}, ensure_ascii=False, indent=1)
    path.write_text(content, encoding="utf-8")
    return str(path)


def encoder(folder: Path, name: str = "squad", lengths: LengthFlags = LENGTHS, **more: Any) -> RowEncoder:
    task = replace(get_task(name), **more)
    return RowEncoder(DataFlags(), lengths, task, ByT5Tokenizer(), 0, folder / "cache")


def texts_of(split: EncodedSplit, tokenizer: Any, side: str = "source") -> list[str]:
    ids = split.source_ids if side == "source" else split.target_ids
    return [tokenizer.decode(ids(row), skip_special_tokens=True) for row in range(len(split))]


def pieces_of(passage: str, room: int, overlap: int, count: Callable[[str], int] = len) -> list[str]:
    def counts(texts: Sequence[str]) -> np.ndarray:
        return np.array([count(text) for text in texts], dtype=np.int64)

    spans = overlapping_pieces(passage, room, overlap, counts)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(passage)
    for (_, end), (start, _) in pairwise(spans):
        assert passage[end:start].strip() == ""  # nothing is left out
        assert count(passage[start:end]) + 2 >= overlap  # the white space before its first word counts
    pieces = [passage[start:end] for start, end in spans]
    assert max(map(count, pieces)) <= room
    return pieces


def test_pieces_are_of_whole_words_and_overlap() -> None:
    words = [letter * 4 for letter in "abcdefghijkl"]  # 5 with the blank before
    passage = " ".join(words)
    assert pieces_of(passage, 40, 10) == [" ".join(words[:8]), " ".join(words[6:])]
    assert pieces_of(passage, 40, 6) == [" ".join(words[:8]), " ".join(words[6:])]
    assert pieces_of(passage, 40, 0) == [" ".join(words[:8]), " " + " ".join(words[8:])]
    assert pieces_of(passage, 60, 10) == [passage]
    assert pieces_of("\n\naaaa  ", 40, 2) == ["\n\naaaa  "]
    assert pieces_of(passage.replace(" ", "\u3000\n"), 48, 12)[1].startswith("ggg")  # 6 with both


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_long_word_is_cut_between_characters(form: str) -> None:
    word = unicodedata.normalize(form, "각난닫라 é👩‍👩‍👧" * 9).replace(" ", "")
    pieces = pieces_of(word, 64, 16, lambda text: len(text.encode()))
    assert len(pieces) > 5
    whole = [unicodedata.normalize("NFC", piece) for piece in pieces]
    assert all(piece[0] in "각난닫라é👩" for piece in whole)
    assert not any(piece.endswith("\u200d") for piece in whole)
    assert all("\uac00" <= letter <= "\ud7a3" or letter in "é👩👧\u200d" for piece in whole for letter in piece)


def test_windows_keep_the_question_and_cover_the_passage(tmp_path: Path) -> None:
    path = write_squad(tmp_path / "q.json", (WORDS, [question("a", ("낱말0", 0))]), ("짧다", [question("b")]))
    split = encoder(tmp_path).encode("-test_data", (path,), keep_all=True)
    texts = texts_of(split, ByT5Tokenizer())
    head = "question: 무엇? context: "
    assert split.row_ids.tolist() == [0] * (len(texts) - 1) + [1]
    assert split.source_lengths.max() <= 120
    pieces = [text.removeprefix(head) for text in texts]
    assert all(text.startswith(head) for text in texts)
    assert set(" ".join(pieces[:-1]).split()) == set(WORDS.split())
    assert all(f" {piece} " in f" {WORDS} " for piece in pieces[:-1])  # also in whole words
    assert [split.source_text(row) for row in (0, 1, len(texts) - 1)] == [head + WORDS, "", head + "짧다"]
    assert [split.reference(row) for row in (0, 1, len(texts) - 1)] == ['["낱말0"]', '["낱말0"]', "[]"]
    assert (split.num_rows, split.unit, split.report.windowed) == (2, "window", 1)
    assert (split.report.rows_kept, split.report.windows, split.report.truncated_sources) == (2, len(texts) - 1, 0)
    assert split.windows_of(np.array([1])).tolist() == [len(texts) - 1]
    again = encoder(tmp_path).encode("-test_data", (path,), keep_all=True)  # from the cache
    assert (again.fingerprint, again.row_ids.tolist()) == (split.fingerprint, split.row_ids.tolist())
    cut = encoder(tmp_path, lengths=LengthFlags(max_seq_length=120)).encode("-test_data", (path,), keep_all=True)
    assert (len(cut), cut.unit, cut.report.truncated_sources) == (2, "row", 1)


@pytest.mark.parametrize("make", [unigram_tokenizer, bart_tokenizer])
def test_windows_fit_with_every_tokenizer(make: Callable[..., Any], tmp_path: Path) -> None:
    """Tokens of words by themselves are not those of the joined text: what does not fit is cut again."""
    tokenizer = make(tmp_path / "tokenizer")
    passage = "이 영화는 정말 재미있었어요, 10 minutes!  " * 40 + "긴" * 300
    path = write_squad(tmp_path / "q.json", (passage, [question("a")]))
    split = replace(encoder(tmp_path), tokenizer=tokenizer).encode("-test_data", (path,), keep_all=True)
    assert 60 < split.source_lengths[0] <= split.source_lengths.max() <= 120
    assert split.report.truncated_sources == 0
    assert len(split) < 3 * len(tokenizer(passage)["input_ids"]) / 60
    if make is bart_tokenizer:  # T5's does not give back white space
        pieces = [text.partition(" context: ")[2] for text in texts_of(split, tokenizer)]
        assert all(piece in passage for piece in pieces)
        assert sum(map(len, pieces)) > len(passage)


def test_the_windows_of_the_answer_train_with_it(tmp_path: Path) -> None:
    last = WORDS.index("낱말55")
    questions = [
        question("first", ("낱말5", WORDS.index("낱말5"))),  # the same letters stand in 낱말50 to 낱말59
        question("second gold", ("없음", 0), ("낱말55", last)),
        question("anywhere", ("낱말5", 3)),  # not there: any place counts
        question("lost", (WORDS[10:200], 10)),
        {"id": "none", "question": "무엇?", "answers": [], "is_impossible": True},
    ]
    path = write_squad(tmp_path / "q.json", (WORDS, questions))
    split = encoder(tmp_path).encode("-train_data", (path,), keep_all=False)
    sources, targets = texts_of(split, ByT5Tokenizer()), texts_of(split, ByT5Tokenizer(), "target")

    def trained(row: int) -> list[tuple[bool, str]]:
        """Whether each window holds the answer by its place, and its target."""
        word = ("낱말5 ", "낱말55", "낱말5", "-", "-")[row]
        return [(word in sources[window], targets[window]) for window in np.flatnonzero(split.row_ids == row)]

    for row, gold in enumerate(("낱말5", "낱말55", "낱말5")):
        assert {has for has, _ in trained(row)} == {True, False}
        assert all(target == (gold if has else "unanswerable") for has, target in trained(row))
    assert {target for _, target in trained(3)} == {""}
    assert {target for _, target in trained(4)} == {"unanswerable"}
    assert split.report.malformed == {
        "gold answer is not in the passage; the row is kept": [1, [f"{path}:20"]],
        "the answer is in no window; the row does not train": [1, [f"{path}:44"]],
    }
    answerable = encoder(tmp_path, "korquad-v1").encode("-train_data", (path,), keep_all=False)
    assert set(texts_of(answerable, ByT5Tokenizer(), "target")) == {"낱말5", "낱말55", ""}
    targets = {answerable.target_ids(row).size for row in np.flatnonzero(answerable.row_ids < 3)}
    assert targets == {1, 8, 9}  # windows without the answer have the end token alone
    assert answerable.target_lengths[answerable.row_ids == 3].max() == 0


def test_all_windows_of_a_row_are_of_one_split(tmp_path: Path) -> None:
    questions = [question(str(number), (f"낱말{number}", WORDS.index(f"낱말{number}"))) for number in range(19)]
    questions.append(question("lost", (WORDS[10:200], 10)))
    path = write_squad(tmp_path / "q.json", (WORDS, questions))
    data = DataFlags(train_data=(path,), valid_data_proportions=0.2, test_data_proportions=0.1)
    rows = replace(encoder(tmp_path, "korquad-v1"), data=data)
    splits = training_splits(rows)
    assert splits.valid is not None
    assert splits.test is not None
    parts = [set(split.row_ids.tolist()) for split in (splits.train, splits.valid, splits.test)]
    assert [len(part) for part in parts] == [14, 4, 2]
    assert len(set.union(*parts)) == 20
    assert splits.train.target_lengths.min() > 0
    assert splits.lines[-1] == (
        f"{len(splits.train)} training windows of 14 rows, {len(splits.valid)} validation windows of 4 rows,"
        f" {len(splits.test)} test windows of 2 rows"
    )
    assert prediction_split(rows)[0].row_ids.tolist() == splits.test.row_ids.tolist()
    few = training_splits(rows, TrainTaskFlags(train_rows=3)).train
    assert (few.num_rows, set(few.row_ids.tolist()) <= parts[0]) == (3, True)
    options = BatchOptions(batch_size=4)
    module = Seq2SeqDataModule([splits], pad_token_id=0, batch_options=options, seed=1)
    assert len(module.validation_plan(0, 1).rows) == len(splits.valid.learnable())  # others have nothing to lose


def test_a_question_that_leaves_no_room_is_cut_and_counted(tmp_path: Path) -> None:
    path = write_squad(tmp_path / "q.json", (WORDS, [question("a", ("낱말0", 0), text="길다 " * 20)]))
    split = encoder(tmp_path).encode("-train_data", (path,), keep_all=False)
    assert (len(split), split.report.truncated_sources, split.report.windowed) == (1, 1, 0)
    assert texts_of(split, ByT5Tokenizer(), "target") == ["낱말0"]


@pytest.mark.parametrize(
    ("lengths", "change", "told"),
    [
        (LENGTHS, {"passage": ""}, "task squad has no passage to cut; give 0, or a task file with the key `passage`"),
        (LENGTHS, {"input_template": "{{ question }}"}, "'{{ question }}' holds no {{ context }} or {{ source }}, the"),
        (LengthFlags(doc_stride=30), {}, "no source is too long for this model; give 0, or a -max_seq_length"),
        (LengthFlags(max_seq_length=59, doc_stride=30), {}, "more than half of the longest source, 59 tokens; at most"),
    ],
)
def test_what_cannot_be_cut_is_refused(lengths: LengthFlags, change: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = write_squad(tmp_path / "q.json", (WORDS, [question("a", ("낱말0", 0))]))
    with pytest.raises(UserError) as caught:
        encoder(tmp_path, lengths=lengths, **change).encode("-train_data", (path,), keep_all=False)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("-doc_stride 30: ")
    assert told in caught.value.problems[0]
    with pytest.raises(UserError, match="passage 'text' needs postprocessor: answers"):
        Task("mine", "", passage="text")
