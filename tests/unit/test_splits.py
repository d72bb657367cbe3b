"""Proportions give disjoint, stable rows; over-long rows leave training but never a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from datamodules.splits import Encoder, prediction_split, split_rows, training_splits
from errors import UserError
from flags import DataFlags, LengthFlags
from task_utils import Task, get_task


def encoder(tmp_path: Path, data: DataFlags, lengths: LengthFlags | None = None, task: Task | None = None) -> Encoder:
    return Encoder(data, lengths or LengthFlags(), task or get_task("seq2seq"), ByT5Tokenizer(), 0, tmp_path / "cache")


def write_rows(path: Path, count: int, source: str = "row {}") -> str:
    path.write_text("".join(f"{source.format(row)}\ttarget {row}\n" for row in range(count)), encoding="utf-8")
    return str(path)


def test_proportions_are_disjoint_complete_and_always_the_same() -> None:
    train, valid, test = split_rows(1000, 0.1, 0.25)
    assert (len(train), len(valid), len(test)) == (650, 100, 250)
    assert sorted([*train, *valid, *test]) == list(range(1000))
    again = split_rows(1000, 0.1, 0.25)
    assert all(np.array_equal(one, other) for one, other in zip((train, valid, test), again, strict=True))
    assert list(valid[:5]) == sorted(valid[:5])
    assert [len(part) for part in split_rows(10, 0.01, 0.0)] == [9, 1, 0]
    assert [len(part) for part in split_rows(10, 0.0, 0.0)] == [10, 0, 0]


def test_rows_set_apart_are_the_ones_inference_predicts(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.tsv", 50)
    data = DataFlags(train_data=(path,), valid_data_proportions=0.2, test_data_proportions=0.1)
    splits = training_splits(encoder(tmp_path, data))
    assert splits.valid is not None
    assert splits.test is not None
    texts = [
        {split.source_text(row) for row in range(len(split))} for split in (splits.train, splits.valid, splits.test)
    ]
    assert [len(part) for part in texts] == [35, 10, 5]
    assert len(set.union(*texts)) == 50
    predicted, lines = prediction_split(encoder(tmp_path, data))
    assert {predicted.source_text(row) for row in range(len(predicted))} == texts[2]
    assert lines[-1] == "5 of them are the test rows"
    assert splits.lines[-1] == "35 training rows, 10 validation rows, 5 test rows"


def test_too_long_rows_are_discarded_from_training_only(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("short\ta\n" + "x" * 50 + "\tb\nbrief\tc\n", encoding="utf-8")
    data = DataFlags(train_data=(str(path),), valid_data=(str(path),), test_data=(str(path),))
    splits = training_splits(encoder(tmp_path, data, LengthFlags(max_seq_length=10, do_truncate=False)))
    assert splits.valid is not None
    assert splits.test is not None
    assert [split.reference(len(split) - 1) for split in (splits.train, splits.valid, splits.test)] == ["c", "c", "c"]
    assert [len(split) for split in (splits.train, splits.valid, splits.test)] == [2, 2, 3]
    assert any("1 rows over a length limit discarded" in line and f"{path}:2" in line for line in splits.lines)
    cut = training_splits(encoder(tmp_path, data, LengthFlags(max_seq_length=10)))
    assert len(cut.train) == 3
    assert list(cut.train.source_ids(1)) == [*(ord("x") + 3 for _ in range(9)), 1]
    assert any("1 sources truncated" in line and f"{path}:2" in line for line in cut.lines)


def test_the_task_s_own_validation_share_is_used_when_none_is_given(tmp_path: Path) -> None:
    path = tmp_path / "ratings.txt"
    rows = "".join(f"{row}\t문서 {row}\t{row % 2}\n" for row in range(100))
    path.write_text("id\tdocument\tlabel\n" + rows, encoding="utf-8")
    splits = training_splits(encoder(tmp_path, DataFlags(train_data=(str(path),)), task=get_task("nsmc-prompted")))
    assert splits.valid is not None
    assert (len(splits.train), len(splits.valid)) == (98, 2)
    assert splits.train.source_text(0).startswith("nsmc sentiment classification: 문서")
    assert {splits.train.reference(row) for row in range(98)} == {"negative", "positive"}


def test_malformed_rows_are_told_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"a\tb\nno tab\nc\\nd\te\n\xff\tx\n")
    splits = training_splits(encoder(tmp_path, DataFlags(train_data=(str(path),))))
    told = "\n".join(splits.lines)
    assert f"{path}:2" in told
    assert f"{path}:4" in told
    assert r"1 escapes (\n \t \r \\) were read" in told
    assert splits.train.source_text(1) == "c\nd"


def test_a_split_without_rows_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.tsv", 1)
    with pytest.raises(UserError, match="no training row is left"):
        training_splits(encoder(tmp_path, DataFlags(train_data=(path,), valid_data_proportions=0.5)))
