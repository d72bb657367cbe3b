r"""The escapes of our TSV cells and prediction files: `\n`, `\t`, `\r` and `\\`, the same in both directions."""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"\\([ntr\\])")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"})


def escape_cell(text: str) -> str:
    """`text` on one line: reading it as a TSV cell gives it back."""
    return text.translate(_ESCAPES)


def unescape_cell(text: str) -> tuple[str, int]:
    """What a TSV cell stands for, and the number of escapes read; a backslash before anything else stays."""
    return _ESCAPE.subn(lambda match: _ESCAPED[match[1]], text)


def flatten_cell(text: str) -> str:
    """`text` on one line without escapes: line breaks and tabs become blanks (they cannot be told apart again)."""
    return text.replace("\r\n", " ").translate(str.maketrans("\n\r\t", "   "))
