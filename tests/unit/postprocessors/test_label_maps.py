"""Several labels a row: values of the data become one text, whatever their order, and outputs are read back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from postprocessors.labels import LabelMap
from task_utils import Task, Template, written_labels
from utils.errors import UserError

MOODS = LabelMap((("0", "joy"), ("1", "anger"), ("2", "fear")), separator=", ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0", "joy"),
        ("2,0", "joy, fear"),
        (" fear , joy", "joy, fear"),
        ("2, anger,0", "joy, anger, fear"),
        ("joy, joy", None),
        ("joy, 0", None),
        ("joy, shame", None),
        ("joy,", None),
        ("", None),
    ],
)
def test_values_of_the_data(value: str, text: str | None) -> None:
    assert MOODS.lookup(value) == text


def test_only_the_text_that_training_writes_is_valid() -> None:
    assert MOODS.value("joy, fear") == ("joy", "fear")
    assert [MOODS.value(text) for text in ("fear, joy", "joy,fear", "joy, joy", "joy, ", "")] == [None] * 5
    assert MOODS.joined_by("").value("joy, fear") is None


def test_outputs_are_corrected_part_by_part() -> None:
    assert MOODS.nearest("fear,jo") == "joy, fear"
    assert MOODS.nearest("joy, yoy") == "joy"
    assert MOODS.nearest("fear, ") == "fear"  # an output that was cut names no further label
    assert MOODS.nearest("") == "joy"
    assert MOODS.nearest("joy, xxxxxx", max_distance=2) is None
    assert MOODS.correct(["joy", "feer, joy"], 1) == ["joy", "joy, fear"]


def test_a_separator_of_blanks_or_marks() -> None:
    assert MOODS.joined_by(" ").lookup("2   0") == "joy fear"
    assert MOODS.joined_by(" ").lookup(" ") is None
    assert MOODS.joined_by("|").lookup("fear | joy") == "joy|fear"


def test_separators_that_could_be_part_of_a_label_are_refused() -> None:
    with pytest.raises(UserError, match="letters and digits could belong to a label"):
        MOODS.joined_by(" and ")
    with pytest.raises(UserError, match="text 'great joy' holds the label separator ' '"):
        LabelMap((("0", "great joy"),), separator=" ")
    for separator, text in (("--", "a-"), (" - - ", "a -")):
        with pytest.raises(UserError, match=f"text '{text}' holds the label separator '{separator}', or ends like it"):
            LabelMap((("0", text), ("1", "b")), separator=separator)
    with pytest.raises(UserError, match=r"with a label separator it must be '\{\{ target \}\}'"):
        written_labels(MOODS, Template("{{ target }}.", "-target_template"))


def test_a_task_keeps_its_separator() -> None:
    task = Task.from_dict({"name": "moods", "label_map": MOODS.to_dict(), "label_separator": ", "})
    assert task.label_map == MOODS
    assert Task.from_dict(task.to_dict()) == task
    assert "label_separator" not in Task("t", "").to_dict()
    other = task.with_label_map(LabelMap.parse("0=a,1=b"))
    assert other.label_map == LabelMap((("0", "a"), ("1", "b")), separator=", ")
    with pytest.raises(UserError, match="label_separator ', ' needs a label_map"):
        Task.from_dict({"name": "moods", "label_separator": ", "})


@pytest.mark.parametrize("content", ['["joy", "\\ud83d"]', '{"1": "\\ud83d"}'])
def test_half_of_a_surrogate_pair_is_no_label(content: str, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(
        UserError, match=r"^-label_map .*map.json: label map: text '.ud83d' is no Unicode text: it holds "
    ):
        LabelMap.parse(str(tmp_path / "map.json"))
    (tmp_path / "map.json").write_text('["joy", "\\ud83d\\ude00"]')
    assert LabelMap.parse(str(tmp_path / "map.json")).texts == ("joy", "\U0001f600")


def test_bytes_of_the_command_line_that_are_no_utf8_are_told() -> None:
    broken = os.fsdecode(b"\xff")
    with pytest.raises(UserError, match=r"text '.udcff' is no Unicode text"):
        LabelMap.parse(f"0=joy,1={broken}")
    with pytest.raises(UserError, match=r"^label separator '.udcff' is no Unicode text"):
        MOODS.joined_by(broken)
    with pytest.raises(UserError, match=r"^-input_template '.*.udcff' is no Unicode text"):
        Template("{{ source }} " + broken)
    with pytest.raises(UserError, match=r"label map: text 'joy.ud83d' is no Unicode text"):
        written_labels(MOODS.joined_by(""), Template(r"{{ target }}{{ '\ud83d' }}", "-target_template"))


@pytest.mark.parametrize("other", ["\u1100\u1161", "가\u200b", "\ufeff가"])
def test_labels_that_look_the_same_are_refused_with_their_code_points(other: str) -> None:
    with pytest.raises(UserError) as caught:
        LabelMap((("0", "가"), ("1", other)))
    points = " ".join(f"U+{ord(letter):04X}" for letter in other)
    assert caught.value.problems == (f"label map: texts '가' (U+AC00) and {other!r} ({points}) look the same",)


def test_a_value_that_only_looks_like_a_label_is_told_by_code_points() -> None:
    labels = LabelMap((("0", "가"), ("1", "나")))
    assert labels.look_alike("\u1100\u1161") == " (it only looks like '가': U+1100 U+1161, not U+AC00)"
    assert labels.look_alike("다") == ""


def test_of_many_labels_a_message_shows_the_first() -> None:
    labels = LabelMap(tuple((str(number), f"t{number}") for number in range(1000)))
    assert labels.describe().endswith("19=t19 and 980 more")
