r"""The escapes of our TSV cells and prediction files, the same in both directions: `\n`, `\t`, `\r`, `\\` and `\uHHHH`.

`\uHHHH` (four lower-case hexadecimal digits, as in JSON) stands for one of the other control characters (U+0000 to
U+001F, U+007F to U+009F) or line separators (U+2028, U+2029), which would break a line for some readers or move the
cursor of a terminal. Before any other character `\u` is no escape: data that hold `\u0041` stay as they are.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

ESCAPES = r"\n \t \r \\ \uHHHH"  # as the user is told of them
_NAMED = {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_UNSAFE = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)]
_WRITTEN = {**{character: f"\\u{ord(character):04x}" for character in _UNSAFE}, **_NAMED}
_READ = {written[1:]: character for character, written in _WRITTEN.items()}
_ESCAPE = re.compile(r"\\([ntr\\]|u(?:00(?:0[0-8bcef]|[189][0-9a-f]|7f)|202[89]))")
_ESCAPING = str.maketrans(_WRITTEN)
_SHOWING = str.maketrans({character: written for character, written in _WRITTEN.items() if character != "\\"})
_FLATTENING = str.maketrans(dict.fromkeys(_UNSAFE, " "))
_ALLOWED_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029]")
NO_UNICODE = "is no Unicode text: it holds half of a surrogate pair, or bytes that are no UTF-8"


def escape_cell(text: str) -> str:
    """`text` on one line: reading it as a TSV cell gives it back."""
    return text.translate(_ESCAPING)


def unescape_cell(text: str) -> tuple[str, int]:
    """What a TSV cell stands for, and the number of escapes read; a backslash before anything else stays."""
    return _ESCAPE.subn(lambda match: _READ[match[1]], text)


def printable(text: str) -> str:
    """`text` for a person, on one line: its control characters and line breaks as escapes, backslashes as they are."""
    return text.translate(_SHOWING)


def flatten_cell(text: str) -> str:
    """`text` on one line without escapes: control characters and line breaks become blanks, and stay so when read."""
    return text.replace("\r\n", " ").translate(_FLATTENING)


def escape_json(line: str) -> str:
    """JSON of the same value without the control characters and line separators that JSON itself allows in a string."""
    return _ALLOWED_IN_JSON.sub(lambda match: _WRITTEN[match[0]], line)


def escaped_character(character: str) -> str:
    """A character that cannot be shown, as files have it; of others the code point."""
    code = ord(character)
    return _WRITTEN.get(character) or (f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}")


def shell_command(words: Iterable[str]) -> str:
    """A command line that a shell reads as `words`, without control characters."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    if not set(word) & _WRITTEN.keys() - {"\\"}:
        return shlex.quote(word)
    return "$'" + escape_cell(word).replace("'", "\\'") + "'"  # bash and others know these escapes


def is_unicode(text: str) -> bool:
    """Whether `text` can be written to a file and read by a tokenizer.

    Half of a surrogate pair (JSON can hold one) and bytes of a command line that are no UTF-8 cannot.
    """
    return not any("\ud800" <= character <= "\udfff" for character in text)
