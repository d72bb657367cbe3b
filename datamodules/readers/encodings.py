"""Whether a data file is UTF-8 text as a whole; what else it may be, and how it is converted."""

from __future__ import annotations

import codecs
import shlex
from dataclasses import dataclass

from utils.errors import UserError

SAMPLE_BYTES = 1 << 20
_OTHER_FILES = {
    b"\x1f\x8b": "gzip data; unpack it first: gunzip",
    b"PK\x03\x04": "a zip archive or a workbook; unpack it, or export its table as text",
    b"PAR1": "a Parquet file; name it .parquet",
    b"\xff\xfe": "UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
}

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8


@dataclass(frozen=True)
class OtherContent:
    """What a file holds in place of UTF-8 text. `line` is the first that shows it, 0 = the whole file does; `encoding`
    is what it seems to be written in, "" = unknown."""

    what: str
    line: int = 0
    encoding: str = ""


def other_content(sample: bytes) -> OtherContent | None:
    """What a file is, by its first megabyte, if it is no UTF-8 text as a whole.

    It is none when more of its lines are invalid than hold letters beyond ASCII in valid UTF-8, and most of the invalid
    ones read as Korean in cp949 (or EUC-KR, a part of it), or when most of its lines are invalid. Fewer invalid lines
    are counted as malformed rows when they are read.
    """
    for start, what in _OTHER_FILES.items():
        if sample.startswith(start):
            return OtherContent(f"the file is {what}")
    for name, place in (("UTF-16LE", 1), ("UTF-16BE", 0)):
        zeros = sample[place::2].count(0)  # of blanks, tabs and ASCII; 가 (U+AC00) has one at the other place
        if zeros >= max(4, len(sample) // 50, 4 * sample[1 - place :: 2].count(0)):
            return OtherContent(f"not UTF-8; it reads as {name}", encoding=name)
    if _reads_as("utf-8", sample):
        return None
    lines = sample.removesuffix(b"\n").split(b"\n")
    invalid = [number for number, line in enumerate(lines) if not _reads_as("utf-8", line)]
    if len(invalid) <= sum(not line.isascii() for line in lines) - len(invalid):
        return None
    first = invalid[0] + 1
    if sum(_is_korean(lines[number]) for number in invalid) > len(invalid) // 2:
        return OtherContent("not UTF-8; it reads as cp949", first, "cp949")
    if len(invalid) > len(lines) // 2:
        return OtherContent("not UTF-8, like most lines of the file; convert it (iconv -f ENCODING -t utf-8)", first)
    return None


def check_encoding(path: str) -> None:
    """Raise `UserError` for a file that is no UTF-8 text, judged by `other_content`."""
    with open(path, "rb") as file:
        found = other_content(file.read(SAMPLE_BYTES))
    if found:
        way_out = f": {_conversion(found.encoding, path)}" if found.encoding else ""
        raise UserError(f"{path}:{found.line or ''}".rstrip(":") + f": {found.what}{way_out}")


def _conversion(encoding: str, path: str) -> str:
    return f"iconv -f {encoding} -t utf-8 {shlex.quote(path)} > NEW"


def _reads_as(encoding: str, data: bytes) -> str | None:
    """`data` as text, whose last letter may be cut; None when it is not in that encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data) or " "
    except UnicodeDecodeError:
        return None


def _is_korean(line: bytes) -> bool:
    return any("가" <= letter <= "힣" for letter in _reads_as("cp949", line) or "")
