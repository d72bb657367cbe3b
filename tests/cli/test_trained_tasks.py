"""Tasks trained one epoch, and scored, on a few rows in the layout in which their corpus is published.

Those with a recipe of their own are trained by test_run_scripts.py, `retrieval` by test_retrieval.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metrics.registry import METRICS
from postprocessors.base import said
from task_utils import get_task, task_names
from tests.cli.command import train_ok
from tests.cli.tiny import T5, flag_list, write_config

RECIPES = {"klue-nli", "klue-ner", "klue-dp", "klue-mrc", "korquad-v1", "nsmc-prompted", "seq2seq"}
PLAIN = {"jsonlines", "hfdataset", "nsmc-naive", "translation", "squad"}  # a recipe's task or file, or one of docs/
ROWS = 9


def table(header: str, *rows: str) -> str:
    return "\n".join([header, *(rows[number % len(rows)] for number in range(ROWS))]) + "\n"


def array(*objects: dict[str, Any]) -> str:
    return json.dumps([objects[number % len(objects)] for number in range(ROWS)], ensure_ascii=False, indent=1)


STS = {"sentence1": "방이 넓어요.", "sentence2": "방이 큽니다."}
ENTITY = {"start_idx": 0, "end_idx": 3, "type": "ORG"}
FILES: dict[str, tuple[str, str]] = {
    "klue-ynat": (
        "json",
        array(
            {"guid": "y1", "title": '새 위성 "성공"…연구진 환호', "label": "IT과학", "date": "2016.01.01."},
            {"guid": "y2", "title": "결승 진출", "label": "스포츠", "date": "2016.01.02."},
        ),
    ),
    "klue-sts": (
        "json",
        array(
            {"guid": "s1", **STS, "labels": {"label": 4.3, "real-label": 4.285714285714286, "binary-label": 1}},
            {"guid": "s2", **STS, "labels": {"label": 0.0, "real-label": 0.0, "binary-label": 0}},
        ),
    ),
    "klue-re": (
        "json",
        array(
            {
                "guid": "r1",
                "sentence": "나래전자는 서울에 있다.",
                "subject_entity": {"word": "나래전자", **ENTITY},
                "object_entity": {"word": "서울", **ENTITY, "type": "LOC"},
                "label": "org:place_of_headquarters",
            },
        ),
    ),
    "kornli": (
        "tsv",
        table("sentence1\tsentence2\tgold_label", '그가 말했다, "엄마.\t비가 온다.\tneutral', "가다\t오다\tentailment"),
    ),
    "paws-x-kor": ("tsv", table("id\tsentence1\tsentence2\tlabel", "1\t가 나\t나 가\t1", '2\t"가\t나\t0')),
    "korsts": (
        "tsv",
        table(
            "genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2",
            'm\tf\t2012\t1\t3.25\t"가\t나',
            "m\tf\t1\t2\t5\ta\tb",
        ),
    ),
    "keyword-sentiment": ("tsv", table("review\tkeyword\tsentiment", "국물이 짜요\t맛\t부정", "싸요\t값\t매우긍정")),
    "multi-label": ("tsv", table("text\tlabels", "좋아!\tsurprise, joy", "무섭다\t공포")),
    "summarisation": ("tsv", "긴 글이 여기 있다\t긴 글\n" * ROWS),
}


def test_every_task_is_trained_by_a_test() -> None:
    assert set(task_names()) == {*FILES, *RECIPES, *PLAIN, "retrieval"}


@pytest.mark.parametrize("name", FILES)
def test_a_task_reads_its_corpus_as_it_is_published(name: str, tmp_path: Path) -> None:
    ending, content = FILES[name]
    file = tmp_path / f"rows.{ending}"
    file.write_text(content, encoding="utf-8")
    flags = {
        "task": name,
        **dict.fromkeys(("train_data", "valid_data", "test_data"), file),
        "config_path": write_config(tmp_path / "config.json", T5),
        "save_path": tmp_path / "run",
        "max_epoch": 1,
    }
    out = train_ok(*flag_list(flags)).out
    assert f"{ROWS} training rows, {ROWS} validation rows, {ROWS} test rows\n" in out
    assert f"task {name}; {said(get_task(name).postprocessor)}\n" in out
    assert "malformed" not in out
    report = json.loads((tmp_path / "run" / "test_report.json").read_text(encoding="utf-8"))
    assert report["scored_rows"] == ROWS
    assert [metric for metric in report["metrics"] if METRICS[metric].takes != "probabilities"] == [
        metric for metric in get_task(name).metrics if METRICS[metric].takes != "probabilities"
    ]
