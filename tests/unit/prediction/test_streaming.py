"""Lines of standard input: how they are batched, encoded and answered, and what is told about them."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from config.flags.data import DataFlags, LengthFlags
from datamodules.lines import LineEncoder
from datamodules.splits import RowEncoder, prediction_split
from generation.batch_limits import BatchLimits
from generation.engines.base import Prediction
from prediction import streaming
from prediction.streaming import stream, waiting_lines
from task_utils import get_task, override_task
from utils.errors import UserError

# ---- batches


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe; the test closes the one that is written to."""
    ends = os.pipe()
    yield ends
    os.close(ends[0])


def test_a_batch_is_what_waits_up_to_its_size(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    batches = waiting_lines(reader, 3)
    os.write(writer, b"1\n")
    assert next(batches) == [b"1"]
    os.write(writer, b"2\n3\n4\n5\n6\n7\nbeg")
    assert [next(batches), next(batches)] == [[b"2", b"3", b"4"], [b"5", b"6", b"7"]]
    os.write(writer, b"un\r\n\n\xff")
    assert next(batches) == [b"begun\r", b""]
    os.close(writer)
    assert list(batches) == [[b"\xff"]]  # the end without a newline


@pytest.mark.parametrize("text", [b"", b"\n", b"\n\n", b"a", b"a\n", b"a\n\nb", b"ab\ncd\r\nef\n"])
@pytest.mark.parametrize("block", [1, 2, 3, 1 << 16])
def test_lines_are_those_between_newlines(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, text: bytes, block: int
) -> None:
    monkeypatch.setattr(streaming, "BLOCK_BYTES", block)
    os.write(pipe[1], text)
    os.close(pipe[1])
    expected = text.removesuffix(b"\n").split(b"\n") if text else []
    batches = list(waiting_lines(pipe[0], 2))
    assert [line for batch in batches for line in batch] == expected
    assert all(len(batch) == 2 for batch in batches[:-1])


def test_a_fast_pipe_fills_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block ends inside a batch: the rest of the batch is taken from the next one."""
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 50)
    (tmp_path / "lines").write_bytes(b"".join(b"%d\n" % number for number in range(1000)))
    descriptor = os.open(tmp_path / "lines", os.O_RDONLY)
    batches = list(waiting_lines(descriptor, 7))
    os.close(descriptor)
    assert [len(batch) for batch in batches] == [7] * 142 + [6]
    assert b" ".join(line for batch in batches for line in batch).split() == [b"%d" % number for number in range(1000)]


def test_a_long_line_is_read_in_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is counted, not time: bytes that are joined or searched stay a small multiple of those that are read."""
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 64)
    looked_at = 0
    read = os.read

    class Counted(bytes):
        def split(self, *arguments: bytes) -> list[bytes]:  # type: ignore[override]
            nonlocal looked_at
            looked_at += len(self)
            return bytes.split(self, *arguments)

        def __radd__(self, other: bytes) -> Counted:
            nonlocal looked_at
            looked_at += len(other)
            return Counted(bytes(other) + bytes(self))

    monkeypatch.setattr(os, "read", lambda descriptor, count: Counted(read(descriptor, count)))
    long = b"x" * 100_000
    (tmp_path / "lines").write_bytes(b"a\n" + long + b"\nb\n")
    descriptor = os.open(tmp_path / "lines", os.O_RDONLY)
    batches = list(waiting_lines(descriptor, 2))
    os.close(descriptor)
    assert [line for batch in batches for line in batch] == [b"a", long, b"b"]
    assert looked_at < 2 * len(long)


# ---- encoding


def encoder(folder: Path, limit: int = 0, **data: object) -> RowEncoder:
    flags = DataFlags(**data)  # type: ignore[arg-type]
    task = override_task(get_task("seq2seq"), flags)
    return RowEncoder(flags, LengthFlags(max_seq_length=limit), task, ByT5Tokenizer(), 0, folder)


def texts_of(rows: Sequence[np.ndarray]) -> list[str]:
    return [(row[:-1] - 3).astype(np.uint8).tobytes().decode() for row in rows]


ODD_LINES = [b"\xef\xbb\xbfab", b"", b"tab\\tnew\\\\n\\u2028", b"c\r", b"0123456789abc", b"\xff\xea\xb0\x80", b"x" * 10]


def test_lines_are_encoded_as_the_rows_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_bytes(b"\n".join(ODD_LINES))
    one = encoder(tmp_path, 10, test_data=(str(tmp_path / "rows.txt"),), header="false")
    split, _ = prediction_split(one)
    rows = LineEncoder(one)(ODD_LINES)
    assert [row.tolist() for row in rows] == [split.source_ids(row).tolist() for row in range(len(split))]


def test_what_was_changed_is_told_with_the_first_lines(tmp_path: Path) -> None:
    encode = LineEncoder(encoder(tmp_path, 10))
    assert texts_of(encode.examples(["a" * 20])) == ["a" * 9]  # no line, and not counted
    assert encode.report() == []
    rows = [*encode(ODD_LINES[:3]), *encode(ODD_LINES[3:])]
    assert texts_of(rows) == ["ab", "", "tab\tnew\\n"[:9], "c", "012345678", "\ufffd가", "x" * 9]
    assert encode.report() == [
        "-test_data -: 3 sources truncated, first at line 3, 5, 7",
        "-test_data -: 1 lines with invalid UTF-8, read as U+FFFD, first at line 6",
        r"-test_data -: 3 escapes (\n \t \r \\ \uHHHH) were read; -tsv_escapes false keeps them",
    ]
    encode([b"\xff"] * 1000)
    assert "-test_data -: 1,001 lines with invalid UTF-8, read as U+FFFD, first at line 6, 8, 9" in encode.report()


def test_escapes_can_be_plain_text(tmp_path: Path) -> None:
    encode = LineEncoder(encoder(tmp_path, tsv_escapes=False))
    assert texts_of(encode([b"a\\tb\\u2028"])) == ["a\\tb\\u2028"]
    assert encode.report() == []


def test_a_line_that_a_template_cannot_hold_is_empty_and_told(tmp_path: Path) -> None:
    template = "{% if source == 'b' %}{{ source.split()[7] }}{% endif %}<{{ source }}>"
    encode = LineEncoder(encoder(tmp_path, input_template=template))
    assert texts_of(encode([b"a", b"b", b"c"])) == ["<a>", "", "<c>"]
    (told,) = encode.report()
    assert told.startswith("-test_data -: 1 lines with an empty source (template -input_template: ")
    assert told.endswith(", first at line 2")


def test_a_template_of_other_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^-test_data -: .* -input_template reads context, question as well; give a file"
    ):
        LineEncoder(encoder(tmp_path, input_template="{{ question }} {{ context }} {{ source }}"))


# ---- answers


def shouted(row_ids: Sequence[int], sources: Sequence[np.ndarray]) -> list[Prediction]:
    return [Prediction(f"{row} {text}") for row, text in zip(row_ids, texts_of(sources), strict=True)]


def line_of(_: bytes, __: np.ndarray, found: Prediction) -> bytes:
    return f"{found.text}\n".encode()


def test_every_line_has_its_number_whatever_the_batches(tmp_path: Path) -> None:
    """What is drawn at random for a row depends on it."""
    for batches in ([[b"a"], [b"b", b"c"]], [[b"a", b"b", b"c"]]):
        output = io.BytesIO()
        assert stream(iter(batches), LineEncoder(encoder(tmp_path)), shouted, line_of, output, BatchLimits(4)) == 3
        assert output.getvalue() == b"0 a\n1 b\n2 c\n"


def test_lines_that_wait_are_decoded_within_the_limit_of_tokens(tmp_path: Path) -> None:
    """And answered in their order."""
    sizes = []

    def noted(row_ids: Sequence[int], sources: Sequence[np.ndarray]) -> list[Prediction]:
        sizes.append([len(source) for source in sources])
        return shouted(row_ids, sources)

    output = io.BytesIO()
    lines = [b"a", b"bbbbbb", b"", b"cc", b"d" * 30]
    encode = LineEncoder(encoder(tmp_path))
    assert stream(iter([lines, [b"e"]]), encode, noted, line_of, output, BatchLimits(5, tokens=10)) == 6
    assert output.getvalue() == b"0 a\n1 bbbbbb\n2 \n3 cc\n4 " + b"d" * 30 + b"\n5 e\n"
    assert sizes == [[31], [7], [3, 2, 1], [2]]


def test_a_batch_is_written_before_the_next_is_waited_for(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    encode: Callable[[Sequence[bytes]], list[np.ndarray]] = LineEncoder(encoder(tmp_path))

    def batches() -> Iterator[list[bytes]]:
        yield [b"a"]
        assert os.read(reader, 10) == b"0 a\n"
        yield [b"b"]

    with os.fdopen(writer, "wb") as output:
        assert stream(batches(), encode, shouted, line_of, output, BatchLimits(4)) == 2
    assert os.read(reader, 10) == b"1 b\n"
    os.close(reader)


def test_a_reader_that_goes_ends_the_work(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    endless = iter(lambda: [b"a"], None)
    closing = threading.Thread(target=lambda: (os.read(reader, 4), os.close(reader)))
    closing.start()
    with pytest.raises(BrokenPipeError), os.fdopen(writer, "wb", buffering=0) as output:
        stream(endless, LineEncoder(encoder(tmp_path)), shouted, line_of, output, BatchLimits(4))  # type: ignore[arg-type]
    closing.join()
