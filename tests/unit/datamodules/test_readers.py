"""Every kind of data file to rows: what is kept, what is skipped, and what the user is told."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.readers import arrow, tsv
from datamodules.readers.paths import (
    Contents,
    DataPath,
    arrow_files,
    check_data_paths,
    parse_data_path,
    split_names,
)
from datamodules.readers.read import ReadOptions, RowReport, read_rows
from postprocessors.labels import LabelMap
from task_utils import Task
from utils.errors import UserError

NUMBERED = Task("numbered", "")
NAMED = Task("named", "", source_column="text", target_column="label")
PREDICT: dict[str, Any] = {"keep_all": True, "target_required": False}


def rows_of(
    *paths: Path | str, task: Task = NUMBERED, needed: frozenset[str] = frozenset(), **options: Any
) -> tuple[list[tuple[str, str | None]], RowReport]:
    report = RowReport()
    rows = []
    for chunk in read_rows([str(path) for path in paths], task, needed, ReadOptions(**options), report):
        rows += list(zip(chunk.columns["source"].to_pylist(), chunk.columns["target"].to_pylist(), strict=True))
    return rows, report


def ids_and_lines(*paths: Path | str, task: Task = NUMBERED, **options: Any) -> list[tuple[int, int]]:
    chunks = read_rows([str(path) for path in paths], task, frozenset(), ReadOptions(**options), RowReport())
    return [pair for chunk in chunks for pair in zip(chunk.row_ids.tolist(), chunk.lines.tolist(), strict=True)]


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def problems_of(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **named)
    return str(caught.value)


# ---- TSV


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_tsv_encodings_and_line_ends(tmp_path: Path, bom: bytes, end: bytes, last: bool) -> None:
    lines = ["소스\t타깃", 'say "hi\t"quoted"', "a\0b\tc", "x\ty\tz"]
    file = write(tmp_path / "a.tsv", bom + end.join(line.encode() for line in lines) + (end if last else b""))
    rows, report = rows_of(file)
    assert rows == [("소스", "타깃"), ('say "hi', '"quoted"'), ("a\0b", "c"), ("x", "y")]
    assert (report.rows_read, report.malformed) == (4, {})


def test_tsv_malformed_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", b"a\tb\n\nonly\n\tt\ns\t\n \tt\nbad\xff\tt\nc\td\nlone2\nlone3\nlone4\n")
    rows, report = rows_of(file)
    assert rows == [("a", "b"), ("c", "d")]
    assert report.rows_read == 11
    assert report.malformed == {
        "empty line": (1, [f"{file}:2"]),
        "too few columns": (4, [f"{file}:3", f"{file}:9", f"{file}:10"]),
        "empty source": (2, [f"{file}:4", f"{file}:6"]),
        "empty target": (1, [f"{file}:5"]),
        "invalid UTF-8": (1, [f"{file}:7"]),
    }


def test_strict_stops_at_the_first_malformed_row(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", b"a\tb\nbad\xff\tt\nonly\n")
    assert problems_of(rows_of, file, strict=True) == f"{file}:2: invalid UTF-8 (-strict_data)"


def test_prediction_keeps_every_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", b"a\tb\n\nonly\n\tt\ns\t\nbad\xff\xfe\tt\n\n")
    rows, report = rows_of(file, **PREDICT)
    assert rows == [
        ("a", "b"),
        ("", None),
        ("only", None),
        ("", "t"),
        ("s", None),
        ("bad\ufffd\ufffd", "t"),
        ("", None),
    ]
    assert report.malformed == {"invalid UTF-8": (1, [f"{file}:6"])}
    assert ids_and_lines(file, **PREDICT) == [(row, row + 1) for row in range(7)]


def test_prediction_of_a_single_column(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "a.tsv", "하나\n둘\n"), **PREDICT)[0] == [("하나", None), ("둘", None)]
    assert rows_of(write(tmp_path / "b.tsv", "document\n둘\n"), **PREDICT)[0] == [("둘", None)]


def test_tsv_escapes(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", "one\\ntwo\\\\n\tC:\\\\dir\\x\\t.\\r\n\\n\tz\n")
    rows, report = rows_of(file)
    assert rows == [("one\ntwo\\n", "C:\\dir\\x\t.\r")]
    assert report.escapes_seen == 6
    assert report.malformed == {"empty source": (1, [f"{file}:2"])}
    assert rows_of(file, tsv_escapes=False)[0] == [("one\\ntwo\\\\n", "C:\\\\dir\\x\\t.\\r"), ("\\n", "z")]


def test_long_lines_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tsv, "BLOCK_BYTES", 100_000)
    long = "가나다" * 120_000
    file = write(tmp_path / "a.tsv", f"a\tb\n{long}\tc\nd\t{long}\ne\tf")
    assert rows_of(file)[0] == [("a", "b"), (long, "c"), ("d", long), ("e", "f")]
    assert ids_and_lines(file) == [(0, 1), (1, 2), (2, 3), (3, 4)]


CELL = st.text(st.characters(exclude_characters="\t\n", exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.lists(CELL, min_size=1, max_size=4), max_size=8), block=st.integers(1, 40), end=st.booleans())
def test_tsv_agrees_with_a_plain_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[list[str]], block: int, end: bool
) -> None:
    monkeypatch.setattr(tsv, "BLOCK_BYTES", block)
    text = "\n".join("\t".join(cells) for cells in lines) + "\n" * end
    file = write(tmp_path / "a.tsv", text)
    physical = text.removesuffix("\n").removeprefix("\ufeff").split("\n") if text.removeprefix("\ufeff") else []
    expected = []
    for line in physical:
        cells = line.removesuffix("\r").split("\t")
        source = cells[0] if cells[0].strip() else None
        target = cells[1] if len(cells) > 1 and cells[1].strip() else None
        expected.append((cells[0], target, source))
    options: dict[str, Any] = {"header": "false", "tsv_escapes": False}
    assert rows_of(file, **PREDICT, **options)[0] == [(source, target) for source, target, _ in expected]
    if not any("\t" in line for line in physical):
        assert not physical or "no column 2" in problems_of(rows_of, file, **options)
        return
    assert rows_of(file, **options)[0] == [(s, target) for _, target, s in expected if s is not None and target]


# ---- headers and columns


@pytest.mark.parametrize(
    ("first", "is_header"),
    [
        ("source\ttarget", True),
        ("Input\tOutput", True),
        ("text\tlabel", True),
        ("좋은\t긍정", False),
        ("a\tlabel", False),
    ],
)
def test_automatic_header(tmp_path: Path, first: str, is_header: bool) -> None:
    file = write(tmp_path / "a.tsv", f"{first}\nx\ty\n")
    rows, report = rows_of(file)
    assert len(rows) == (1 if is_header else 2)
    assert report.headers[str(file)] == (f"header: {', '.join(first.split(chr(9)))}" if is_header else "no header")
    assert len(rows_of(file, header="true")[0]) == 1
    assert len(rows_of(file, header="false")[0]) == 2


@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_columns_by_name_and_number(tmp_path: Path, suffix: str) -> None:
    content = "id\ttext\tlabel\textra\n7\t좋다\t1\te\n".replace("\t", "\t" if suffix == "tsv" else ",")
    file = write(tmp_path / f"a.{suffix}", content)
    assert rows_of(file, task=NAMED)[0] == [("좋다", "1")]
    assert rows_of(file, source_column="extra", target_column="id")[0] == [("e", "7")]
    assert rows_of(file, source_column="2", target_column="3")[0] == [("좋다", "1")]
    assert ids_and_lines(file, task=NAMED) == [(0, 2)]


def test_extra_columns_of_templates(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", "text\tlabel\tkind\na\tb\tc\nd\te\nf\tg\t\n")
    chunks = list(read_rows([str(file)], NAMED, frozenset({"kind", "text", "source"}), ReadOptions(), RowReport()))
    assert {name: column.to_pylist() for name, column in chunks[0].columns.items()} == {
        "source": ["a", "f"],
        "target": ["b", "g"],
        "kind": ["c", ""],
        "text": ["a", "f"],
    }


def test_wrong_columns_say_what_there_is(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", "id\ttext\n1\ta\n")
    listed = "columns there are: 1=id, 2=text"
    hint = "; where no line names the columns, -source_column takes a number"
    assert problems_of(rows_of, file, task=NAMED) == f"{file}: no column 'label'; {listed}"
    assert problems_of(rows_of, file, source_column="sentence") == f"{file}: no column 'sentence'; {listed}{hint}"
    assert problems_of(rows_of, file, source_column="5", header="true") == f"{file}: no column 5; {listed}"
    assert problems_of(rows_of, file, source_column="5") == (
        f"{file}: no column 5; columns there are: 1=(column 1), 2=(column 2)"
    )
    assert problems_of(rows_of, file, source_column="text", header="false") == (
        f"{file}: column 'text' is asked for by name, but -header is false; give its number"
    )
    assert problems_of(rows_of, file, source_column="0") == "-source_column 0: columns are counted from 1"
    assert problems_of(rows_of, file, source_column="2") == "-source_column and -target_column are both 2"
    assert rows_of(file, task=NAMED, **PREDICT)[0] == [("a", None)]


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_the_source_of_unlabelled_rows_may_be_the_column_of_the_target(tmp_path: Path, name: str) -> None:
    """-source_column 2 in prediction: the target column of the task is 2 as well, and there is no reference."""
    lines = {
        "a.tsv": "id\ttext\n1\tgood\n2\tbad\n",
        "a.csv": "id,text\n1,good\n2,bad\n",
        "a.jsonl": '{"id": 1, "text": "good"}\n{"id": 2, "text": "bad"}\n',
    }
    file = write(tmp_path / name, lines[name])
    assert rows_of(file, source_column="2", **PREDICT)[0] == [("good", None), ("bad", None)]


# ---- shards and row ids


def test_shards_and_row_ids_over_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.tsv", "source\ttarget\n" + "".join(f"s{n}\tt{n}\n" for n in range(7)))
    second = write(tmp_path / "b.jsonl", '{"x": "u", "y": "v"}\n\n{"x": "w", "y": "z"}\n')
    assert [source for source, _ in rows_of(f"{first}:3", second)[0]] == ["s0", "s3", "s6", "u", "w"]
    assert ids_and_lines(f"{first}:3", second) == [(0, 2), (1, 5), (2, 8), (3, 1), (5, 3)]
    assert ids_and_lines(f"{first}:3", f"{second}:2", **PREDICT) == [(0, 2), (1, 5), (2, 8), (3, 1), (4, 3)]


def test_data_paths(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", "a\tb\n")
    literal = write(tmp_path / "a.tsv:2.txt", "a\tb\n")
    assert parse_data_path(str(file)) == DataPath(str(file), "tsv")
    assert parse_data_path(f"{file}:10") == DataPath(str(file), "tsv", 10)
    assert parse_data_path(str(literal)) == DataPath(str(literal), "tsv")
    assert parse_data_path(f"{literal}:4") == DataPath(str(literal), "tsv", 4)
    assert parse_data_path(f"{tmp_path}:5") == DataPath(str(tmp_path), "folder", 5)
    assert parse_data_path("e9t/nsmc") == DataPath("e9t/nsmc", "hub")
    assert parse_data_path("klue:ynat") == DataPath("klue", "hub", 1, "ynat")
    assert parse_data_path("klue:ynat:validation") == DataPath("klue", "hub", 1, "ynat", "validation")
    assert parse_data_path("klue:ynat:validation:10") == DataPath("klue", "hub", 10, "ynat", "validation")
    numbered = write(tmp_path / "b.tsv:3", "a\tb\n")
    assert parse_data_path(str(numbered)) == DataPath(str(numbered), "tsv")
    assert parse_data_path(f"{numbered}:2") == DataPath(str(numbered), "tsv", 2)
    for twice in (f"{file}:3:2", f"{file}:1:2", "gone.tsv:3:2", "klue:ynat:validation:3:2"):
        assert problems_of(parse_data_path, twice) == (
            f"{twice!r}: two suffixes ':N'; give one (N takes every N-th row)"
        )
    for bad in (f"{file}:0", f"{file}:", f"{file}:-1", f"{file}:x", "gone.tsv:0", "klue:", "klue:0"):
        assert problems_of(parse_data_path, bad) == (
            f"{bad!r}: the suffix after ':' must be a whole number from 1 (N takes every N-th row)"
        )
    assert "empty data path" in problems_of(parse_data_path, " ")
    assert problems_of(parse_data_path, "./gone") == "./gone: no such file or folder"
    assert "no such file or folder, and no hub name" in problems_of(parse_data_path, "what is this")
    assert split_names("-train_data") == ("train",)
    assert "test" not in split_names("-valid_data")


def test_check_data_paths(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.tsv", b"")
    blank = write(tmp_path / "blank.tsv", b"\xef\xbb\xbf\n \n")
    wide = write(tmp_path / "wide.tsv", "a\tb\n".encode("utf-16"))
    odd = write(tmp_path / "a.xlsx", b"PK")
    (tmp_path / "folder").mkdir()
    good = write(tmp_path / "good.tsv", "a\tb\n")
    values = [str(good), "gone.tsv", *map(str, (empty, blank, wide, odd, tmp_path / "folder")), "e9t/nsmc"]
    assert check_data_paths("-train_data", values) == [
        "-train_data: gone.tsv: no such file",
        f"-train_data: {empty}: the file is empty",
        f"-train_data: {blank}: the file is empty",
        f"-train_data: {wide}: the file is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
        f"-train_data: {odd}: unknown type of data file '.xlsx'; known: .tsv/.txt (tab), .csv, .jsonl/.json, "
        ".parquet, a save_to_disk folder, a hub name",
        f"-train_data: {tmp_path / 'folder'}: a folder, but not one written by save_to_disk (it has no state.json)",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", "a\tb\n")
    file.chmod(0)
    assert check_data_paths("-test_data", [str(file)]) == [f"-test_data: {file}: cannot be read (Permission denied)"]


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.tsv", "a\tb\n"), write(tmp_path / "b.txt", "a\tb\n")
    other = write(tmp_path / "c.tsv", "a\tc\n")

    def digest(*paths: object) -> str:
        return Contents([str(path) for path in paths]).digest

    assert digest(first) == digest(second)
    assert len({digest(path) for path in (first, other, f"{first}:2")}) == 3
    assert digest(first, other) != digest(other, first)


# ---- CSV


def test_csv_quotes(tmp_path: Path) -> None:
    content = '\ufeffsource,target\r\n"a, ""b""\nsecond line",c\r\nd,"e"\r\n\r\nf\r\n"x"y,z\r\nnul\0,g\r\n'
    file = write(tmp_path / "a.csv", content)
    rows, report = rows_of(file)
    assert rows == [('a, "b"\nsecond line', "c"), ("d", "e"), ("nul\0", "g")]
    assert report.malformed == {
        "empty line": (1, [f"{file}:5"]),
        "too few columns": (1, [f"{file}:6"]),
        "broken CSV": (1, [f"{file}:7"]),
    }
    assert [line for _, line in ids_and_lines(file)] == [2, 4, 8]
    kept = rows_of(file, **PREDICT)[0]
    assert kept == [('a, "b"\nsecond line', "c"), ("d", "e"), ("", None), ("f", None), ("", None), ("nul\0", "g")]


@pytest.mark.parametrize("first", ["", "only one"])
def test_csv_whose_first_line_is_blank_or_short(tmp_path: Path, first: str) -> None:
    file = write(tmp_path / "a.csv", f"{first}\na,b\nc,d,e\n")
    rows, report = rows_of(file)
    assert rows == [("a", "b"), ("c", "d")]
    assert report.malformed == {"too few columns" if first else "empty line": (1, [f"{file}:1"])}
    assert rows_of(file, source_column="3", target_column="1")[0] == [("e", "c")]
    assert problems_of(rows_of, file, source_column="4") == (
        f"{file}: no column 4; columns there are: 1=(column 1), 2=(column 2), 3=(column 3)"
    )


def test_csv_invalid_utf8_and_open_quote(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", b"a\xff,b\nc,d\n")
    rows, report = rows_of(file)
    assert (rows, report.malformed) == ([("c", "d")], {"invalid UTF-8": (1, [f"{file}:1"])})
    assert rows_of(file, **PREDICT)[0] == [("a\ufffd", "b"), ("c", "d")]
    broken = write(tmp_path / "b.csv", 'a,b\n"c,d\ne,f\n')
    assert problems_of(rows_of, broken).startswith(f"{broken}:2: a quoted cell that starts in this row is never closed")


def test_csv_cells_of_a_megabyte(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", f'{"x" * 1_000_000},"{"y" * 1_000_000}"\n')
    assert rows_of(file)[0] == [("x" * 1_000_000, "y" * 1_000_000)]


# ---- JSON


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        '\ufeff{"text": "좋다\\n\\t\\u0000", "label": 0}',
        '{"text": "b", "label": 1.0, "more": [1]}',
        '{"label": true, "text": 12345678901234567890123}',
        '{"text": "c", "label": null}',
        "",
        '{"text": "d"}',
        '{"text": "e", "label": ["x"]}',
        '{"text": "\\ud800", "label": "x"}',
        '{"text": "broken',
        "[1]",
        '{"text": "\\ud83d\\ude00", "label": "x"}',
    ]
    file = write(tmp_path / "a.jsonl", "\r\n".join(lines).encode())
    rows, report = rows_of(file, task=NAMED)
    assert rows == [("좋다\n\t\0", "0"), ("b", "1.0"), ("12345678901234567890123", "true"), ("😀", "x")]
    assert report.malformed == {
        "empty target": (1, [f"{file}:4"]),
        "empty line": (1, [f"{file}:5"]),
        "missing column": (1, [f"{file}:6"]),
        "value is not text": (1, [f"{file}:7"]),
        "lone surrogate": (1, [f"{file}:8"]),
        "broken JSON": (1, [f"{file}:9"]),
        "not a JSON object": (1, [f"{file}:10"]),
    }
    kept, report = rows_of(file, task=NAMED, **PREDICT)
    assert [source for source, _ in kept[3:]] == ["c", "", "d", "e", "\ufffd", "", "", "😀"]
    assert problems_of(rows_of, file, task=NAMED, strict=True) == f"{file}:4: empty target (-strict_data)"


def test_json_lines_invalid_utf8(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", b'{"text": "a\xff", "label": "b"}\n{"text": "c", "label": "d"}\n')
    rows, report = rows_of(file, task=NAMED)
    assert (rows, report.malformed) == ([("c", "d")], {"invalid UTF-8": (1, [f"{file}:1"])})
    rows, report = rows_of(file, task=NAMED, **PREDICT)
    assert (rows, report.malformed) == ([("a\ufffd", "b"), ("c", "d")], {"invalid UTF-8": (1, [f"{file}:1"])})


def test_json_array(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", '\n[\n  {"text": "a", "label": 0},\n\n  {"text": "b",\n   "label": 1} , 5]\n')
    rows, report = rows_of(file, task=NAMED)
    assert rows == [("a", "0"), ("b", "1")]
    assert [line for _, line in ids_and_lines(file, task=NAMED)] == [3, 5]
    assert report.malformed == {"not a JSON object": (1, [f"{file}:6"])}
    assert rows_of(write(tmp_path / "e.json", "[ ]"), task=NAMED)[0] == []
    for broken in ('[{"text": "a"', '[{"text": "a"} {}]', '[{"text": "a"},]', '[{"text": "a"}] x'):
        assert f"{tmp_path / 'b.json'}:1: " in problems_of(rows_of, write(tmp_path / "b.json", broken), task=NAMED)


def test_json_columns(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", '{"q": "a", "a": "b"}\n{"a": "d", "q": "c"}\n{"a": "e"}\n')
    rows, report = rows_of(file)
    assert rows == [("a", "b"), ("c", "d")]
    assert report.malformed == {"missing column": (1, [f"{file}:3"])}
    assert problems_of(rows_of, file, task=NAMED).splitlines() == [
        f"{file}: no column 'text'; columns there are: 1=q, 2=a",
        f"{file}: no column 'label'; columns there are: 1=q, 2=a",
    ]


def cells_of(path: Path, names: tuple[str, ...], task: Task = NUMBERED, **options: Any) -> dict[str, list[str | None]]:
    """The columns of those names."""
    chunks = list(read_rows([str(path)], task, frozenset(names), ReadOptions(**options), RowReport()))
    return {name: [cell for chunk in chunks for cell in chunk.columns[name].to_pylist()] for name in names}


NESTED = Task("nested", "", source_column="text", target_column="labels.real-label")
NESTED_ROWS = [
    {"text": "a", "labels": {"real-label": 1.25, "more": {"x.y": "p"}}, "labels.dot": "own"},
    {"text": "b", "labels": {"real-label": 5.0, "dot": "in", "more": {"x.y": "q"}}, "labels.dot": "own"},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_dotted_names_of_json(tmp_path: Path, name: str) -> None:
    lines = [json.dumps(row) for row in NESTED_ROWS]
    file = write(tmp_path / name, "\n".join(lines) if name == "a.jsonl" else f"[{', '.join(lines)}]")
    names = ("source", "target", "labels.dot", "labels.more.x.y")
    assert cells_of(file, names, NESTED) == {
        "source": ["a", "b"],
        "target": ["1.25", "5.0"],
        "labels.dot": ["own", "own"],
        "labels.more.x.y": ["p", "q"],
    }


def test_a_nested_key_that_is_missing_counts_like_a_column(tmp_path: Path) -> None:
    lines = [*map(json.dumps, NESTED_ROWS), '{"text": "c", "labels": 3}', '{"text": "d", "labels": {"real-label": []}}']
    file = write(tmp_path / "a.jsonl", "\n".join(lines))
    rows, report = rows_of(file, task=NESTED)
    assert rows == [("a", "1.25"), ("b", "5.0")]
    assert report.malformed == {"missing column": (1, [f"{file}:3"]), "value is not text": (1, [f"{file}:4"])}
    assert problems_of(rows_of, file, task=NAMED, target_column="labels.none") == (
        f"{file}: no column 'labels.none'; columns there are: 1=text, 2=labels, 3=labels.dot"
    )


def test_a_number_in_a_dotted_name_is_a_place_in_a_list_of_json(tmp_path: Path) -> None:
    """As the files of retrieval have their negatives; a list that is too short has no such place."""
    rows = [
        {"text": "a", "found": ["first", "second"], "deep": [{"text": "p"}, {"text": "q"}], "all.0": "own"},
        {"text": "b", "found": ["only"], "deep": [{"text": "r"}, {"text": "s"}], "all": ["t"]},
    ]
    file = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    task = Task("places", "", source_column="text", target_column="found.1")
    names = ("source", "target", "deep.1.text", "all.0")
    assert cells_of(file, names, task, keep_all=True) == {
        "source": ["a", "b"],
        "target": ["second", None],
        "deep.1.text": ["q", "s"],
        "all.0": ["own", "t"],
    }


# ---- Parquet and Arrow


def test_parquet_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["a", None, "c\0", "d"]).dictionary_encode(),
            "label": pa.array([0, 1, None, 2], pa.int8()),
            "score": [1.0, 0.5, 1e30, 2.0],
            "flag": [True, False, True, True],
            "nested": [[1], [2], [], []],
        }
    )
    file = tmp_path / "a.parquet"
    pq.write_table(table, file)
    rows, report = rows_of(file, task=NAMED)
    assert rows == [("a", "0"), ("d", "2")]
    assert report.malformed == {"empty source": (1, [f"{file}:2"]), "empty target": (1, [f"{file}:3"])}
    assert [target for _, target in rows_of(file, task=NAMED, target_column="score", **PREDICT)[0]] == [
        "1.0",
        "0.5",
        "1e+30",
        "2.0",
    ]
    assert rows_of(file, task=NAMED, target_column="flag")[0][0] == ("a", "true")
    assert "no column 'x'; columns there are: 1=text, 2=label" in problems_of(rows_of, file, source_column="x")
    assert "column 'nested' holds list<" in problems_of(rows_of, file, task=NAMED, target_column="nested")
    assert "cannot be read as Parquet" in problems_of(rows_of, write(tmp_path / "b.parquet", b"PAR1 not"), task=NAMED)


def test_dotted_names_of_parquet(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([*NESTED_ROWS, {"text": "c", "labels": None, "labels.dot": None}]), file)
    names = ("source", "target", "labels.dot", "labels.more.x.y")
    assert cells_of(file, names, NESTED, **PREDICT) == {
        "source": ["a", "b", "c"],
        "target": ["1.25", "5.0", None],
        "labels.dot": ["own", "own", ""],
        "labels.more.x.y": ["p", "q", ""],
    }
    assert rows_of(file, task=NESTED)[1].malformed == {"empty target": (1, [f"{file}:3"])}
    assert "no column 'labels.none'" in problems_of(rows_of, file, task=NAMED, target_column="labels.none")
    assert "column 'labels.more' holds struct<" in problems_of(rows_of, file, task=NAMED, target_column="labels.more")


def test_parquet_binary_text(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([b"ok", b"\xff"]), "label": ["x", "y"]}), file)
    assert rows_of(file, task=NAMED)[0] == [("ok", "x")]
    assert rows_of(file, task=NAMED, **PREDICT)[0] == [("ok", "x"), ("\ufffd", "y")]


def test_a_small_parquet_file_of_large_rows_is_read_in_parts(tmp_path: Path) -> None:
    """One text of 4 MB in each of 1,000 rows, in some hundred bytes: 4 GB if it were read at once."""
    file = tmp_path / "a.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["a" * (4 << 20)]))
    pq.write_table(pa.table({"text": text, "label": ["b"] * 1000}), file, compression="zstd", store_schema=False)
    assert file.stat().st_size < 2000
    chunks = read_rows([str(file)], NAMED, frozenset(), ReadOptions(), RowReport())
    first = next(chunks)
    assert [len(text) for text in first.columns["source"].to_pylist()] == [4 << 20] * 15


def test_a_parquet_file_that_shrank_beyond_all_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": ["a" * (8 << 20)], "label": ["b"]}), file, compression="zstd", use_dictionary=False
    )
    assert rows_of(file, task=NAMED)[0][0][1] == "b"
    monkeypatch.setattr(arrow, "MOST_BYTES", 1 << 20)
    assert f"{file}: column 'text' holds 8," in problems_of(rows_of, file, task=NAMED)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    datasets = pytest.importorskip("datasets")
    folder: Path = tmp_path_factory.mktemp("saved")
    label = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label, "more": {"label": label}})
    more = [{"label": 1}, {"label": 0}, {"label": 1}]
    train = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, -1], "more": more}, features=features)
    valid = datasets.Dataset.from_dict({"text": ["v"], "label": [1], "more": more[:1]}, features=features)
    datasets.DatasetDict({"train": train, "validation": valid}).save_to_disk(str(folder / "all"))
    train.to_parquet(str(folder / "train.parquet"))
    return folder


def test_saved_datasets(saved: Path) -> None:
    folder = saved / "all"
    assert check_data_paths("-train_data", [str(folder), str(folder / "train")]) == []
    rows, report = rows_of(folder, task=NAMED)
    assert rows == [("a", "neg"), ("b", "pos")]
    assert report.malformed == {"empty target": (1, [f"{folder}:3"])}
    assert rows_of(folder, task=NAMED, flag="-valid_data")[0] == [("v", "pos")]
    nested = replace(NAMED, target_column="more.label")
    assert rows_of(folder, task=nested)[0] == [("a", "pos"), ("b", "neg"), ("c", "pos")]
    assert rows_of(folder / "train", task=NAMED, flag="-test_data", **PREDICT)[0][2] == ("c", None)
    assert check_data_paths("-test_data", [str(folder)]) == [
        f"-test_data: {folder}: has no split 'test' for -test_data; it has train, validation; "
        f"name the folder of a split, such as {folder}/train"
    ]
    assert rows_of(saved / "train.parquet", task=NAMED)[0] == [("a", "neg"), ("b", "pos")]


def test_class_numbers_with_a_label_map(saved: Path) -> None:
    mapped = Task(
        "m", "", source_column="text", target_column="label", label_map=LabelMap.parse("0=부정,1=긍정"), metrics=()
    )
    assert rows_of(saved / "all", task=mapped)[0] == [("a", "0"), ("b", "1"), ("c", "-1")]


def test_class_names_that_a_label_map_knows_are_used_whatever_their_numbers(saved: Path) -> None:
    names = LabelMap.parse("pos=긍정,neg=부정")
    mapped = Task("m", "", source_column="text", target_column="label", label_map=names, metrics=())
    rows, report = rows_of(saved / "all", task=mapped)
    assert rows == [("a", "neg"), ("b", "pos")]
    assert report.malformed == {"empty target": (1, [f"{saved / 'all'}:3"])}
    other = replace(mapped, label_map=LabelMap.parse("0=pos,1=neg"))  # ids of another order than the class numbers
    assert rows_of(saved / "all", task=other)[0] == [("a", "neg"), ("b", "pos")]


def test_saved_dataset_with_a_missing_file(tmp_path: Path) -> None:
    write(tmp_path / "state.json", json.dumps({"_data_files": [{"filename": "data-00000.arrow"}]}))
    assert problems_of(arrow_files, str(tmp_path), "-train_data") == (
        f"{tmp_path}: data file data-00000.arrow is missing"
    )


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("state.json", "[" * 100_000, "nested deeper than"),
        ("state.json", '{"_data_files": [{"filename": 1}]}', "damaged: it names no files or splits, but [1]"),
        ("state.json", '{"_data_files": 7}', "damaged: it names no files or splits, but 7"),
        ("dataset_dict.json", '{"splits": {"train": 1}}', "damaged: it names no files or splits, but {'train': 1}"),
    ],
)
def test_saved_dataset_with_a_damaged_list_of_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = write(tmp_path / name, content)
    (problem,) = check_data_paths("-train_data", [str(tmp_path)])
    assert problem.startswith(f"-train_data: {file}: ")
    assert message in problem


def test_json_rows_nested_too_deep_are_counted(tmp_path: Path) -> None:
    deep = '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"
    file = write(tmp_path / "a.jsonl", f'{{"text": "a", "label": "b"}}\n{deep}\n')
    assert rows_of(file, task=NAMED)[1].malformed == {"broken JSON": (1, [f"{file}:2"])}


def test_hub_name_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    message = problems_of(rows_of, "no-one/no-such-data:config", task=NAMED)
    assert message.startswith(
        "-train_data: 'no-one/no-such-data:config' is no file or folder here, and cannot be loaded"
    )
    assert "\n" not in message


# ---- the data sets that the readers are for


SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
NSMC = SHARED / "nsmc"


@pytest.mark.skipif(not NSMC.is_dir(), reason="the NSMC sample is not there")
def test_nsmc_loses_no_row() -> None:
    for file in sorted([*NSMC.glob("*.txt"), *NSMC.glob("*.tsv")]):
        lines = file.read_bytes().count(b"\n")
        task = Task("nsmc", "", source_column="document", target_column="label")
        rows, report = rows_of(file, task=task, tsv_escapes=False)
        assert report.rows_read == lines - 1
        assert len(rows) == lines - 1 - sum(count for count, _ in report.malformed.values())
        assert {label for _, label in rows} <= {"0", "1"}


def test_a_column_name_that_occurs_twice_needs_a_number(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", b"source\ttarget\ttarget\na\tb\tc\n")
    message = problems_of(rows_of, file, task=Task("pair", "", source_column="source", target_column="target"))
    assert message == f"{file}: column 'target' occurs more than once (2, 3); give its number"


def test_a_parquet_column_that_occurs_twice_is_refused_if_it_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    columns = [pa.array([value]) for value in ("a", "b", "c", "d")]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "x", "label", "x"]), file)
    assert rows_of(file, task=NAMED)[0] == [("a", "c")]
    for wanted in ({"target_column": "x"}, {"target_column": "4"}, {"needed": frozenset(["x"])}):
        problem = problems_of(rows_of, file, task=NAMED, **wanted)
        assert problem == f"{file}: column 'x' occurs more than once; rename one of them"


def test_a_json_key_that_occurs_twice_is_no_text(tmp_path: Path) -> None:
    lines = '{"text": "a", "label": "b", "x": 1, "x": 2}\n{"text": "c", "label": "d", "label": "e"}\n'
    file = write(tmp_path / "a.jsonl", lines)
    rows, report = rows_of(file, task=NAMED)
    assert (rows, report.malformed) == ([("a", "b")], {"value is not text": (1, [f"{file}:2"])})


def test_a_file_with_carriage_returns_alone_and_a_fifo_are_refused(tmp_path: Path) -> None:
    old = write(tmp_path / "old.tsv", b"a\tb\rc\td\r")
    assert "lines end with a carriage return alone" in check_data_paths("-train_data", [str(old)])[0]
    os.mkfifo(tmp_path / "pipe.tsv")
    problem = check_data_paths("-train_data", [str(tmp_path / "pipe.tsv")])[0]
    assert "is no regular file" in problem
    assert "must be a whole number from 1" in check_data_paths("-train_data", [f"{old}:{10**30}"])[0]
