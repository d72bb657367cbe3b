"""Names of files that are no UTF-8 (Linux allows any bytes): rows are read, and what is written shows them escaped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import ByT5Tokenizer

import export
from config.flags.data import DataFlags, LengthFlags
from config.flags.train import TrainConfig
from config.parser import parse_flags
from datamodules.splits import RowEncoder, prediction_split
from task_utils import get_task
from training.checks import check_train
from utils.errors import UserError
from utils.files import write_json

ROWS = [("ab", "a"), ("cd", "c")]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    folder = tmp_path / os.fsdecode(b"\xff\xfe")
    folder.mkdir()
    return folder


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "json", "parquet", "folder"])
def test_rows_are_read_and_cached(kind: str, odd: Path) -> None:
    path = odd / f"a.{kind}"
    table = pa.table({"source": [source for source, _ in ROWS], "target": [target for _, target in ROWS]})
    if kind == "parquet":
        pq.write_table(table, pa.OSFile(os.fsencode(path), "wb"))
    elif kind == "folder":
        path.mkdir()
        with pa.OSFile(os.fsencode(path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        (path / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    else:
        pattern = {"tsv": "{}\t{}\n", "csv": "{},{}\n"}.get(kind, '{{"source": "{}", "target": "{}"}}\n')
        path.write_text("".join(pattern.format(*row) for row in ROWS))
    encoder = RowEncoder(
        DataFlags(test_data=(str(path),)), LengthFlags(), get_task("seq2seq"), ByT5Tokenizer(), 0, odd / "cache"
    )
    for _ in range(2):  # encoded, and from the cache
        split, lines = prediction_split(encoder)
        assert [(split.source_text(row), split.reference(row)) for row in range(len(split))] == ROWS
        assert any(str(path) in line for line in lines)
    (sidecar,) = (odd / "cache").glob("*.json")
    assert json.loads(sidecar.read_text())["report"]["paths"] == [str(path)]


def test_json_holds_such_a_path_escaped(tmp_path: Path) -> None:
    path = os.fsdecode("가/".encode() + b"\xff")
    write_json(tmp_path / "report.json", {"test_data": [path]})
    assert '"가/\\udcff"' in (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == {"test_data": [path]}


def test_models_are_written_to_other_names_only(odd: Path) -> None:
    told = (
        f"-save_path {odd}/x: the name is no UTF-8, and the library that writes weights takes no other; choose another"
    )
    config, given, problems = parse_flags(TrainConfig, ["-save_path", f"{odd}/x"])
    check_train(config, given, problems)
    assert told in problems
    with pytest.raises(UserError) as caught:
        export.main(["-model", "owner/model", "-save_path", f"{odd}/x"])
    assert str(caught.value) == told
