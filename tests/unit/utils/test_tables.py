"""Tables and texts for a terminal."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from utils.differences import Difference, difference_table
from utils.tables import counted, format_table, visible


def test_tables_are_aligned_by_terminal_cells():
    lines = format_table(("이름", "n"), [("가나다라", "1"), ("abc", "1,000")])
    assert lines == ["  이름          n", "  가나다라      1", "  abc       1,000"]
    assert {cell_len(line) for line in lines} == {17}


@pytest.mark.parametrize(
    "text, width, shown",
    [
        ("", 10, "(empty)"),
        ("열한 시", 10, "열한 시"),
        ("a\tb\x00\x9b\ud800", 60, r"a\tb\u0000\u009b\ud800"),
        ("가나다라마", 10, "가나다라마"),
        ("가나다라마바", 10, "가나다라…"),
        ("abcdefghijk", 10, "abcdefghi…"),
        ("\x1b" * 50, 10, r"\u001b…"),
        ("a" * 1_000_000, 10, "aaaaaaaaa…"),
    ],
)
def test_visible(text, width, shown):
    assert visible(text, width) == shown
    assert cell_len(visible(text, width)) <= width or not text or width == 60


def test_differences_are_aligned_by_terminal_cells_and_hold_no_control_character():
    differences = [Difference("-input_template", "읽기: {{ source }}", "a\nb"), Difference("-seed", None, 3)]
    assert difference_table(differences) == (
        "  what             checkpoint          now\n"
        "  -input_template  읽기: {{ source }}  a\\nb\n"
        "  -seed            None                3"
    )


def test_one_and_many():
    assert [counted(count, "epoch") for count in (0, 1, 2000)] == ["0 epochs", "1 epoch", "2,000 epochs"]
