"""A sample of the lines of a corpus that depends on the lines and the seed alone, in memory of its own size.

Every line has a key, a digest of it and the seed, and those with the lowest keys are the sample: whichever order they
come in, from however many files. Equal lines have one key, and count once.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator

from models.sentencepiece_models.fast_tokenizer import Form

MOST_LETTERS = 1000  # of a line; SentencePiece takes 4192 bytes, and a letter has up to 4
HELD_BACK = 100  # one line of so many is not trained on
HELD_BACK_BYTES = 2_000_000
RESERVED = "▅"  # SentencePiece writes it for letters that get no piece, and skips lines that hold it
BUFFER = 1.25  # of the sample's bytes, before it is cut to its size


def lines_of(text: str, form: Form) -> Iterator[str]:
    """The lines of a document in a normal form of Unicode; long ones are cut, at blanks where there are some."""
    for line in text.splitlines():
        left = unicodedata.normalize(form, line).replace(RESERVED, " ").strip()
        while len(left) > MOST_LETTERS:
            cut = left.rfind(" ", 1, MOST_LETTERS)
            cut = MOST_LETTERS if cut < 0 else cut
            yield left[:cut].rstrip()
            left = left[cut:].lstrip()
        if left:
            yield left


class LineSample:
    """The lines with the lowest keys that together have at most `size` bytes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: list[tuple[bytes, bytes]] = []  # key and line
        self._bytes = 0
        self._limit: bytes | None = None  # lines of this key or a higher one are cut off

    def add(self, key: bytes, line: bytes) -> None:
        if self._limit is not None and key >= self._limit:
            return
        self._kept.append((key, line))
        self._bytes += len(line)
        if self._bytes > self._size * BUFFER:
            self._cut()

    def _cut(self) -> None:
        self._kept.sort()
        kept: list[tuple[bytes, bytes]] = []
        self._bytes = 0
        for key, line in self._kept:
            if kept and kept[-1][0] == key:
                continue
            if self._bytes + len(line) > self._size:
                self._limit = key
                break
            kept.append((key, line))
            self._bytes += len(line)
        self._kept = kept

    def lines(self) -> list[str]:
        """The lines in the order of their keys, which is a random one."""
        self._cut()
        return [line.decode() for _, line in self._kept]

    @property
    def is_whole(self) -> bool:
        """Whether no line was left out."""
        self._cut()
        return self._limit is None


class CorpusSample:
    """Lines to train on, and one of a hundred to report on."""

    def __init__(self, size: int, seed: int) -> None:
        self._seed = seed.to_bytes(8, "little")
        self._training = LineSample(size)
        self._held_back = LineSample(min(HELD_BACK_BYTES, size))
        self.lines_read = 0
        self.bytes_read = 0

    def add(self, line: str) -> None:
        encoded = line.encode()
        key = hashlib.blake2b(encoded, digest_size=16, key=self._seed).digest()
        self.lines_read += 1
        self.bytes_read += len(encoded)
        held_back = int.from_bytes(key[-4:], "little") % HELD_BACK == 0
        (self._held_back if held_back else self._training).add(key, encoded)

    @property
    def is_whole(self) -> bool:
        """Whether all lines are in it."""
        return self._training.is_whole

    def training_lines(self) -> list[str]:
        return self._training.lines()

    def held_back_lines(self) -> list[str]:
        return self._held_back.lines()
