"""inference.py -score_only: files of predictions are scored without a model, in every form that we write."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from config.flags.inference import InferenceConfig
from config.parser import parse_flags
from generation.engines.base import Prediction
from metrics.uncertainty.conformal import AnswerRule, Silence
from prediction.checks import with_metrics
from prediction.output import OutputForm, OutputRow, plain_lines, write_lines, write_rows
from prediction.score_files import check_scoring, score_files
from task_utils import get_task
from utils.errors import UserError

SOURCES = ["가\t나", "다", "라", "마"]
ANSWERS = ["positive", "negative", "negative", "posi\ntive"]
VALUES = ["1", "1", "", "1"]  # of the data; the third row has no reference


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: references as data and as plain lines, and the predictions in all forms."""
    monkeypatch.chdir(tmp_path)
    cells = [text.replace("\t", "\\t") for text in SOURCES]
    lines = ["document\tlabel", *map("\t".join, zip(cells, VALUES, strict=True))]
    Path("data.tsv").write_text("\n".join(lines) + "\n")
    write_lines(Path("plain.txt"), plain_lines(["positive", "positive", "", "positive"], escapes=True))
    for name in ("out.jsonl", "out.tsv", "out.txt"):
        rows = (
            OutputRow(number, SOURCES[number], None, text, Prediction(text, -1.0))
            for number, text in enumerate(ANSWERS)
        )
        write_rows(Path(name), rows, OutputForm())
    return tmp_path


def problems_of(*flags: str) -> list[str]:
    config, given, problems = parse_flags(InferenceConfig, ["-score_only", *flags])
    check_scoring(config, given, problems)
    return problems


def scored(*flags: str) -> None:
    config, given, problems = parse_flags(InferenceConfig, ["-score_only", *flags])
    check_scoring(config, given, problems)
    assert problems == []
    score_files(config, Path("cache"))


@pytest.mark.parametrize("predictions", ["out.jsonl", "out.tsv", "out.txt"])
@pytest.mark.parametrize("references", ["data.tsv", "plain.txt"])
def test_every_form_gives_the_same_figures(
    predictions: str, references: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["-predictions", predictions, "-references", references, "-task", "nsmc-naive"]
    scored(*flags, "-metrics", "exact_match, weighted_f1", "-save_report", "new/report.json")
    report = json.loads(Path("new/report.json").read_text())
    assert (report["rows"], report["scored_rows"], report["invalid_outputs"]) == (4, 3, 1)
    # One row is right, and the one with a line break is corrected; weighted_f1 is of the raw texts.
    assert report["metrics"] == pytest.approx(
        {
            "accuracy": 1 / 3,
            "accuracy_corrected": 2 / 3,
            "macro_f1": 2 / 5,
            "micro_f1": 2 / 3,
            "exact_match": 1 / 3,
            "weighted_f1": 1 / 2,
        }
    )
    told = capsys.readouterr().out
    assert "task nsmc-naive; labels: 0=negative, 1=positive\n" in told
    assert "1 row without a reference: left out of the metrics\n" in told
    assert told.endswith("report written to new/report.json\n")


@pytest.mark.parametrize("name", ["silent.jsonl", "silent.tsv"])
def test_a_row_without_an_answer_counts_with_its_likeliest_label(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As in the report of the prediction itself; corrected as an empty text it would be `negative`."""
    shares = [(0.1, 0.9), (0.4, 0.6), (0.7, 0.3), (0.85, 0.15)]
    silence, labels = Silence(answers=AnswerRule(0.1, 50, 0.8)), ("negative", "positive")
    found = (Prediction("", -1.0, label_probabilities=row) for row in shares)
    rows = (
        OutputRow(number, "", None, "" if silence.abstains(one.label_probabilities) else answer, one)
        for number, (one, answer) in enumerate(zip(found, ("positive", "", "", "negative"), strict=True))
    )
    write_rows(Path(name), rows, OutputForm(labels=labels, silence=silence))
    flags = ["-predictions", name, "-references", "data.tsv", "-task", "nsmc-naive", "-save_report"]
    scored(*flags, "report.json")
    report = json.loads(Path("report.json").read_text())
    assert (report["metrics"]["accuracy"], report["invalid_outputs"]) == (2 / 3, 0)
    assert report["abstain"] == {"answered": 2, "answered_share": 0.5, "error_rate": 0.5}
    told = "\nanswered: 2 of 4 rows (0.5000); wrong among those with a reference: 0.5000\n"
    assert told in capsys.readouterr().out
    scored(*flags, "page.html")
    assert "<span>answered rows</span><b>0.500</b>" in Path("page.html").read_text()
    Path(name).write_text(Path(name).read_text().replace("label_probabilities", "other"))
    with pytest.raises(UserError, match=rf"^-predictions {name}:\d: "):
        scored("-predictions", name, "-references", "data.tsv", "-task", "nsmc-naive")


def test_a_page_and_the_endings_of_reports() -> None:
    flags = ["-predictions", "out.jsonl", "-references", "data.tsv", "-task", "nsmc-naive", "-save_report"]
    scored(*flags, "page.html", "-confidence", "0.9")
    page = Path("page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "4 predictions, 3 with a reference" in page
    assert "<dt>source</dt><dd><bdi>다</bdi></dd><dt>reference</dt><dd><bdi>positive</bdi></dd>" in page
    assert "at 90 %" in page
    assert problems_of(*flags, "page.html") == ["-save_report page.html: exists; -overwrite replaces it"]
    assert problems_of(*flags, "page.pdf") == [
        "-save_report page.pdf: no .pdf report is written; give .json, or .html for a page with charts"
    ]
    assert problems_of(*flags, "new.json", "-report_images") == [
        "-report_images: the charts are those of a page; give -save_report a file that ends in .html"
    ]
    Path("page_images").mkdir()
    Path("page_images/mine.png").touch()
    assert problems_of(*flags, "page.html", "-report_images")[1:] == [
        "-report_images: page_images is not empty; -overwrite replaces the pictures in it"
    ]


def test_groups_are_those_of_the_data_file() -> None:
    flags = ["-predictions", "out.tsv", "-task", "nsmc-naive", "-group_by", "label"]
    scored(*flags, "-references", "data.tsv", "-save_report", "report.json")
    groups = json.loads(Path("report.json").read_text())["groups"]
    assert {name: group["rows"] for name, group in groups.items()} == {"1": 3, "": 0}
    assert groups["1"]["metrics"]["accuracy"] == 1 / 3
    for other, told in (
        ("plain.txt", "-group_by: plain lines have no columns; give -references the data file, not plain.txt"),
        ("data.tsv", "-group_by pair: no such column in the first row; columns there are: document, label"),
    ):
        with pytest.raises(UserError) as refused:
            scored(*flags[:-1], "pair", "-references", other)
        assert refused.value.problems == (told,)


def test_examples_have_sources_where_the_references_do(capsys: pytest.CaptureFixture[str]) -> None:
    Path("pairs.tsv").write_text("a b\tc d\n")
    Path("out.txt").write_text("c e\n")
    scored("-predictions", "out.txt", "-references", "pairs.tsv")
    assert "  source      a b\n  reference   c d\n  prediction  c e\n" in capsys.readouterr().out
    Path("lines.txt").write_text("c d\n")
    scored("-predictions", "out.txt", "-references", "lines.txt")
    assert "\n\n  reference   c d\n  prediction  c e\n" in capsys.readouterr().out


def test_intervals_and_the_comparison_with_a_second_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("gold.txt").write_text("positive\nnegative\n" * 50)
    Path("a.txt").write_text("positive\n" * 100)
    Path("b.txt").write_text("positive\nnegative\n" * 45 + "positive\npositive\n" * 5)
    flags = ["-predictions", "a.txt", "-predictions", "b.txt", "-references", "gold.txt", "-task", "nsmc-naive"]
    assert problems_of(*flags) == [
        "-predictions: two files are compared at a level: give -confidence, for example 0.95"
    ]
    scored(*flags, "-confidence", "0.9", "-save_report", "report.json")
    told = capsys.readouterr().out
    found = json.loads(Path("report.json").read_text())["confidence"]
    assert (found["level"], found["draws"]) == (0.9, 1000)
    low, high = found["intervals"]["accuracy"]
    assert (low, high) == (pytest.approx(0.5 - 1.645 * 0.05, abs=0.015), pytest.approx(0.5 + 1.645 * 0.05, abs=0.015))
    assert "90 % intervals (bootstrap, 1,000 draws of 100 rows)\n" in told
    assert f"\n  accuracy            0.5000  {low:.4f}  {high:.4f}\n" in told
    better = found["differences"]["accuracy"]
    assert (better["difference"], better["p_value"]) == (pytest.approx(0.45), pytest.approx(1 / 1001))
    assert re.search(r"\n  accuracy            0\.5000  0\.9500      0\.4500  0\.3\d+  0\.5\d+  0\.0010\n", told)


def test_other_numbers_of_rows_are_refused() -> None:
    Path("short.txt").write_text("positive\n")
    with pytest.raises(UserError) as refused:
        scored("-predictions", "short.txt", "-references", "data.tsv", "-task", "nsmc-naive")
    assert refused.value.problems == (
        "-predictions short.txt has 1 row, but -references data.tsv has 4 rows; give the references of the rows that"
        " were predicted",
    )


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "a.jsonl",
            '{"prediction": "a"}\n{"text": 1}\n',
            "a.jsonl:2: no JSON object with a text 'prediction'",
        ),
        ("a.jsonl", "[[[\n", "a.jsonl:1: no JSON object with a text 'prediction', as -save_output writes it"),
        ("a.tsv", "a\tb\n", "a.tsv: a .tsv as -save_output writes it has a column 'prediction'; there are: a, b; give"),
        ("a.tsv", "id\tprediction\n1\n", "a.tsv:2: 1 cell, but the header has 2"),
        ("a.txt", b"a\n\xff\n", "a.txt:2: invalid UTF-8"),
    ],
)
def test_files_of_another_form_are_refused(name: str, content: str | bytes, told: str) -> None:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refused:
        scored("-predictions", name, "-references", "plain.txt")
    assert refused.value.problems[0].startswith(f"-predictions {told}")


def test_references_that_do_not_go_with_the_task() -> None:
    Path("labels.txt").write_text("positive\ngood\n")
    with pytest.raises(UserError) as refused:
        scored("-predictions", "out.txt", "-references", "labels.txt", "-task", "nsmc-naive")
    assert refused.value.problems == (
        "-references labels.txt:2: 'good' is no label of the task; labels: 0=negative, 1=positive",
    )
    with pytest.raises(
        UserError, match=r"^-references plain\.txt:1: reference is not a JSON list of answers: 'positive'$"
    ):
        scored("-predictions", "out.txt", "-references", "plain.txt", "-task", "korquad-v1")


def test_flags_that_are_about_predicting_are_refused() -> None:
    Path("there.json").write_text("{}")
    assert problems_of() == ["-predictions is required", "-references is required"]
    flags = ["-model", "m", "-predictions", "no.txt", "-references", "no.tsv", "-beam_size", "2", "-gpus", "0"]
    assert problems_of(*flags, "-save_report", "there.json", "-metrics", "accurcy,uas") == [
        "-beam_size, -gpus: not with -score_only: nothing is predicted",
        "-score_only: not with -model m: files are scored, and nothing is predicted",
        "-predictions no.txt: no such file",
        "-references: no.tsv: no such file",
        "-save_report there.json: exists; -overwrite replaces it",
        *[problem for problem in problems_of(*flags, "-metrics", "accurcy") if problem.startswith("-metrics")],
    ]
    for name in ("out.txt", "out"):
        Path(name).write_text("positive\n")
        same = problems_of("-predictions", name, "-references", "plain.txt", "-save_report", name, "-overwrite")
        assert same == [f"-save_report {name}: the same file as -predictions"]
    _, _, problems = parse_flags(InferenceConfig, [])
    assert [problem.partition(":")[0] for problem in problems] == ["-model is required"]


def test_metrics_are_added_to_those_of_the_task() -> None:
    task = with_metrics(get_task("translation"), "wer , bleu,,")
    assert task.metrics == (*get_task("translation").metrics, "wer")
    with pytest.raises(UserError) as refused:
        with_metrics(task, "accuracy")
    (problem,) = refused.value.problems
    assert problem.startswith(
        "-metrics accuracy: is of labels, and the outputs of task translation are texts; of these there are: exact"
    )
    with pytest.raises(
        UserError, match=r"^-metrics bleau: no such metric \(did you mean bleu\?\); known: exact_match,"
    ):
        with_metrics(task, "bleau")


def test_a_metric_whose_package_is_missing_is_told_before_files_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metrics.registry.find_spec", {}.get)
    flags = ["-predictions", "out.txt", "-references", "plain.txt", "-metrics", "bleu_ko_mecab"]
    assert problems_of(*flags) == [
        "metric 'bleu_ko_mecab' needs mecab_ko, which is not installed: pip install 'sacrebleu[ko]'"
    ]
