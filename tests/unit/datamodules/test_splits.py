"""Proportions give disjoint, stable rows; over-long rows leave training but never a test."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import ByT5Tokenizer

from config.flags.data import DataFlags, LengthFlags
from datamodules.encoding import encode as encoding
from datamodules.encoding.store import EncodedSplit
from datamodules.splits import RowEncoder, prediction_split, split_rows, training_splits
from task_utils import Task, get_task, override_task
from utils.errors import RunError, UserError


def encoder(
    tmp_path: Path, data: DataFlags, lengths: LengthFlags | None = None, task: Task | None = None
) -> RowEncoder:
    return RowEncoder(
        data, lengths or LengthFlags(), task or get_task("seq2seq"), ByT5Tokenizer(), 0, tmp_path / "cache"
    )


def write_rows(path: Path, count: int, source: str = "row {}") -> str:
    path.write_text("".join(f"{source.format(row)}\ttarget {row}\n" for row in range(count)), encoding="utf-8")
    return str(path)


def test_proportions_are_disjoint_complete_and_always_the_same() -> None:
    train, valid, test = split_rows(1000, 0.1, 0.25)
    assert (len(train), len(valid), len(test)) == (650, 100, 250)
    assert sorted([*train, *valid, *test]) == list(range(1000))
    for part in (train, valid, test):
        assert list(part) == sorted(part)
    # A version that chose other rows would test on rows that an older run was trained on.
    assert [part.tolist() for part in split_rows(10, 0.2, 0.3)] == [[1, 3, 5, 6, 8], [2, 9], [0, 4, 7]]
    assert [len(part) for part in split_rows(10, 0.01, 0.0)] == [9, 1, 0]
    assert [len(part) for part in split_rows(10, 0.0, 0.0)] == [10, 0, 0]


@pytest.mark.parametrize("rows", [3, 10, 997])
@pytest.mark.parametrize("test_share", [0.05, 0.3])
def test_the_test_rows_do_not_depend_on_the_validation_share(rows: int, test_share: float) -> None:
    """Else a prediction without that share, or with another one, would be on rows that were trained on."""
    expected = split_rows(rows, 0.0, test_share)[2]
    for valid_share in (0.01, 0.1, 0.5, 0.69):
        train, valid, test = split_rows(rows, valid_share, test_share)
        assert test.tolist() == expected.tolist()
        assert sorted([*train, *valid, *test]) == list(range(rows))


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
    for share in (0.2, 0.0, 0.5):  # the prediction finds them without the validation share of the training
        flags = replace(data, valid_data_proportions=share)
        predicted, lines = prediction_split(encoder(tmp_path, flags))
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


def test_source_and_target_have_limits_of_their_own(tmp_path: Path) -> None:
    """As LED's: 16,384 positions for the source and 1,024 for the target."""
    path = write_rows(tmp_path / "a.tsv", 1, "x" * 50)
    data = DataFlags(train_data=(path,))
    flags = replace(encoder(tmp_path, data), position_limit=40)
    for target, lengths in ((None, (40, 9)), (5, (40, 5)), (0, (40, 9))):
        split = replace(flags, target_position_limit=target).encode("-train_data", (path,), keep_all=False)
        assert (split.source_lengths[0], split.target_lengths[0]) == lengths


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
    assert r"1 escapes (\n \t \r \\ \uHHHH) were read" in told
    assert splits.train.source_text(1) == "c\nd"


def test_a_split_without_rows_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.tsv", 1)
    with pytest.raises(UserError, match="no training row is left"):
        training_splits(encoder(tmp_path, DataFlags(train_data=(path,), valid_data_proportions=0.5)))


def test_the_test_share_of_a_task_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without -train_data the rows are those of the task's data set, in training and in prediction."""
    path = write_rows(tmp_path / "a.tsv", 20)
    asked: list[tuple[str, tuple[str, ...]]] = []
    encode = RowEncoder.encode

    def of_the_hub(self: RowEncoder, flag: str, paths: Sequence[str], keep_all: bool) -> Any:
        asked.append((flag, tuple(paths)))
        return encode(self, flag, (path,), keep_all)

    monkeypatch.setattr(RowEncoder, "encode", of_the_hub)
    task = replace(get_task("seq2seq"), hub_dataset="someone/data")
    flags = encoder(tmp_path, DataFlags(test_data_proportions=0.2), task=task)
    expected = training_splits(flags).test
    predicted, _ = prediction_split(flags)
    assert expected is not None
    assert [predicted.reference(row) for row in range(4)] == [expected.reference(row) for row in range(4)]
    assert asked == [("-train_data", ("someone/data",))] * 2


LABELS_FIRST = (
    "-valid_data: {valid}: its column 1, the source, is 'label', that of {train} 'text': -source_column text takes it"
    " by its name, -source_column 1 by its place, whatever its name\n"
    "-valid_data: {valid}: its column 2, the target, is 'text', that of {train} 'label': -target_column label takes"
    " it by its name, -target_column 2 by its place, whatever its name"
)
ONLY_IDS = (
    "-valid_data: {valid}: its column 1, the source, is 'id', that of {train} 'text': -source_column 1 by its place,"
    " whatever its name"
)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.tsv", "label\ttext\nX\tx\n", LABELS_FIRST),
        ("a.csv", "label,text\nX,x\n", LABELS_FIRST),
        ("a.jsonl", '{"label": "X", "text": "x"}\n', LABELS_FIRST),
        ("a.jsonl", '{"id": "1", "label": "X"}\n', ONLY_IDS),
        ("a.tsv", "Text\tLabel\tid\nx\tX\t1\n", ""),
        ("a.tsv", "sentence\tanswer\nx\tX\n", ""),
        ("a.tsv", "x\tX\n", ""),
    ],
)
def test_columns_of_other_names_are_not_taken_by_their_place(
    name: str, content: str, told: str, tmp_path: Path
) -> None:
    """They were: the labels were the sources of the validation, or the line of the names was a row of it."""
    train, valid = tmp_path / "train.tsv", tmp_path / name
    train.write_text("text\tlabel\na\tA\nb\tB\n", encoding="utf-8")
    valid.write_text(content, encoding="utf-8")
    for columns in ({"source_column": "1", "target_column": "2"}, {}):
        data = replace(DataFlags(train_data=(str(train),), valid_data=(str(valid),)), **columns)
        of = encoder(tmp_path, data, task=override_task(get_task("seq2seq"), data))
        if told and not columns:
            with pytest.raises(UserError) as caught:
                training_splits(of)
            assert str(caught.value) == told.format(train=train, valid=valid)
        else:
            valid_rows = training_splits(of).valid
            assert valid_rows is not None
            assert (valid_rows.source_text(0) == "x") is not bool(told)


def test_columns_of_a_task_among_several_are_named_in_its_file(tmp_path: Path) -> None:
    """The flags that were proposed are refused there."""
    train, valid = tmp_path / "train.tsv", tmp_path / "valid.jsonl"
    train.write_text("text\tlabel\na\tA\n", encoding="utf-8")
    valid.write_text('{"label": "X", "id": "1"}\n', encoding="utf-8")
    data = DataFlags(train_data=(str(train),), valid_data=(str(valid),))
    with pytest.raises(UserError) as caught:
        training_splits(encoder(tmp_path, data), name="letters")
    assert caught.value.problems == (
        f"-valid_data: {valid}: its column 1, the source, is 'label', that of {train} 'text': give it the same name",
        f"-valid_data: {valid}: its column 2, the target, is 'id', that of {train} 'label': target_column: label in a"
        " file of its task takes it by its name",
    )


def test_unlabelled_rows_of_another_column(tmp_path: Path) -> None:
    """-source_column 2 in prediction, where the target of the task would be column 2 as well."""
    path = tmp_path / "a.tsv"
    path.write_text("1\tgood\n2\tbad\n", encoding="utf-8")
    data = DataFlags(test_data=(str(path),), source_column="2")
    split, _ = prediction_split(encoder(tmp_path, data, task=override_task(get_task("seq2seq"), data)))
    assert [(split.source_text(row), split.reference(row)) for row in range(2)] == [("good", None), ("bad", None)]


@pytest.mark.parametrize(("content", "rows"), [("\n", 1), ("\n\n\n", 3), ("\t\t\n", 1), ("\n \n", 2), ("\ufeff\n", 1)])
@pytest.mark.parametrize("ending", ["tsv", "txt", "csv", "jsonl", "json"])
def test_empty_lines_are_rows_to_predict(content: str, rows: int, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_text(content, encoding="utf-8")
    split, _ = prediction_split(encoder(tmp_path, DataFlags(test_data=(str(path),))))
    assert [split.source_text(row).strip() for row in range(len(split))] == [""] * rows
    with pytest.raises(UserError, match=rf"^-train_data: {path}: the file is empty$"):
        training_splits(encoder(tmp_path, DataFlags(train_data=(str(path),))))
    path.write_text("\ufeff" if rows == 1 else "")
    with pytest.raises(UserError, match=rf"^-test_data: {path}: the file is empty$"):
        prediction_split(encoder(tmp_path, DataFlags(test_data=(str(path),))))


@pytest.mark.parametrize("flag", ["source_column", "target_column"])
def test_columns_are_counted_from_one(flag: str) -> None:
    for value in ("0", "00"):
        with pytest.raises(UserError, match=rf"^-{flag} {value}: columns are counted from 1; give a number from 1, or"):
            override_task(get_task("seq2seq"), DataFlags(**{flag: value}))  # type: ignore[arg-type]


def test_a_template_that_fails_on_every_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("source\ttarget\nb\t0\nc\t0\nd\t\n")

    def predicted(**changes: str) -> tuple[EncodedSplit, tuple[str, ...]]:
        task = override_task(get_task("seq2seq"), DataFlags(**changes))  # type: ignore[arg-type]
        return prediction_split(encoder(tmp_path, DataFlags(test_data=(str(path),)), task=task))

    for flag, template in (("input", "{{ 1/0 }}"), ("target", "{{ 1 // (target | int) }}")):
        with pytest.raises(UserError) as caught:
            predicted(**{f"{flag}_template": template})
        told = str(caught.value)
        assert told.startswith(f"-{flag}_template {template!r}: fails on every row; first at {path}:2: ")
        assert told.endswith("by zero")
    split, lines = predicted(input_template="{{ 1 // (0 if source == 'b' else 1) }}")
    assert [split.source_text(row) for row in range(3)] == ["", "1", "1"]
    assert any("1 malformed row(s) (template -input_template: integer division" in line for line in lines)
    split, lines = predicted(target_template="{{ nope }}")
    assert split.reference(0) is None
    assert lines[-1] == (
        "-test_data: no row has a reference: -target_template needs values in the columns nope"
        f" ({path}: header: source, target)"
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_a_failed_run_that_names_the_folder(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, "Error writing bytes to file")

    monkeypatch.setattr(encoding, "write_rows", refuse)
    data = DataFlags(test_data=(write_rows(tmp_path / "a.tsv", 3),))
    with pytest.raises(RunError) as caught:
        prediction_split(encoder(tmp_path, data))
    assert str(caught.value) == (
        f"the encoded rows could not be written to {tmp_path}/cache ({os.strerror(code)}); -cache_dir names another"
        " place, as does TMPDIR for a temporary folder"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tsv"]


def test_data_that_are_not_predicted_are_named(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.tsv")
    Path(path).write_text("a\tb\n")
    data = DataFlags(test_data=(path,), valid_data=(path,), train_data=(path,))
    _, lines = prediction_split(encoder(tmp_path, data))
    assert lines[0] == "-test_data is predicted; -train_data and -valid_data not"
    _, lines = prediction_split(encoder(tmp_path, DataFlags(valid_data=(path,))))
    assert lines[0] == "-valid_data: 1 rows read, 1 kept"
