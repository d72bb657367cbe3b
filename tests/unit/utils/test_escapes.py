"""One text is one line for every reader, and our own TSV reader gives the text back."""

from __future__ import annotations

import json
import subprocess
import unicodedata

import pytest

from utils.escapes import escape_cell, escape_json, flatten_cell, printable, shell_command, unescape_cell

CONTROLS = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in ("Cc", "Zl", "Zp")]
TEXTS = ["", "plain", "a\nb", "a\tb\r", "back\\slash", "\\n is not a newline", "끝\\", "\x1b[31mred\x00", "한\u2028글"]


def is_one_line(text: str) -> bool:
    return not set(text) & set(CONTROLS) and len(text.splitlines()) <= 1


@pytest.mark.parametrize("text", [*TEXTS, *(f"a{character}b\\" for character in CONTROLS), *(c * 2 for c in CONTROLS)])
def test_escapes_are_one_line_and_reversible(text: str) -> None:
    line = escape_cell(text)
    assert is_one_line(line)
    assert unescape_cell(line)[0] == text
    assert unescape_cell(escape_cell(line))[0] == line
    assert is_one_line(flatten_cell(text))
    assert is_one_line(printable(text))
    assert is_one_line(escape_json(json.dumps(text, ensure_ascii=False)))
    assert json.loads(escape_json(json.dumps([text], ensure_ascii=False))) == [text]


def test_how_they_are_written() -> None:
    assert len(CONTROLS) == 67
    assert escape_cell("\x00\x0b\x1b\x7f\x85\u2028\n\\") == r"\u0000\u000b\u001b\u007f\u0085\u2028\n\\"
    assert flatten_cell("a\r\nb\x0b\x85c\u2029\x00d") == "a b  c  d"


@pytest.mark.parametrize(
    "cell",
    [r"\x1b[0m", r"\u0041", r"\uac00", r"\u001B", r"\u000a", r"\u0009", r"\u202a", r"\u00", r"\u", r"\d \U", "\\"],
)
def test_what_we_never_write_is_read_as_it_stands(cell: str) -> None:
    """Data that were there before these escapes: regular expressions, paths, JSON of letters, bytes of Python."""
    assert unescape_cell(cell) == (cell, 0)


def test_escapes_are_counted() -> None:
    assert unescape_cell(r"a\u001bb\\u2028\u2028\n") == ("a\x1bb\\u2028\u2028\n", 4)


def test_a_command_for_the_shell_is_one_line_and_reads_as_it_was() -> None:
    words = ["a b", "it's", "한글", "줄\n바꿈\t'x' \\n", "\x1b[31m", "$HOME `x`"]
    line = shell_command(["printf", r"%s\0", *words])
    assert is_one_line(line)
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == words
