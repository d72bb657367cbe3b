"""Flags about labels that exclude each other are told at once, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.flags.inference import LABEL_DECODINGS, InferenceConfig, LabelFlags
from config.flags.train import TrainConfig
from config.parser import parse_flags, to_dict
from postprocessors.labels import LabelMap
from postprocessors.numbers import Number
from prediction.checks import check_inference, label_problems
from task_utils import Task
from tests.saved_runs import saved_run
from training.resuming import flag_differences
from utils.differences import Difference

MISTAKES: dict[str, tuple[tuple[str | int | float, ...], list[str]]] = {
    "without labels": (
        ("-label_decoding", "score"),
        ["-label_decoding score needs labels, or numbers with bounds: give -label_map, or a -task with a label map"],
    ),
    "score searches nothing": (
        (
            *(
                "-label_map",
                "0=a,1=b",
                "-label_decoding",
                "score",
                "-beam_size",
                4,
                "-length_penalty",
                0.5,
                "-no_repeat_ngram_size",
                2,
            ),
            *("-label_temperature", 2, "-calibrate", "missing.tsv"),
        ),
        [
            "-beam_size 4, -length_penalty 0.5: not with -label_decoding score: it looks at every label and searches"
            " nothing",
            "-no_repeat_ngram_size 2: not with -label_decoding score: labels are chosen by the model's own scores",
            "-calibrate missing.tsv: not with -label_temperature 2.0: one fits the temperature, the other gives it",
            "-calibrate: missing.tsv: no such file",
        ],
    ),
    "probabilities without score": (
        ("-label_map", "0=a,1=b", "-label_prior", "domain", "-label_temperature", 2, "-label_decoding", "constrained"),
        [
            "-label_prior domain, -label_temperature 2.0: only with -label_decoding score: it is about label"
            " probabilities",
        ],
    ),
    "promises that no labelled rows show": (
        (*("-label_map", "0=a,1=b", "-label_decoding", "score"), *("-label_sets", 0.9, "-abstain", 0.05)),
        ["-label_sets 0.9, -abstain 0.05: only with -calibrate: it is a promise that labelled rows must show"],
    ),
    "promises about the input as a whole, in plain lines": (
        (
            *("-label_map", "0=a,1=b", "-label_decoding", "score", "-label_prior", "domain", "-label_sets", 0.9),
            *("-calibrate", "missing.tsv", "-save_output", "out.txt"),
        ),
        [
            "-label_sets: a plain line holds none; give -save_output a file that ends in .jsonl or .tsv",
            "-label_sets 0.9: not with -label_prior domain: it looks at the input as a whole, and what labelled rows"
            " show no longer holds",
            "-calibrate: missing.tsv: no such file",
        ],
    ),
    "one label's flags for several": (
        (
            *("-label_map", "0=a,1=b", "-label_separator", ", ", "-label_decoding", "score"),
            *("-label_prior", "domain", "-highlight", "-save_output", "out.jsonl", "-thresholds", "missing.tsv"),
        ),
        [
            "-label_prior, -highlight: for rows of one label, and these may have several, joined by ', '",
            "-thresholds: missing.tsv: no such file",
        ],
    ),
    "thresholds of one label": (
        ("-label_map", "0=a,1=b", "-label_decoding", "score", "-thresholds", "rows.tsv"),
        [
            "-thresholds: for rows that may have several labels, and these have one",
            "-thresholds: rows.tsv: no such file",
        ],
    ),
    "a separator of letters": (
        ("-label_map", "0=a,1=b", "-label_separator", " and "),
        [
            "-label_separator: label separator ' and ': letters and digits could belong to a label; use marks and"
            " blanks, for example ', '"
        ],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(tmp_path: Path, name: str) -> None:
    (tmp_path / "rows.txt").write_text("a\n")
    given, errors = MISTAKES[name]
    (tmp_path / "free.yaml").write_text("description: free text\n")
    argv = ["-model", "m", "-test_data", f"{tmp_path}/rows.txt", "-task", f"{tmp_path}/free.yaml", *map(str, given)]
    config, _, problems = parse_flags(InferenceConfig, argv)
    check_inference(config, problems)
    assert problems == errors


def test_any_label_decoding_goes_with_a_label_map() -> None:
    labels = LabelMap.parse("0=a,1=b")
    assert [label_problems(LabelFlags(mode), labels) for mode in LABEL_DECODINGS] == [[], [], []]
    assert [label_problems(LabelFlags(mode), labels.joined_by(", ")) for mode in LABEL_DECODINGS] == [[], [], []]


def test_numbers_with_bounds_are_constrained_and_not_scored() -> None:
    """Each of them is a text that the model may write, where they can be counted."""
    numbers = Number(0, 0.3, 1)
    assert numbers.choices == ("0.0", "0.1", "0.2", "0.3")
    assert Number(-0.26, 0.25, 1).choices == ("-0.2", "-0.1", "0.0", "0.1", "0.2")
    assert Number(1).choices == Number(0, 10**6).choices == ()
    assert label_problems(LabelFlags("constrained"), numbers) == []
    told = "-label_decoding score is for labels, and these are numbers from 0 to 0.3; use constrained"
    assert label_problems(LabelFlags("score"), numbers) == [told]
    assert len(label_problems(LabelFlags("constrained"), Number(1))) == 1
    assert label_problems(LabelFlags("constrained"), Number(0, 5, 5)) == [
        "-label_decoding constrained: of numbers from 0 to 5 with 5 decimals there are none, or more than 10,000"
    ]


def test_another_separator_is_another_run() -> None:
    """The targets differ, although flags, templates and label map are the same."""
    one = Task("t", "", label_map=LabelMap.parse("0=a,1=b"))
    several = one.with_label_map(LabelMap.parse("0=a,1=b").joined_by(", "))
    config = TrainConfig()
    saved = saved_run(state={"flags": to_dict(config), "task": one.to_dict()})
    assert flag_differences(saved, config, [one]) == []
    assert flag_differences(saved, config, [several]) == [Difference("-label_separator", None, ", ")]
