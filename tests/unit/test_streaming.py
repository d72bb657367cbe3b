"""Lines of standard input: how they are batched, encoded and answered, and what is told about them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from models import streaming
from models.streaming import waiting_lines

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
