"""What is written is read back as it was, by our own readers and by those of others."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import ByT5Tokenizer

from datamodules.readers.read import ReadOptions, read_rows
from datamodules.readers.records import InputRecords
from datamodules.readers.rows import RowReport
from generation.decoder import Hypothesis
from generation.engines.base import Prediction
from prediction.output import (
    COUNTED_TOGETHER,
    OutputForm,
    OutputRow,
    RequestAnswers,
    plain_lines,
    write_lines,
    write_rows,
)
from task_utils import get_task
from utils.errors import RunError

ODD = 'say "one"\n\\two\tC:\\new\x1b\u2028\x85end'
LABELS = ('a "quoted" one', "back\\slash\n")
PREDICTION = Prediction(ODD, -0.5, (Hypothesis(ODD, -0.5), Hypothesis("", -1.0)), (0.25, 0.75))
ROWS = [OutputRow(0, ODD, None, ODD, PREDICTION), OutputRow(1, "", "b", "c", replace(PREDICTION, text="c"))]
MORE = {
    "nbest": [{"prediction": ODD, "score": -0.5}, {"prediction": "", "score": -1.0}],
    "label_probabilities": {LABELS[0]: 0.25, LABELS[1]: 0.75},
}


def test_every_cell_of_a_tsv_is_read_back_by_our_reader(tmp_path: Path) -> None:
    write_rows(tmp_path / "out.tsv", ROWS, OutputForm(True, LABELS, True))
    text = (tmp_path / "out.tsv").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 3
    task = replace(get_task("seq2seq"), source_column="source", target_column="prediction")
    needed = frozenset({"nbest", "label_probabilities", "score"})
    options = ReadOptions(keep_all=True, target_required=False)
    (chunk,) = read_rows([str(tmp_path / "out.tsv")], task, needed, options, RowReport())
    columns: Mapping[str, Any] = {name: column.to_pylist() for name, column in chunk.columns.items()}
    assert (columns["source"], columns["target"], columns["score"]) == ([ODD, ""], [ODD, "c"], ["-0.5", "-0.5"])
    for name, value in MORE.items():
        assert [json.loads(cell) for cell in columns[name]] == [value, value]


def test_a_json_object_is_one_line_for_every_reader(tmp_path: Path) -> None:
    write_rows(tmp_path / "out.jsonl", ROWS, OutputForm(False, LABELS, True))
    first, second = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first) == {
        "id": 0,
        "source": ODD,
        "reference": None,
        "prediction": ODD,
        "score": -0.5,
        **MORE,
    }
    assert json.loads(second)["prediction"] == "c"


def test_a_plain_line_is_one_line_for_every_reader(tmp_path: Path) -> None:
    for escapes, line in (
        (True, r'say "one"\n\\two\tC:\\new\u001b\u2028\u0085end'),
        (False, 'say "one" \\two C:\\new   end'),
    ):
        write_lines(tmp_path / "out.txt", plain_lines([ODD, "b"], escapes))
        assert (tmp_path / "out.txt").read_text(encoding="utf-8").splitlines() == [line, "b"]


RECORDS = [
    r'{"source": "a\ud800b", "n": 1e999, "big": 123456789012345678901234567890.50, "é":  [1, 2.0]}',
    '{"source": "c", "digits": ' + "9" * 5000 + "}",
    "{broken",
    "",
    '"only a text\u2028"',
]


def kept(tmp_path: Path, name: str, content: str) -> list[str]:
    """The records that are kept of a file."""
    (tmp_path / name).write_bytes(content.encode())
    return list(InputRecords([str(tmp_path / name)]).rows({}, escapes=True))


def test_records_are_kept_in_the_letters_of_the_file(tmp_path: Path) -> None:
    """No digit, escape or blank changes, whatever Python would make of the numbers."""
    expected = [*RECORDS[:2], "null", "null", RECORDS[4]]
    assert kept(tmp_path, "in.jsonl", "\n".join(RECORDS) + "\n") == expected
    array = "[" + ",\n".join((RECORDS[0], '{"a":\r\n  1}', RECORDS[4])) + "]"
    assert kept(tmp_path, "in.json", array) == [RECORDS[0], '{"a":    1}', RECORDS[4]]
    rows = [replace(ROWS[1], record=record) for record in expected]
    write_rows(tmp_path / "out.jsonl", rows, OutputForm(records=True))
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith(f'"score": -0.5, "input": {RECORDS[0]}}}')
    assert [json.loads(line)["prediction"] for line in (lines[0], *lines[2:])] == ["c"] * 4
    assert json.loads(lines[4])["input"] == "only a text\u2028"


def test_rows_of_a_table_are_kept_by_name_or_number(tmp_path: Path) -> None:
    def records(name: str, content: str, decided: str) -> list[Any]:
        (tmp_path / name).write_bytes(content.encode())
        found = InputRecords([f"{tmp_path / name}:2"]).rows({str(tmp_path / name): decided}, escapes=True)
        return [json.loads(record) for record in found]

    table = "\ufeffid\t글\tid\r\n7\ta\\nb\t8\tmore\n1\n\n2\tc\n"
    header = "header: id, 글, id"
    assert records("a.tsv", table, header) == [{"1": "7", "글": "a\nb", "3": "8", "4": "more"}, {"1": ""}]
    assert records("a.tsv", table, "no header")[1] == {"1": "1"}
    quoted = 'id,글\n1,"a ""b""\n, c"\n2\n3,\\n\n'
    assert records("a.csv", quoted, "header: id, 글") == [{"id": "1", "글": 'a "b"\n, c'}, {"id": "3", "글": "\\n"}]
    row = replace(ROWS[1], record='{"id": "가\\t"}')
    write_rows(tmp_path / "out.tsv", [row], OutputForm(records=True, label_ids={"c": "1"}))
    assert (tmp_path / "out.tsv").read_text(encoding="utf-8").splitlines() == [
        "id\tsource\treference\tprediction\tscore\tinput",
        '1\t\tb\tc\t-0.5\t{"id": "가\\\\t"}',
    ]
    write_rows(tmp_path / "out.jsonl", [row], OutputForm(records=True, label_ids={"c": "1"}))
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["label_id"] == "1"


def test_an_input_that_changes_meanwhile_gives_no_output(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("1\n2\n")
    records = InputRecords([str(path)])
    path.write_text("2\n1\n")
    os.utime(path, (1, 1))
    rows = (replace(ROWS[1], record=record) for record in records.rows({}, escapes=True))
    with pytest.raises(RunError, match=r"in\.jsonl has changed while its rows were predicted"):
        write_rows(tmp_path / "out.jsonl", rows, OutputForm())
    assert os.listdir(tmp_path) == ["in.jsonl"]


REQUEST = '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}'
ANSWERS = RequestAnswers("runs/a, runs/b", lambda texts: [len(text) for text in texts])


def test_an_answer_holds_any_text_and_says_where_it_was_cut(tmp_path: Path) -> None:
    """Several blocks of answers; half of a surrogate pair, which a model may write, is no text of UTF-8."""
    answers = [ODD, "\ud800", *map(str, range(COUNTED_TOGETHER))]
    cut = replace(PREDICTION, cut=True)
    rows = [OutputRow(row, "x", None, text, cut, REQUEST, 2) for row, text in enumerate(answers)]
    write_rows(tmp_path / "out.jsonl", rows, OutputForm(requests=ANSWERS))
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")
    bodies = [json.loads(line)["response"]["body"] for line in lines[:-1]]
    assert [body["choices"][0]["text"] for body in bodies] == [ODD, "?", *answers[2:]]
    assert bodies[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
    assert RequestAnswers.of(["runs/a"], ByT5Tokenizer()).count_tokens(["ab", "", "\ud800"]) == [3, 1, 4]
    assert {(body["choices"][0]["finish_reason"], body["model"]) for body in bodies} == {("length", "runs/a, runs/b")}


def test_a_request_that_is_none_any_more_gives_no_output(tmp_path: Path) -> None:
    rows = [replace(ROWS[0], record=REQUEST), replace(ROWS[1], record="{}")]
    with pytest.raises(RunError, match=r"the input has changed: row 1 is no request \(custom_id is missing"):
        write_rows(tmp_path / "out.jsonl", rows, OutputForm(requests=ANSWERS))
    assert os.listdir(tmp_path) == []


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("of somebody else\n")
    with pytest.raises(RunError, match=r"out\.txt is there and holds something else; -overwrite replaces it"):
        write_lines(path, ["a"], replace=False)
    assert path.read_text() == "of somebody else\n"
    write_lines(path, ["a"], replace=True)
    write_lines(path, ["a"], replace=False)  # the same bytes: a run that was killed after it had written them
    assert path.read_text() == "a\n"
    assert os.listdir(tmp_path) == ["out.txt"]
