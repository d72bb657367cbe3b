"""What is written is read back as it was, by our own readers and by those of others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.readers import ReadOptions, read_rows
from datamodules.rows import RowReport
from models.generation import Hypothesis
from models.prediction_output import OutputRow, plain_lines, write_lines, write_rows
from models.predictions import Prediction
from task_utils import get_task

ODD = 'say "one"\n\\two\tC:\\new\x1b\u2028\x85end'
LABELS = ('a "quoted" one', "back\\slash\n")
PREDICTION = Prediction(ODD, -0.5, (Hypothesis(ODD, -0.5), Hypothesis("", -1.0)), (0.25, 0.75))
ROWS = [OutputRow(0, ODD, None, ODD, PREDICTION), OutputRow(1, "", "b", "c", replace(PREDICTION, text="c"))]
MORE = {
    "nbest": [{"prediction": ODD, "score": -0.5}, {"prediction": "", "score": -1.0}],
    "label_probabilities": {LABELS[0]: 0.25, LABELS[1]: 0.75},
}


def test_every_cell_of_a_tsv_is_read_back_by_our_reader(tmp_path: Path) -> None:
    write_rows(tmp_path / "out.tsv", ROWS, escapes=True, labels=LABELS, nbest=True)
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
    write_rows(tmp_path / "out.jsonl", ROWS, escapes=False, labels=LABELS, nbest=True)
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
