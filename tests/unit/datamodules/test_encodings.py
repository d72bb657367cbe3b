"""Files in other encodings and of other kinds are refused with the way out; a few wrong lines are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.readers.paths import check_data_paths

ROWS = "문서\t라벨\n영화가 정말 좋다\t긍정\nnothing\tneg\n"


def problem(tmp_path: Path, content: bytes, name: str = "a b.tsv", flag: str = "-train_data") -> str:
    path = tmp_path / name
    path.write_bytes(content)
    return "; ".join(check_data_paths(flag, [str(path)])).replace(str(path), "FILE")


@pytest.mark.parametrize("flag", ["-train_data", "-test_data"])
@pytest.mark.parametrize("encoding", ["cp949", "euc-kr"])
@pytest.mark.parametrize("name", ["a b.tsv", "a b.csv", "a b.jsonl"])
def test_korean_in_its_older_encoding(tmp_path: Path, name: str, encoding: str, flag: str) -> None:
    wanted = f"{flag}: FILE:1: not UTF-8; it reads as cp949: iconv -f cp949 -t utf-8 'FILE' > NEW"
    assert problem(tmp_path, ROWS.encode(encoding), name, flag) == wanted
    late = b"plain\tascii\n" * 50_000 + ROWS.encode(encoding)
    assert "FILE:50001: not UTF-8" in problem(tmp_path, late, name, flag)


@pytest.mark.parametrize(
    "content, words",
    [
        (ROWS.encode("utf-16-le"), "not UTF-8; it reads as UTF-16LE: iconv -f UTF-16LE -t utf-8 'FILE' > NEW"),
        ("a\tb\n".encode("utf-16-be") * 3, "not UTF-8; it reads as UTF-16BE: iconv -f UTF-16BE -t utf-8 'FILE' > NEW"),
        (b"\x1f\x8b\x08\x00", "the file is gzip data; unpack it first: gunzip"),
        (b"PK\x03\x04", "the file is a zip archive or a workbook; unpack it, or export its table as text"),
        (b"PAR1", "the file is a Parquet file; name it .parquet"),
        (b"\xff\tb\n" * 3, ":1: not UTF-8, like most lines of the file; convert it (iconv -f ENCODING -t utf-8)"),
    ],
)
def test_other_encodings_and_kinds_of_file(tmp_path: Path, content: bytes, words: str) -> None:
    assert problem(tmp_path, content) in (f"-train_data: FILE: {words}", f"-train_data: FILE{words}")


@pytest.mark.parametrize(
    "content",
    [
        ROWS.encode(),
        ROWS.encode() + "좋다\t긍정\n".encode("cp949"),  # one line of another encoding among those with letters
        b"good\trow\n" * 3 + b"caf\xe9\trow\n",
        "가".encode() * (1 << 20),  # one line; the sample ends within a letter
        b"a\0b\tc\nd\0\te\n",
    ],
)
def test_a_few_wrong_lines_are_counted_where_they_are_read(tmp_path: Path, content: bytes) -> None:
    assert problem(tmp_path, content) == ""
