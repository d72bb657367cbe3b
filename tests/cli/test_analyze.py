"""`analyze.py` as a command: one small model for both steps, kills between and in them, and mistakes."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest

from models.loading import from_config
from tests.cli.command import ROOT, Result, listing, run, start_until
from tests.cli.tiny import T5, json_lines
from tests.small_models import byte_tokenizer

KEYWORD_TASK = """source_column: text
target_column: labels
label_separator: ", "
label_map: {p: 가격, d: 배송, s: 맛}
metrics: [samples_f1, micro_f1]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model, the task of keywords, and 20 reviews, half of them labelled."""
    folder = tmp_path_factory.mktemp("analyze")
    from_config({**T5, "eos_token_id": 1}, 3).save_pretrained(folder / "model")
    byte_tokenizer(folder / "model")
    (folder / "keywords.yaml").write_text(KEYWORD_TASK, encoding="utf-8")
    draw = random.Random(5)
    rows = []
    for number in range(20):
        row = {"text": " ".join(draw.choices(["싸다", "늦다", "맛", "<b>&", "좋아요"], k=draw.randint(1, 4)))}
        rows.append(row | ({"labels": "맛, 가격", "sentiments": "긍정, 매우부정"} if number % 2 else {}))
    lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    (folder / "reviews.jsonl").write_text(lines, encoding="utf-8")
    return folder


def command(folder: Path, output: Path, *more: str | Path | int) -> list[str]:
    flags = ("-keyword_model", folder / "model", "-keyword_task", folder / "keywords.yaml")
    flags += ("-sentiment_model", folder / "model", "-sentiment_task", "keyword-sentiment", "-gpus", 0)
    flags += ("-data", folder / "reviews.jsonl", "-thresholds", folder / "reviews.jsonl", "-batch_size", 4)
    return [str(flag) for flag in (*flags, "-save_output", output, *more)]


def analyze(*flags: str) -> Result:
    return run("python", "analyze.py", *flags)


def test_a_killed_analysis_goes_on_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    files = ("-save_report", tmp_path / "report.json", "-save_page", tmp_path / "page.html", "-page_examples", 5)
    whole = analyze(*command(folder, tmp_path / "whole.jsonl", *files))
    assert whole.code == 0, whole.out + whole.err
    rows = json_lines(tmp_path / "whole.jsonl")
    reviews = json_lines(folder / "reviews.jsonl")
    assert [(row["id"], row["review"]) for row in rows] == [(n, review["text"]) for n, review in enumerate(reviews)]
    keywords = [keyword for row in rows for keyword in row["keywords"]]
    assert len(keywords) > 0
    for row in rows:
        for keyword in row["keywords"]:
            assert [word["word"] for word in keyword["words"]] == row["review"].split()  # nothing of the prompt
            strongest = max(keyword["words"], key=lambda word: word["loss"])
            assert keyword["highlight"] == strongest["word"]
            assert sum(keyword["sentiment_probabilities"].values()) == pytest.approx(1, abs=1e-4)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [row["label"] for row in report["keywords"]["per_class"]] == ["가격", "배송", "맛"]
    assert report["keywords"]["scored_rows"] == report["pairs"]["reviews"] == 10
    assert report["keywords"]["settings"]["label_thresholds"]["배송"] == 0.5
    assert (report["sentiments"]["rows"], report["pairs"]["support"]) == (len(keywords), 20)
    assert "-thresholds: nothing to fit, so 0.5, for 배송 (no row has it)\n" in whole.out
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (page.count("<article>"), "<b>" in page, "&lt;b&gt;&amp;" in page) == (5, False, True)

    output = tmp_path / "killed.jsonl"
    stopped = start_until("analyze.py", command(folder, output), "keywords found: ", signal.SIGKILL)
    assert stopped.code == -signal.SIGKILL, stopped.out
    assert not output.exists()
    last = analyze(*command(folder, output))
    assert last.code == 0, last.out + last.err
    assert "20 of 20 rows were finished before" in last.out
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path for path in listing(tmp_path) if "killed" in path) == ["killed.jsonl"]
    again = analyze(*command(folder, output))
    assert (again.code, again.errors) == (2, [f"-save_output {output}: exists; -overwrite replaces it"])


def test_mistakes_are_told_at_once(folder: Path, tmp_path: Path) -> None:
    reviews, page = folder / "reviews.jsonl", folder / "model" / "config.json"
    wrong = analyze(
        *("-keyword_model", "missing/best", "-sentiment_model", str(folder / "model"), "-data", "none.jsonl"),
        *("-save_output", str(reviews), "-thresholds", str(reviews), "-save_page", str(page), "-batch_size", "0"),
    )
    assert wrong.code == 2
    assert wrong.errors == [
        "-batch_size 0: at least 1 expected",
        "-keyword_model missing/best: no such folder; a hub name is NAME or OWNER/NAME",
        "-data: none.jsonl: no such file",
        f"-save_output {reviews}: the same file as -thresholds",
        f"-save_page {page}: is a file of -sentiment_model {folder / 'model'}; choose another place",
        f"-save_page {page}: give a file that ends in .html",
    ]
    parts = tmp_path / "o.jsonl.sentiments.parts"
    assert analyze(*command(folder, tmp_path / "o.jsonl", "-save_report", parts / "report.json")).errors == [
        f"-save_report {parts}/report.json: {parts} is for the finished parts of -save_output; choose another place"
    ]
    flags = command(folder, tmp_path / "o.jsonl", "-keyword_task", "nsmc-naive", "-review_column", "none")
    assert analyze(*flags).errors == [
        f"-keyword_model {folder / 'model'}: task nsmc-naive is no task of several labels a row; train it with -task"
        " multi-label, or with -label_map and -label_separator"
    ]
    flags = command(folder, tmp_path / "o.jsonl", "-review_column", "none")
    assert analyze(*flags).errors == [f"{reviews}: no column 'none'; columns there are: 1=text, 2=labels, 3=sentiments"]
    assert listing(tmp_path) == {}
    assert not (ROOT / "none.jsonl").exists()
