"""Token ids of many rows in flat arrays."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Tokens:
    """Token ids of many rows: those of row i are `values[offsets[i]:offsets[i + 1]]`.

    `full_lengths` are the lengths (tokens, with the special ones) before anything was cut.
    """

    values: np.ndarray
    offsets: np.ndarray
    full_lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.full_lengths)

    def row(self, index: int) -> np.ndarray:
        """The ids of one row."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def rows(self, indices: np.ndarray) -> Tokens:
        """The rows at `indices`, which may repeat."""
        starts, lengths = self.offsets[:-1][indices], np.diff(self.offsets)[indices]
        values, offsets = gather_ranges(self.values, starts, lengths)
        return Tokens(values, offsets, self.full_lengths[indices])

    def followed_by(self, other: Tokens) -> Tokens:
        """The rows of both."""
        return joined_tokens((self, other))

    def replaced(self, indices: np.ndarray, other: Tokens) -> Tokens:
        """The same rows, but those of `other` at `indices`."""
        order = np.arange(len(self))
        order[indices] = len(self) + np.arange(len(other))
        return self.followed_by(other).rows(order)


def joined_tokens(parts: Sequence[Tokens]) -> Tokens:
    """The rows of all parts, one after the other."""
    starts = np.cumsum([0, *(len(part.values) for part in parts[:-1])])
    ends = [part.offsets[1:] + start for part, start in zip(parts, starts.tolist(), strict=True)]
    return Tokens(
        np.concatenate([part.values for part in parts]),
        np.concatenate([parts[0].offsets[:1], *ends]),
        np.concatenate([part.full_lengths for part in parts]),
    )


def gather_ranges(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The slices `values[start:start + length]` one after the other, and their offsets."""
    offsets = np.zeros(len(starts) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return values[positions], offsets


def tokens_of_lists(rows: list[list[int]], full_lengths: list[int], dtype: type) -> Tokens:
    """`Tokens` of plain lists."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values: np.ndarray = np.fromiter(itertools.chain.from_iterable(rows), dtype=dtype, count=int(offsets[-1]))
    return Tokens(values, offsets, np.asarray(full_lengths, dtype=np.int64))


def text_buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (from 0) and bytes of a `large_string` array."""
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = texts.buffers()[2]
    raw = np.frombuffer(data, dtype=np.uint8) if data is not None else np.empty(0, dtype=np.uint8)
    return offsets - offsets[0], raw[offsets[0] : offsets[-1]]
