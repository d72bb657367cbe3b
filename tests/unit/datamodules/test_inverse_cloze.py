"""-task inverse-cloze: sentences of raw text ask for their passages, and what cannot is counted with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.readers.inverse_cloze import KEPT, LONGEST, SINGLE, document_rows, passages
from datamodules.readers.read import ReadOptions, RowReport, read_rows
from task_utils import get_task

FIRST = "정기 회의는 매달 3일에 2층 회의실에서 열립니다."
SECOND = '늦으면 "다음에 오세요." 하고 돌려보내니, 3.5분쯤 먼저 오세요!'
THIRD = "The minutes are sent to everybody afterwards"


def test_sentences_end_at_their_marks_and_at_lines() -> None:
    """Not at a dot within a number; a closing mark belongs to its sentence."""
    found = next(passages(f" {FIRST} {SECOND}\n{THIRD}"))
    assert found == [FIRST, '늦으면 "다음에 오세요."', "하고 돌려보내니, 3.5분쯤 먼저 오세요!", THIRD]


def test_a_sentence_asks_for_the_rest_of_its_passage_and_seldom_for_all_of_it() -> None:
    document = f"{FIRST} {THIRD}. 짧다."
    kept, asked = 0, set()
    for line in range(2000):
        (row,) = document_rows(line, document)
        assert row == next(iter(document_rows(line, document)))
        query, passage = row.values["query"], row.values["passage"]
        asked.add(query)
        if passage == document:
            kept += 1
        else:
            assert passage == document.replace(str(query), "").replace("  ", " ").strip()
    assert asked == {FIRST, f"{THIRD}."}  # never the short one
    assert kept / 2000 == pytest.approx(KEPT, abs=0.02)


def test_long_documents_are_several_passages() -> None:
    sentences = [f"이것은 번호가 {number}인 문장이며 뜻은 없습니다." for number in range(100)]
    found = list(passages(" ".join(sentences)))
    assert [sentence for part in found for sentence in part] == sentences
    assert all(len(" ".join(part)) <= LONGEST for part in found)
    assert len(found) == 3
    assert [len(part) for part in passages("가" * 3000 + f". {FIRST}")] == [1, 1]


def test_files_of_each_kind_give_the_same_rows_and_name_what_they_leave_out(tmp_path: Path) -> None:
    documents = [f"{FIRST} {SECOND}", THIRD, "", f"{SECOND} {THIRD}."]
    (tmp_path / "a.txt").write_text("\n".join(documents), encoding="utf-8")
    lines = [json.dumps({"text": text}) for text in documents]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "[]", "{", '{"text": 3}', "{}"]), encoding="utf-8")
    pq.write_table(pa.table({"text": documents}), tmp_path / "a.parquet")
    found = []
    for ending in ("txt", "jsonl", "parquet"):
        report, rows = RowReport(), []
        path = str(tmp_path / f"a.{ending}")
        for chunk in read_rows([path], get_task("inverse-cloze"), frozenset(), ReadOptions(), report):
            columns = (chunk.columns[name].to_pylist() for name in ("source", "target"))
            rows += zip(chunk.lines.tolist(), *columns, strict=True)
        found.append(rows)
        wanted = {"empty line": (1, [f"{path}:3"]), SINGLE: (1, [f"{path}:2"])}
        if ending == "jsonl":
            wrong = ("not a JSON object", "broken JSON", "value is not text", "missing column")
            wanted |= {reason: (1, [f"{path}:{line}"]) for line, reason in enumerate(wrong, 5)}
        assert report.malformed == wanted
    assert [line for line, _, _ in found[0]] == [1, 4]
    assert found[0] == found[1] == found[2]
