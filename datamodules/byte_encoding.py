"""ByT5 tokens straight from the bytes: id = byte + 3, then `</s>`; the ids of the stock tokenizer, much faster.

Rows that hold the text of an added token (`</s>`, `<pad>`, `<extra_id_0>`, ...) go through the stock tokenizer, which
reads it as that token.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


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
        return Tokens(
            np.concatenate((self.values, other.values)),
            np.concatenate((self.offsets, other.offsets[1:] + self.offsets[-1])),
            np.concatenate((self.full_lengths, other.full_lengths)),
        )

    def replaced(self, indices: np.ndarray, other: Tokens) -> Tokens:
        """The same rows, but those of `other` at `indices`."""
        order = np.arange(len(self))
        order[indices] = len(self) + np.arange(len(other))
        return self.followed_by(other).rows(order)


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


def is_byte_tokenizer(tokenizer: Any) -> bool:
    """Whether ids are bytes + 3: the stock ByT5 class, without added tokens of a single character."""
    if type(tokenizer).__name__ != "ByT5Tokenizer" or getattr(tokenizer, "offset", None) != 3:
        return False
    return not tokenizer.split_special_tokens and all(len(token) > 1 for token in tokenizer.added_tokens_encoder)


class ByteEncoder:
    """Encodes texts with a ByT5 tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        added = list(tokenizer.added_tokens_encoder)
        self._tokenizer = tokenizer
        self._eos = int(tokenizer.eos_token_id)
        self._first_bytes = sorted({token.encode()[0] for token in added})
        self._added = "|".join(re.escape(token) for token in sorted(added, key=len, reverse=True))
        self.dtype: type = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
        self.special_tokens = 1
        self.notes: tuple[str, ...] = ()

    def encode(self, texts: pa.Array, limit: int, as_target: bool) -> Tokens:  # noqa: ARG002
        """Tokens of a `large_string` array, cut to `limit` tokens with `</s>` kept (0 = never cut)."""
        # A NUL joined to every text makes room for its </s> in one pass at the speed of memory.
        joined = pc.binary_join_element_wise(texts, _scalar("\0"), _scalar(""))
        offsets, raw = text_buffers(joined)
        values: np.ndarray = raw.astype(self.dtype)
        values += 3
        values[offsets[1:] - 1] = self._eos
        tokens = _cut(Tokens(values, offsets, np.diff(offsets)), limit, self._eos)
        stock_rows = self._rows_with_added_tokens(texts, raw)
        if len(stock_rows) == 0:
            return tokens
        stock_texts = texts.take(pa.array(stock_rows)).to_pylist()
        return tokens.replaced(stock_rows, stock_tokens(self._tokenizer, stock_texts, limit, False, self.dtype))

    def _rows_with_added_tokens(self, texts: pa.Array, raw: np.ndarray) -> np.ndarray:
        if not any(bool((raw == byte).any()) for byte in self._first_bytes):
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(pc.match_substring_regex(texts, self._added).to_numpy(zero_copy_only=False))


def stock_tokens(tokenizer: Any, texts: list[str], limit: int, as_target: bool, dtype: type) -> Tokens:
    """Tokens as the tokenizer's own call gives them."""

    def call(batch: list[str], **options: Any) -> list[list[int]]:
        named = {"text_target": batch} if as_target else {"text": batch}
        ids: list[list[int]] = tokenizer(**named, verbose=False, return_attention_mask=False, **options)["input_ids"]
        return ids

    if not texts:
        return tokens_of_lists([], [], dtype)
    rows = call(texts)
    lengths = [len(row) for row in rows]
    if limit:
        cut = [index for index, length in enumerate(lengths) if length > limit]
        if cut:
            shorter = call([texts[index] for index in cut], truncation=True, max_length=limit)
            for index, row in zip(cut, shorter, strict=True):
                rows[index] = row
    return tokens_of_lists(rows, lengths, dtype)


def _cut(tokens: Tokens, limit: int, eos: int) -> Tokens:
    lengths = tokens.full_lengths
    if limit == 0 or len(lengths) == 0 or lengths.max() <= limit:
        return tokens
    values, offsets = gather_ranges(tokens.values, tokens.offsets[:-1], np.minimum(lengths, limit))
    values[offsets[1:] - 1] = eos
    return Tokens(values, offsets, lengths)


def text_buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (from 0) and bytes of a `large_string` array."""
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = texts.buffers()[2]
    raw = np.frombuffer(data, dtype=np.uint8) if data is not None else np.empty(0, dtype=np.uint8)
    return offsets - offsets[0], raw[offsets[0] : offsets[-1]]


def _scalar(text: str) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())
