"""Documents of text, JSONL, Parquet and compressed files: what is read, what is skipped, and where that is said."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.corpus import documents, sources
from datamodules.corpus.documents import read_documents, read_part
from datamodules.corpus.sources import DocumentOptions, corpus_files, corpus_problems, cut_pieces
from datamodules.readers.paths import DataPath, split_names
from datamodules.readers.rows import RowReport
from utils.errors import UserError

LINES = ["첫 번째 문서입니다.", "the second one", "셋째 – 끝."]
LINE = DocumentOptions()
BLANK = DocumentOptions(separator="blank")


def read(*paths: Path, options: DocumentOptions = LINE) -> tuple[list[str], RowReport]:
    report = RowReport()
    return [document.text for document in read_documents([*map(str, paths)], options, report)], report


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_text_and_jsonl_are_read_alike_compressed_or_not(tmp_path: Path, suffix: str) -> None:
    text = "\ufeff" + "\r\n".join([LINES[0], "", "  ", *LINES[1:]])
    rows = "\n".join(json.dumps({"meta": 1, "text": line}) for line in LINES) + "\n"
    a = written(tmp_path / f"a.txt{suffix}", COMPRESS[suffix](text.encode()))
    b = written(tmp_path / f"b.jsonl{suffix}", COMPRESS[suffix](rows.encode()))
    report = RowReport()
    found = [*read_documents([str(a), str(b)], DocumentOptions(), report)]
    assert [document.text for document in found] == LINES * 2
    numbers = [f"{a}:1", f"{a}:4", f"{a}:5", f"{b}:1", f"{b}:2", f"{b}:3"]
    assert [document.place for document in found] == numbers
    assert (report.rows_read, report.malformed) == (6, {})
    if suffix:
        written(a, a.read_bytes()[:-9])
        with pytest.raises(UserError, match=r"a.txt.*cannot be read.*its end is missing"):
            read(a)


def test_blank_lines_or_files_separate_documents(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "\n\n하나\n둘\n \t\n\nthree\n\nfour\nfive")
    assert read(path, options=BLANK)[0] == ["하나\n둘", "three", "four\nfive"]
    report = RowReport()
    assert [item.place for item in read_documents([str(path)], BLANK, report)] == [f"{path}:{n}" for n in (3, 7, 9)]
    whole, _ = read(path, options=DocumentOptions(separator="file"))
    assert whole == ["하나\n둘\n \t\n\nthree\n\nfour\nfive"]


def test_parquet_and_save_to_disk(tmp_path: Path) -> None:
    from datasets import Dataset

    pq.write_table(pa.table({"id": [1, 2, 3, 4], "body": [LINES[0], None, " ", LINES[1]]}), tmp_path / "a.parquet")
    options = DocumentOptions(column="body")
    assert read(tmp_path / "a.parquet", options=options)[0] == LINES[:2]
    Dataset.from_dict({"body": LINES}).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved", options=options)[0] == LINES
    with pytest.raises(UserError, match=r"a.parquet: no column 'text'; it has id, body; -corpus_column names it"):
        read(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'id' holds int64, not text"):
        read(tmp_path / "a.parquet", options=DocumentOptions(column="id"))


def test_a_hub_name_gives_the_split_of_its_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset, load_from_disk

    Dataset.from_dict({"text": LINES}).save_to_disk(str(tmp_path / "saved"))
    asked = []

    def loaded(data_path: DataPath, flag: str) -> Any:
        asked.append((data_path.path, data_path.config, data_path.split, flag))
        return load_from_disk(str(tmp_path / "saved"))

    monkeypatch.setattr(sources, "load_hub_dataset", loaded)
    options = DocumentOptions(flag="-valid_corpus")
    found = read_documents(["some/texts:ko"], options, RowReport())
    assert [document.text for document in found] == LINES
    assert asked == [("some/texts", "ko", "", "-valid_corpus")]
    assert (split_names("-corpus"), split_names("-valid_corpus")[0]) == (("train",), "validation")
    with pytest.raises(UserError, match=r"-valid_corpus: .*/x.txt.gz: no such file or folder"):
        [*read_documents([f"{tmp_path}/x.txt.gz"], options, RowReport())]

    def unknown_name(_: DataPath, flag: str) -> Any:
        raise UserError(f"{flag}: 'some/texts' is unknown")

    monkeypatch.setattr(sources, "load_hub_dataset", unknown_name)
    with pytest.raises(UserError, match=r"^-valid_corpus: 'some/texts' is unknown$"):
        [*read_documents(["some/texts"], options, RowReport())]
    asked.clear()
    (tmp_path / "a.md").write_text("text")
    values = ["some/texts-2.1", str(tmp_path / "saved"), f"{tmp_path}/x.jsonl", str(tmp_path / "a.md")]
    gone, unknown = corpus_problems(values, options)
    assert gone == f"-valid_corpus: {tmp_path}/x.jsonl: no such file or folder"
    assert unknown.startswith(f"-valid_corpus: {tmp_path}/a.md: unknown type of corpus file '.md'; known: .txt, .jsonl")
    assert asked == []  # no name of the hub is looked up


def test_a_folder_gives_its_files_by_name_and_says_what_it_left_out(tmp_path: Path) -> None:
    written(tmp_path / "c" / "b.txt", "zwei\n")
    written(tmp_path / "c" / "a" / "a.jsonl", '{"text": "eins"}\n')
    written(tmp_path / "c" / ".hidden.txt", "no\n")
    written(tmp_path / "c" / "korean.txt", "옛 완성형 문장입니다\n".encode("cp949"))
    written(tmp_path / "c" / "program.txt", bytes(range(256)) * 9)
    written(tmp_path / "c" / "readme.md", "no")
    texts, report = read(tmp_path / "c", tmp_path / "c" / "b.txt")  # a file that is named twice is read once
    assert texts == ["eins", "zwei"]
    assert report.malformed == {
        "file of an unknown type, skipped": (1, [str(tmp_path / "c" / "readme.md")]),
        "file skipped: not UTF-8; it reads as cp949 (iconv -f cp949 -t utf-8)": (1, [f"{tmp_path}/c/korean.txt:1"]),
        "file skipped: not UTF-8, like most lines of the file; convert it (iconv -f ENCODING -t utf-8)": (
            1,
            [f"{tmp_path}/c/program.txt:2"],
        ),
    }
    assert read(tmp_path / "c" / "readme.md", options=DocumentOptions(format="text"))[0] == ["no"]


def test_lines_that_are_no_text_are_skipped_and_counted_with_their_places(tmp_path: Path) -> None:
    lines = [b"gut", b"\xff\xfe", b"a\0b", *[b"weiter"] * 400]
    a = written(tmp_path / "a.txt", b"\n".join(lines))
    rows = ['{"text": "ok"}', "{", '{"txt": "a"}', '{"text": 3}', "[]", '{"text": "\\ud800"}', '{"text": null}']
    b = written(tmp_path / "b.jsonl", "\n".join(rows))
    texts, report = read(a, b)
    assert texts == ["gut", *["weiter"] * 400, "ok"]
    assert {reason.partition(" (")[0]: found for reason, found in report.malformed.items()} == {
        "line that is no UTF-8, skipped": (1, [f"{a}:2"]),
        "line with NUL bytes, skipped": (1, [f"{a}:3"]),
        "line that is no JSON, skipped": (1, [f"{b}:2"]),
        "object without key 'text', skipped": (1, [f"{b}:3"]),
        "value of 'text' that is no text, skipped": (1, [f"{b}:4"]),
        "line that is no JSON object, skipped": (1, [f"{b}:5"]),
        "text with half a surrogate pair, skipped": (1, [f"{b}:6"]),
    }


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "no document: the files hold no text"),
        ("a.txt", b"\x7fELF" + bytes(400), "no document; 1 of file that holds binary data, skipped, first at"),
        ("a.txt", b"\xff\xfa\xff\0\0\n\xfe" * 99, "no document; 1 of file that holds binary data, skipped, first at"),
        (
            "a.jsonl",
            b'{"body": "x"}\n',
            "1 of object without key 'text', skipped (the first such has body; see -corpus_column)",
        ),
        ("a.tsv", b"x\ty\n", "unknown type of corpus file '.tsv'; known: .txt, .jsonl, .parquet"),
        ("a.parquet", b"x", "a.parquet: cannot be read as Parquet"),
    ],
)
def test_a_corpus_without_a_document_is_an_error(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    with pytest.raises(UserError) as caught:
        read(written(tmp_path / name, content))
    assert words in str(caught.value)
    with pytest.raises(UserError, match=r"-corpus: .*gone.txt: no such file or folder"):
        read(tmp_path / "gone.txt")


def test_a_line_of_any_length_is_read_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(documents, "MOST_BYTES", 4000)
    monkeypatch.setattr(documents, "MOST_JSON_BYTES", 20_000)
    monkeypatch.setattr(documents, "SAMPLE_BYTES", 1000)
    long = "낱말들 " * 50_000  # 500 kB
    a = written(tmp_path / "a.txt", f"before\n{long}\nafter\n{'가' * 5000}\n")
    b = written(tmp_path / "b.jsonl", f'{{"text": "{long}"}}\n{{"text": "after"}}\n')
    tracemalloc.start()
    count = sum(1 for _ in read_documents([str(a), str(b)], DocumentOptions(), RowReport()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count > 100
    assert peak < 200_000
    texts, report = read(a, b)
    assert max(map(len, texts)) <= 4000
    assert " ".join(texts).startswith(f"before {long}after 가")
    assert "".join(texts).endswith("가" * 5000 + "after")
    assert report.malformed == {documents.CUT: (2, [f"{a}:2", f"{a}:4"]), documents.TOO_LONG: (1, [f"{b}:1"])}

    texts, report = read(a, options=BLANK)
    assert "".join("".join(texts).split()) == f"before{long}after{'가' * 5000}".replace(" ", "")
    assert report.malformed == {documents.CUT: (1, [f"{a}:1"])}

    book = "낱말들 " * 1500  # 15 kB
    c = written(tmp_path / "c.jsonl", json.dumps({"text": book}, ensure_ascii=False))
    pq.write_table(pa.table({"text": [book, "가" * 3000]}), tmp_path / "d.parquet")
    texts, report = read(c, tmp_path / "d.parquet")
    assert max(len(text.encode()) for text in texts) <= 4000
    assert " ".join(texts).startswith(book * 2 + "가가")
    assert "".join(texts).endswith("들" + "가" * 3000)
    assert report.malformed == {documents.CUT: (3, [f"{c}:1", f"{tmp_path}/d.parquet:1", f"{tmp_path}/d.parquet:2"])}


@pytest.mark.parametrize("options", [DocumentOptions(), BLANK])
def test_pieces_hold_every_document_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: DocumentOptions
) -> None:
    blocks = [f"{number} 문장\nzwei" + "\n" * (number % 3) + "\n \n" * (number % 2) for number in range(200)]
    a = written(tmp_path / "a.txt", "\n".join(blocks))
    small = [written(tmp_path / f"small-{number}.txt", f"klein {number}\n") for number in range(9)]
    wanted, _ = read(a, *small, options=options)
    for size in (50, 97, 1000):
        monkeypatch.setattr(sources, "PIECE_BYTES", size)
        pieces = cut_pieces(corpus_files([*map(str, (a, *small))], options, RowReport()), options)
        assert len(pieces) >= a.stat().st_size // size
        report = RowReport()
        parts = [part for piece in pieces for part in piece.parts]
        found = [text for part in parts for batch in read_part(part, options, report) for text in batch.texts]
        assert found == wanted
