"""Label tasks on the command line: the three ways to predict, calibration, several labels a row, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import infer, infer_ok, train_ok
from tests.cli.tiny import BART, flag_list, letter_rows, write_config, write_tsv


def report(
    folder: Path, *flags: str | Path | int | float, name: str = "out.txt"
) -> tuple[dict[str, Any], list[str], list[str]]:
    """The report, the predictions and the printed lines of `inference.py`."""
    result = infer_ok(*flags, "-save_output", folder / name, "-save_report", folder / "report.json")
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return content, (folder / name).read_text(encoding="utf-8").splitlines(), result.out.splitlines()


def test_constrained_outputs_are_labels_where_generated_ones_are_not(copy_run: Path, tmp_path: Path) -> None:
    """The letters model writes the first letter of a word, which is no label; one label begins another."""
    data = write_tsv(tmp_path / "data.tsv", [("ab", "1"), ("b", "2"), ("ca", "3"), ("db", "4")])
    labels = ("-label_map", "1=ab,2=bb,3=cb,4=db,5=abb")
    flags = ("-model", copy_run / "run" / "best", "-test_data", data, *labels, "-label_decoding", "constrained")
    found, predictions, lines = report(
        tmp_path, *flags, "-beam_size", 5, "-metrics", "weighted_f1", "-confidence", 0.95
    )
    assert predictions == ["ab", "bb", "cb", "db"]
    assert found["metrics"]["weighted_f1"] == 1.0
    assert found["confidence"]["intervals"]["weighted_f1"] == [1.0, 1.0]
    assert "95 % intervals (bootstrap, 1,000 draws of 4 rows)" in lines
    assert found["invalid_outputs"] == 0
    assert found["metrics"]["accuracy"] == 1.0
    assert "predicted labels: 4 unique" in lines


def test_scores_prior_and_temperature(label_run: Path, tmp_path: Path) -> None:
    """The temperature is fitted on one file and reported with the prior; the figures are printed and in the report."""
    rows = [("abc", "1"), ("cab", "0"), ("ba", "1"), ("d", "0"), ("dd", "1")]  # the last one is wrong on purpose
    valid = write_tsv(tmp_path / "valid.tsv", [*rows, ("c", "")], ("document", "label"))
    best = label_run / "run" / "best"
    flags = (
        "-model",
        best,
        "-test_data",
        label_run / "test.tsv",
        "-label_decoding",
        "score",
        "-calibrate",
        valid,
        "-highlight",
    )
    found, output, lines = report(tmp_path, *flags, "-label_prior", "domain", "-float_precision", 32, name="out.jsonl")
    records = [json.loads(line) for line in output]
    predictions = [record["prediction"] for record in records]
    for record in records:
        probabilities = record["label_probabilities"]
        assert list(probabilities) == ["부정.", "긍정."]
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert record["score"] < 0
        (word,) = record["words"]  # the template's own word is left out
        assert record["source"] == f"평가: {word['word']}"
        assert record["highlight"] == word["word"]
    labels = [line.split("\t")[1] for line in (label_run / "test.tsv").read_text().splitlines()[1:]]
    assert predictions == [{"0": "부정.", "1": "긍정."}[label] for label in labels]
    assert found["metrics"]["accuracy"] == 1.0
    for name, highest in (("expected_calibration_error", 1), ("brier_score", 2), ("negative_log_likelihood", 10)):
        assert 0 < found["metrics"][name] < highest
        assert [line.split()[1] for line in lines if line.split()[:1] == [name]] == [f"{found['metrics'][name]:.4f}"]
    calibration = found["settings"]["label_calibration"]
    assert sum(calibration["prior"].values()) == pytest.approx(1)
    assert f"-calibrate: temperature {calibration['temperature']:.6g}, fitted on 5 labelled rows" in lines
    assert calibration["temperature"] > 1.0  # four of five are right, and the model was sure of all
    assert "-label_prior domain: mean probabilities of 40 rows of the input: 부정." in "\n".join(lines)


def test_several_labels_a_row_from_training_to_the_report(tmp_path: Path) -> None:
    """Which of the letters a, b and c does a word hold? The data name them in any order, the model in that of the map.

    Trained for seconds it is far from perfect; constrained, it writes nothing that is no set of labels.
    """

    def holds(word: str) -> str:
        """Ids of the labels, the last declared first."""
        return "|".join(str("abc".index(letter)) for letter in sorted(set(word) - {"d"}, reverse=True))

    rows = [(word, holds(word)) for word, _ in letter_rows(400, 11) if holds(word)]
    train, test = write_tsv(tmp_path / "train.tsv", rows[:300]), write_tsv(tmp_path / "test.tsv", rows[300:])
    flags = {
        "train_data": train,
        "label_map": "0=A,1=B,2=AC",
        "label_separator": " | ",
        "config_path": write_config(tmp_path / "bart.json", BART),
        "save_path": tmp_path / "run",
        "batch_size": 16,
        "max_epoch": 4,
        "learning_rate": 4e-3,
        "lr_scheduler": "linear",
        "gpus": 0,
    }
    train_ok(*flag_list(flags))
    found, predictions, lines = report(
        tmp_path, "-model", tmp_path / "run" / "last", "-test_data", test, "-label_decoding", "constrained"
    )
    names = {"0": "A", "1": "B", "2": "AC"}
    references = [" | ".join(names[label] for label in sorted(value.split("|"))) for _, value in rows[300:]]
    assert "task seq2seq; labels: 0=A, 1=B, 2=AC; a row may have several, joined by ' | '" in lines
    assert found["invalid_outputs"] == 0
    assert {part for text in predictions for part in text.split(" | ")} <= {"A", "B", "AC"}
    right = sum(map(str.__eq__, references, predictions)) / len(references)
    assert found["metrics"]["accuracy"] == found["metrics"]["accuracy_corrected"] == right
    assert found["metrics"]["micro_f1"] > 0.6
    assert found["confusion_matrix"] is None
    assert [row["label"] for row in found["per_class"]] == ["A", "B", "AC"]


def test_labels_are_missing_from_the_checkpoint_s_task(copy_run: Path, letters: Path) -> None:
    data = ("-test_data", letters / "test.tsv")
    result = infer("-model", copy_run / "run" / "best", *data, "-label_decoding", "constrained")
    assert (result.code, result.errors) == (
        2,
        [
            "-label_decoding constrained needs labels, or numbers with bounds: give -label_map, or a -task with a label"
            " map"
        ],
    )


def test_rows_that_are_not_sure_enough_stay_unanswered(label_run: Path, tmp_path: Path) -> None:
    """Sets and silence in the rows, the lines and the report; the same finished parts serve other levels."""
    flags = ("-model", label_run / "run" / "best", "-test_data", label_run / "test.tsv", "-label_decoding", "score")
    flags += ("-calibrate", label_run / "train.tsv", "-label_sets", 0.95)
    found, output, lines = report(tmp_path, *flags, "-abstain", 0.4, name="out.jsonl")
    records = [json.loads(line) for line in output]
    assert len(records) == 40
    sets, silence = found["label_sets"], found["abstain"]
    for record in records:
        shares = record["label_probabilities"]
        assert record["label_set"] == [text for text, share in shares.items() if share >= sets["least_probability"]]
        assert record["abstained"] == (max(shares.values()) <= silence["above_probability"])
        assert record["prediction"] == ("" if record["abstained"] else max(shares, key=lambda text: shares[text]))
        assert (record["label_id"] is None) == record["abstained"]
    assert sets["calibration_rows"] == silence["calibration_rows"] == 80
    assert sets["coverage"] == sum(record["reference"] in record["label_set"] for record in records) / 40
    assert silence["answered"] == sum(not record["abstained"] for record in records)
    assert f"label sets of level 0.95: coverage {sets['coverage']:.4f} of 40 rows with a reference, mean size" in (
        "\n".join(lines)
    )
    assert [line.split(" (")[0] for line in lines if line.startswith("answered: ")] == [
        f"answered: {silence['answered']} of 40 rows"
    ]
