"""Predictions as a user gets them: one for each row, in order, scored and written."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import TIMEOUT, forked_commands, infer, infer_ok, start_until, talking
from tests.cli.tiny import json_lines, letter_rows, write_tsv
from tests.small_models import byte_tokenizer

REPORT_KEYS = ["rows", "scored_rows", "metrics", "invalid_outputs", "per_class", "confusion_matrix", "settings"]


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def outputs(folder: Path, name: str = "") -> list[str | Path]:
    """Flags of the three files that can be written."""
    return [
        *("-save_output", folder / f"{name}out.txt"),
        *("-save_label", folder / f"{name}label.txt"),
        *("-save_report", folder / f"{name}report.json"),
    ]


# ---- free text


def test_the_perplexity_of_references_is_that_of_the_validation(copy_run: Path, letters: Path, tmp_path: Path) -> None:
    best, report = copy_run / "run" / "best", tmp_path / "report.json"
    flags = ("-test_data", letters / "valid.tsv", "-batch_size", 16, "-metrics", "perplexity", "-save_report", report)
    infer_ok("-model", best, *flags)
    loss = read_json(best / "training_state.json")["validation"]["val_loss"]
    assert read_json(report)["metrics"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-9)
    files = ("-predictions", letters / "valid.tsv", "-references", letters / "valid.tsv", "-metrics", "perplexity")
    refused = infer("-score_only", *files)
    told = "-metrics perplexity: not with -score_only: it is computed by the model, which is not there"
    assert (refused.code, refused.errors) == (2, [told])


def test_predictions_references_and_report_of_best(copy_run: Path, letters: Path, tmp_path: Path) -> None:
    best = copy_run / "run" / "best"
    result = infer_ok("-model", best, "-test_data", letters / "test.tsv", *outputs(tmp_path))
    rows = letter_rows(30, 2)
    assert (tmp_path / "out.txt").read_text() == "".join(f"{target}\n" for _, target in rows)
    assert (tmp_path / "label.txt").read_text() == "".join(f"{target}\n" for _, target in rows)
    report = read_json(tmp_path / "report.json")
    assert list(report) == REPORT_KEYS
    assert (report["rows"], report["scored_rows"]) == (30, 30)
    assert list(report["metrics"]) == ["exact_match", "chrf", "bleu", "rouge1", "rouge2", "rougeL"]
    assert (report["metrics"]["exact_match"], report["metrics"]["chrf"]) == (1.0, 100.0)
    assert (report["invalid_outputs"], report["per_class"], report["confusion_matrix"]) == (0, [], None)
    settings = report["settings"]
    assert (settings["model"], settings["beam_size"], settings["max_predict_length"]) == ([str(best)], 1, 63)
    assert settings["metric_details"]["bleu"].startswith("nrefs:1|")
    assert result.err == ""
    for line in (
        "-test_data: 30 rows read, 30 kept",
        "task seq2seq; labels: free text",
        "references:  30",
        "predictions: 30",
        "predicted texts: 4 unique",
        f"predictions written to {tmp_path / 'out.txt'}",
        f"references written to {tmp_path / 'label.txt'}",
        f"report written to {tmp_path / 'report.json'}",
    ):
        assert line in result.out.splitlines()
    again = infer("-model", best, "-test_data", letters / "test.tsv", *outputs(tmp_path))
    assert again.code == 2
    assert again.errors == [
        f"-save_{flag} {tmp_path / name}: exists; -overwrite replaces it"
        for flag, name in (("output", "out.txt"), ("label", "label.txt"), ("report", "report.json"))
    ]


@pytest.fixture(scope="session")
def odd_rows(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """Unlabelled lines: empty ones, one longer than the model's 64 positions, blanks, a tab escape; CRLF at the end."""

    def make(folder: Path) -> None:
        lines = ["cab", "", "d" * 200, "b", "  ", "a\\tb", "", "dab\r"]
        (folder / "odd.txt").write_bytes("\n".join(lines).encode() + b"\n")

    return once("odd_rows", make) / "odd.txt"


@pytest.fixture(scope="session")
def odd_predictions(once: Callable[[str, Callable[[Path], None]], Path], copy_run: Path, odd_rows: Path) -> Path:
    """What a .ckpt makes of them, greedy, one process, batches of 3; `stdout.txt` holds what it printed."""

    def make(folder: Path) -> None:
        checkpoint = copy_run / "run" / "saved_checkpoints" / "last.ckpt"
        flags = ("-model", checkpoint, "-test_data", odd_rows, "-header", "false", "-batch_size", 3)
        (folder / "stdout.txt").write_text(infer_ok(*flags, *outputs(folder)).out, encoding="utf-8")

    return once("odd_predictions", make)


def test_every_line_gets_one_prediction_in_its_place(odd_predictions: Path) -> None:
    lines = (odd_predictions / "out.txt").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 9
    assert lines[-1] == ""
    assert [lines[row] for row in (0, 2, 3, 5, 7)] == ["c", "d", "b", "a", "d"]
    assert lines[1] == lines[6]
    assert (odd_predictions / "label.txt").read_text() == "\n" * 8


def test_unlabelled_rows_have_no_metrics(odd_predictions: Path) -> None:
    report = read_json(odd_predictions / "report.json")
    assert (report["rows"], report["scored_rows"], report["metrics"]) == (8, 0, {})
    out = (odd_predictions / "stdout.txt").read_text(encoding="utf-8")
    assert "-test_data: 8 rows without a reference\n" in out
    assert f"-test_data: 1 sources truncated, first at {report['settings']['test_data'][0]}:3\n" in out
    assert "metrics: none, no row has a reference" in out


def test_two_processes_write_the_same_bytes(
    odd_predictions: Path, copy_run: Path, odd_rows: Path, tmp_path: Path
) -> None:
    checkpoint = copy_run / "run" / "saved_checkpoints" / "last.ckpt"
    flags = ("-model", checkpoint, "-test_data", odd_rows, "-header", "false", "-batch_size", 3)
    result = infer_ok(*flags, "-cpu_processes", 2, *outputs(tmp_path))
    assert "8 rows predicted in " in result.out
    assert result.err == ""
    for name in ("out.txt", "label.txt"):
        assert (tmp_path / name).read_bytes() == (odd_predictions / name).read_bytes()
    reports = [read_json(folder / "report.json") for folder in (tmp_path, odd_predictions)]
    for report in reports:
        for name in ("save_output", "save_label", "save_report", "cpu_processes"):
            report["settings"].pop(name)
    assert reports[0] == reports[1]


def test_a_mistake_that_only_a_worker_sees_is_told_as_one(copy_run: Path, letters: Path, tmp_path: Path) -> None:
    """The weights are read by the workers only; both find the same NaN, and it is told once."""
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(copy_run / "run" / "best", tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.shared.weight"][5, 0] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    results = tmp_path / "results"
    results.mkdir()
    test_data = ("-test_data", letters / "test.tsv")
    told = infer("-model", model, *test_data, "-cpu_processes", 2, *outputs(results))
    assert told.code == 2
    assert told.err == (
        f"error: -model {model}: the weights are not finite: model.shared.weight holds NaN or infinity\n"
    )
    assert list(results.iterdir()) == []


def test_beams_and_a_folder_that_is_none_of_ours(copy_run: Path, tmp_path: Path) -> None:
    """A plain from_pretrained folder in bf16, columns by number, every second row, a template from the flags."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    AutoModelForSeq2SeqLM.from_pretrained(copy_run / "run" / "best").save_pretrained(tmp_path / "plain")
    AutoTokenizer.from_pretrained(copy_run / "run" / "best").save_pretrained(tmp_path / "plain")
    turned = [(target, "x", word) for word, target in letter_rows(40, 9)]
    data = write_tsv(tmp_path / "turned.tsv", turned, ())
    flags = ("-model", tmp_path / "plain", "-test_data", f"{data}:2", "-source_column", 3, "-target_column", 1)
    template = ("-input_template", "{% if source %}{{ source | lower }}{% endif %}")
    more = (*template, "-header", "false", "-beam_size", 4, "-float_precision", 16, "-no_repeat_ngram_size", 2)
    infer_ok(*flags, *more, *outputs(tmp_path))
    expected = "".join(f"{target}\n" for target, _, _ in turned[::2])
    assert (tmp_path / "out.txt").read_text() == expected
    assert (tmp_path / "label.txt").read_text() == expected


def test_newlines_in_predictions_and_references_are_escaped(tmp_path: Path) -> None:
    from prediction.output import plain_lines, write_lines

    texts = ["one\ntwo", "tab\there", "back\\slash", "\r", "", "한글"]
    write_lines(tmp_path / "escaped.txt", plain_lines(texts, escapes=True))
    assert (tmp_path / "escaped.txt").read_bytes().decode() == ("one\\ntwo\ntab\\there\nback\\\\slash\n\\r\n\n한글\n")
    write_lines(tmp_path / "flat.txt", plain_lines(texts, escapes=False))
    assert (tmp_path / "flat.txt").read_bytes().decode() == "one two\ntab here\nback\\slash\n \n\n한글\n"


def test_predictions_are_written_before_they_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring that fails (no memory for the metrics, a missing package) loses no prediction."""
    from config.flags.data import DataFlags, LengthFlags
    from config.flags.inference import InferenceConfig, OutputFlags
    from datamodules.splits import RowEncoder, prediction_split
    from generation.engines.base import Prediction
    from postprocessors.labels import LabelMap
    from prediction import run
    from prediction.run import Predicted, finish
    from prediction.setup import Ready
    from task_utils import get_task
    from utils.devices import Devices

    def failing(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(run, "score", failing)
    names = {name: str(tmp_path / name) for name in ("save_output", "save_label", "save_report")}
    data = DataFlags(test_data=(str(write_tsv(tmp_path / "rows.tsv", [("a", "no"), ("b", "yes")])),))
    task = get_task("seq2seq")
    encoder = RowEncoder(data, LengthFlags(), task, byte_tokenizer(tmp_path), 0, tmp_path)
    config = InferenceConfig(data=data, output=OutputFlags(**names))
    devices = Devices("cpu", 1, 1, "32-true")
    ready = Ready(config, (), task, LabelMap.parse("0=no,1=yes"), devices, encoder, "t5", 0)
    with pytest.raises(MemoryError):
        finish(Predicted(ready, prediction_split(encoder)[0], None, [Prediction("noo"), Prediction("yes")]))
    assert (tmp_path / "save_output").read_text() == "no\nyes\n"
    assert (tmp_path / "save_label").read_text() == "no\nyes\n"
    assert not (tmp_path / "save_report").exists()


def test_json_lines_hold_scores_lists_and_the_fields_of_the_input(copy_run: Path, tmp_path: Path) -> None:
    """Two models decode together; each record keeps its own fields, and a broken one its place."""
    records = [{"source": "abc", "target": "a", "year": 1998, "tags": ["x"]}, {"source": "b\n", "source_id": "7"}]
    lines = [*(json.dumps(record) for record in records), "{broken", "[1.50]"]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    run = copy_run / "run"
    flags = ("-model", run / "best", "-model", run / "saved_checkpoints" / "last.ckpt", "-keep_fields")
    more = ("-test_data", tmp_path / "in.jsonl", "-beam_size", 3, "-num_return", 3)
    infer_ok(*flags, *more, "-save_output", tmp_path / "out.jsonl", "-save_report", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "4 predictions, 1 with a reference" in page
    assert "<title>4: 1</title>" in page  # the source abc and its end token
    found = json_lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == [0, 1, 2, 3]
    assert [row["source"] for row in found] == ["abc", "b\n", "", ""]
    assert [row["reference"] for row in found] == ["a", None, None, None]
    assert [row["input"] for row in found] == [*records, None, [1.5]]
    assert [row["prediction"] for row in found[:2]] == ["a", "b"]
    for row in found:
        assert row["nbest"][0]["prediction"] == row["prediction"]
        scores = [output["score"] for output in row["nbest"]]
        assert scores == sorted(scores, reverse=True)
        assert (len(scores), scores[0]) == (3, row["score"])
        assert len({output["prediction"] for output in row["nbest"]}) == 3


def test_samples_depend_on_seed_and_row_only(copy_run: Path, odd_rows: Path, tmp_path: Path) -> None:
    """In TSV, whose cells are read back as they were; other batches and processes draw the same."""
    run = ("-model", copy_run / "run" / "best", "-test_data", odd_rows, "-header", "false")
    flags = (*run, "-do_sample", "-temperature", 3, "-top_k", 20, "-top_p", 0.9, "-max_predict_length", 6)
    infer_ok(*flags, "-save_output", tmp_path / "a.tsv")
    infer_ok(*flags, "-save_output", tmp_path / "b.tsv", "-batch_size", 3, "-cpu_processes", 2)
    infer_ok(*flags, "-save_output", tmp_path / "c.tsv", "-seed", 7)
    texts = [(tmp_path / name).read_text(encoding="utf-8") for name in ("a.tsv", "b.tsv", "c.tsv")]
    cells = [[line.split("\t") for line in text.splitlines()] for text in texts]
    assert cells[0][0] == ["id", "source", "reference", "prediction", "score"]
    assert [row[1] for row in cells[0][1:]] == ["cab", "", "d" * 200, "b", "  ", "a\\tb", "", "dab"]
    predictions = [[row[3] for row in rows[1:]] for rows in cells]
    assert predictions[0] == predictions[1] != predictions[2]
    assert all(float(row[4]) < 0 for row in cells[0][1:])


def test_standard_input_is_answered_line_by_line(copy_run: Path, tmp_path: Path) -> None:
    """Each line is answered when it comes; messages go to standard error; the end without a newline is a line."""
    words = ["inference.py", "-model", str(copy_run / "run" / "best"), "-test_data", "-"]
    with talking(words, tmp_path / "streams") as (process, lines, answers):
        for line, answer in ((b"cab\n", b"c\n"), (b"b\n", b"b\n")):
            lines.write(line)
            assert answers.readline() == answer
        lines.write(b"dab\n\nabc\nc")
        lines.close()
        out = answers.read().decode()
        code = forked_commands().wait(process, TIMEOUT)
    err = (tmp_path / "streams" / "stderr").read_text()
    assert code == 0, err
    rest = out.split("\n")
    assert [rest[0], *rest[2:]] == ["d", "a", "c", ""]  # an empty line is a row as well
    assert err.splitlines()[-1] == "6 lines predicted"


def test_both_engines_write_the_same_texts_and_scores(copy_run: Path, letters: Path, tmp_path: Path) -> None:
    """CTranslate2 converts once, beside the model; on the CPU and with early stopping its search is ours."""
    model = shutil.copytree(copy_run / "run" / "best", tmp_path / "model")
    flags = ("-model", model, "-test_data", letters / "test.tsv", "-beam_size", 3, "-early_stopping")
    infer_ok(*flags, "-num_return", 2, "-save_output", tmp_path / "torch.jsonl")
    more = ("-num_return", 2, "-engine", "ctranslate2", "-cpu_processes", 2)
    first = infer_ok(*flags, *more, "-save_output", tmp_path / "first.jsonl")
    assert "converting " in first.out
    assert "CTranslate2 (float32): 16 of the first 16 texts are those of -engine torch" in first.out.splitlines()
    again = infer_ok(*flags, *more, "-save_output", tmp_path / "again.jsonl")
    assert "converting " not in again.out
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "first.jsonl").read_bytes()
    rows = zip(json_lines(tmp_path / "torch.jsonl"), json_lines(tmp_path / "first.jsonl"), strict=True)
    for ours, theirs in rows:
        assert theirs["prediction"] == ours["prediction"]
        assert theirs["score"] == pytest.approx(ours["score"], abs=2e-5)
    refused = infer(*flags[:-1], "-engine", "ctranslate2", "-save_output", tmp_path / "no.txt")
    assert refused.code == 2
    assert "ask for that with -early_stopping" in refused.errors[0]


def test_an_arithmetic_that_this_processor_has_not_is_told_before_anything_is_made(
    copy_run: Path, letters: Path, tmp_path: Path
) -> None:
    """Rows are not encoded and the model is not converted for it."""
    from generation.engines.ctranslate2 import supported_compute_types

    if "float16" in supported_compute_types("cpu"):
        pytest.skip("this processor has float16")
    model = shutil.copytree(copy_run / "run" / "best", tmp_path / "model")
    flags = ("-model", model, "-test_data", letters / "test.tsv", "-gpus", 0, "-engine", "ctranslate2")
    told = infer(*flags, "-compute_type", "float16")
    assert (told.code, told.out) == (2, "")
    assert told.errors[0].startswith("-compute_type float16: not on this cpu, which has float32, int8")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_models_with_other_tokenizers_do_not_decode_together(copy_run: Path, letters: Path, tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    best = copy_run / "run" / "best"
    other = shutil.copytree(best, tmp_path / "other")
    ByT5Tokenizer(extra_ids=7).save_pretrained(other)
    told = infer("-model", best, "-model", other, "-test_data", letters / "test.tsv")
    assert told.code == 2
    assert told.errors == [
        f"-model {other}: its tokenizer is not that of {best}; models that decode together need the same"
    ]


# ---- labels


def test_label_task_comes_from_the_checkpoint(label_run: Path, tmp_path: Path) -> None:
    """Label map, templates and columns are the training's; the tables are printed."""
    checkpoint = label_run / "run" / "saved_checkpoints" / "last.ckpt"
    result = infer_ok("-model", checkpoint, "-test_data", label_run / "test.tsv", *outputs(tmp_path))
    labels = [line.split("\t")[1] for line in (label_run / "test.tsv").read_text().splitlines()[1:]]
    expected = "".join({"0": "부정.\n", "1": "긍정.\n"}[label] for label in labels)
    assert (tmp_path / "label.txt").read_text(encoding="utf-8") == expected
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == expected
    negative, positive = labels.count("0"), labels.count("1")
    report = read_json(tmp_path / "report.json")
    assert report["metrics"] == {"accuracy": 1.0, "accuracy_corrected": 1.0, "macro_f1": 1.0, "micro_f1": 1.0}
    assert report["invalid_outputs"] == 0
    assert report["per_class"] == [
        {"label": "부정.", "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": negative},
        {"label": "긍정.", "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": positive},
    ]
    assert report["confusion_matrix"] == {
        "labels": ["부정.", "긍정."],
        "columns": ["부정.", "긍정.", "(invalid)"],
        "rows": [[negative, 0, 0], [0, positive, 0]],
    }
    lines = result.out.splitlines()
    assert "invalid outputs (no label text): 0 of 40" in lines
    assert "confusion matrix, after correction (rows: reference, columns: prediction)" in lines
    assert ["부정.", "1.0000", "1.0000", "1.0000", str(negative)] in [line.split() for line in lines]
    assert ["부정.", str(negative), "0", "0"] in [line.split() for line in lines]
    assert ["macro", "1.0000", "1.0000", "1.0000", "40"] in [line.split() for line in lines]


# The letters model answers a, b, c, d, d to five rows of the labels 1, 2, 3, 4, 4.
# NEAR: a is 1 from each of aa, b and c, d is 1 from b, c and dd; the first declared wins: aa is right, b is wrong.
# FAR: within 1 there is aa for a alone; without a limit bbb would be right for b, and c and d get a wrong label.
NEAR, FAR = "1=aa, 2=b, 3=c, 4=dd", "2=bbb, 1=aa, 3=cccc, 4=dddd"
# label map, flags, answers, accuracy and corrected accuracy, confusion matrix (a column for each label, and invalid)
CORRECTIONS: dict[str, Any] = {
    "nearest": (NEAR, (), "aa b c b b", (0.4, 0.6), "10000 01000 00100 02000"),
    "distance 1": (FAR, ("-label_max_distance", 1), "aa b c d d", (0.0, 0.2), "00001 01000 00001 00002"),
    "distance 0": (NEAR, ("-label_max_distance", 0), "a b c d d", (0.4, 0.4), "00001 01000 00100 00002"),
    "none": (NEAR, ("-label_correction", "none"), "a b c d d", (0.4, 0.4), "00001 01000 00100 00002"),
}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_label_correction(copy_run: Path, tmp_path: Path, name: str) -> None:
    labels, flags, answers, accuracies, matrix = CORRECTIONS[name]
    data = write_tsv(tmp_path / "data.tsv", [("ab", "1"), ("b", "2"), ("ca", "3"), ("db", "4"), ("da", "4")])
    best = copy_run / "run" / "best"
    given = ("-test_data", data, "-label_map", labels.replace(" ", ""), *flags)
    result = infer_ok("-model", best, *given, *outputs(tmp_path))
    report = read_json(tmp_path / "report.json")
    texts = dict(label.split("=") for label in labels.split(", "))
    assert (tmp_path / "label.txt").read_text().split() == [texts[label] for label in "12344"]
    assert (tmp_path / "out.txt").read_text().split() == answers.split()
    assert (report["metrics"]["accuracy"], report["metrics"]["accuracy_corrected"]) == accuracies
    assert ["".join(map(str, row)) for row in report["confusion_matrix"]["rows"]] == matrix.split()
    invalid = 3 if labels == NEAR else 5
    assert report["invalid_outputs"] == invalid
    assert f"invalid outputs (no label text): {invalid} of 5" in result.out
    assert f"labels: {labels}" in result.out


def test_test_share_of_the_training_file(copy_run: Path, tmp_path: Path) -> None:
    """-train_data with -test_data_proportions predicts the rows that training set apart, and no others.

    The rows are pinned: a version that chose others would test on rows that an older run was trained on.
    """
    data = write_tsv(tmp_path / "rows.tsv", [("abcd"[row % 4] * (1 + row % 3), str(row)) for row in range(50)])
    shares = ("-train_data", data, "-valid_data_proportions", 0.2, "-test_data_proportions", 0.1)
    result = infer_ok("-model", copy_run / "run" / "best", *shares, *outputs(tmp_path))
    rows = [4, 32, 38, 43, 49]
    assert (tmp_path / "label.txt").read_text().split() == [str(row) for row in rows]
    assert (tmp_path / "out.txt").read_text().split() == ["abcd"[row % 4] for row in rows]
    assert "-train_data: 50 rows read, 50 kept" in result.out
    assert "5 of them are the test rows" in result.out
    assert read_json(tmp_path / "report.json")["rows"] == 5


def test_ctrl_c_ends_all_processes_and_writes_no_output(copy_run: Path, letters: Path, tmp_path: Path) -> None:
    flags = ["-model", copy_run / "run" / "best", "-cpu_processes", 2, *outputs(tmp_path)]
    for _ in range(10):
        flags += ["-test_data", letters / "train.tsv"]
    stopped = start_until(
        "inference.py", [str(flag) for flag in flags], "task seq2seq", signal.SIGINT, whole_group=True
    )
    assert stopped.code == 130
    assert stopped.out.splitlines()[-1] == "interrupted"
    assert "Traceback" not in stopped.out
    left = [path.name for path in tmp_path.iterdir()]
    assert left in ([], ["out.txt.parts"])  # of what a process had finished before the signal came
    assert bool(left) == any((tmp_path / "out.txt.parts").glob("part-*"))
