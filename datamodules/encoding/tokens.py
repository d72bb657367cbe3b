"""Tokens of texts by any tokenizer: direct bytes for ByT5, SentencePiece where the tokenizer was made from its model,
the Rust core for other fast ones, the stock call for the rest."""

from __future__ import annotations

import itertools
import re
import threading
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.encoding.arrays import Tokens, gather_ranges, text_buffers, tokens_of_lists
from datamodules.encoding.sentencepiece_ids import SentencePieceIds
from models.special_tokens import adds_no_end, encoded_source, encoded_target
from utils.errors import UserError

_PROBES = ("a", "1", "가", "the", ".", "b b")


class TextEncoder(Protocol):
    """What turns texts into tokens. `special_tokens` is the most that a limit must leave room for; `notes` are for the
    user, about everything that differs from what the tokenizer does by itself."""

    dtype: type
    special_tokens: int
    notes: tuple[str, ...]

    def encode(self, texts: pa.Array, limit: int, as_target: bool) -> Tokens:
        """Tokens of a `large_string` array, cut to `limit` tokens with the special ones kept (0 = never cut)."""


def make_encoder(tokenizer: Any) -> TextEncoder:
    """The fastest encoder that gives the ids of `tokenizer`."""
    if is_byte_tokenizer(tokenizer):
        return ByteEncoder(tokenizer)
    frames = _frames(tokenizer) if tokenizer.is_fast else None
    return RustEncoder(tokenizer, *frames) if frames else StockEncoder(tokenizer)


Frame = tuple[tuple[int, ...], tuple[int, ...]]  # special tokens before and after the text


def _frames(tokenizer: Any) -> tuple[Frame, Frame] | None:
    """Special tokens around a source and around a target; None when they are no plain prefix and suffix."""
    frames = []
    for name, encoded in (("text", encoded_source), ("text_target", encoded_target)):
        found = set()
        for probe in _PROBES:
            full = encoded(tokenizer, probe)
            bare = tokenizer(**{name: probe}, add_special_tokens=False)["input_ids"]
            starts = [at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare]
            if bare and len(starts) == 1:
                found.add((tuple(full[: starts[0]]), tuple(full[starts[0] + len(bare) :])))
        if len(found) != 1:
            return None
        frames.append(found.pop())
    return frames[0], frames[1]


class RustEncoder:
    """Encodes with the Rust core of a fast tokenizer, without the detour over `BatchEncoding`, or with SentencePiece
    where the ids are the same."""

    def __init__(self, tokenizer: Any, source_frame: Frame, target_frame: Frame) -> None:
        self._rust = tokenizer.backend_tokenizer
        self._rust.no_truncation()
        self._rust.no_padding()
        self._sentencepiece = SentencePieceIds.of(tokenizer)
        self._cut_left = getattr(tokenizer, "truncation_side", "right") == "left"
        self._frames = (source_frame, target_frame)
        self.dtype: type = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
        self.special_tokens = max(len(prefix) + len(suffix) for prefix, suffix in self._frames)
        self.notes: tuple[str, ...] = _notes(tokenizer)

    def encode(self, texts: pa.Array, limit: int, as_target: bool) -> Tokens:
        """Tokens of a `large_string` array, cut to `limit` tokens with the special ones kept (0 = never cut)."""
        values, lengths = self._ids(texts.to_pylist())
        return framed(values, np.cumsum(lengths) - lengths, lengths, self._frames[as_target], limit, self._cut_left)

    def _ids(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts, one after the other, and how many each has."""
        if self._sentencepiece:
            values, lengths = self._sentencepiece.encode(texts)
            return values.astype(self.dtype), lengths
        encodings = self._rust.encode_batch_fast(texts, add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
        ids = itertools.chain.from_iterable(encoding.ids for encoding in encodings)  # no list outlives its turn
        return np.fromiter(ids, dtype=self.dtype, count=int(lengths.sum())), lengths


def framed(
    values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, frame: Frame, limit: int, cut_left: bool
) -> Tokens:
    """Rows `values[start:start + length]`, cut so that with the special tokens of `frame` they fit `limit`."""
    prefix, suffix = frame
    special = len(prefix) + len(suffix)
    kept = np.minimum(lengths, max(limit - special, 0)) if limit else lengths
    if cut_left:
        starts = starts + lengths - kept
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(kept + special, out=offsets[1:])
    framed_values = np.empty(int(offsets[-1]), dtype=values.dtype)
    for position, token in enumerate(prefix):
        framed_values[offsets[:-1] + position] = token
    for position, token in enumerate(reversed(suffix), 1):
        framed_values[offsets[1:] - position] = token
    kept_starts = np.cumsum(kept) - kept
    within = np.arange(int(kept.sum()))
    into = within + np.repeat(offsets[:-1] + len(prefix) - kept_starts, kept)
    framed_values[into] = values[within + np.repeat(starts - kept_starts, kept)]
    return Tokens(framed_values, offsets, lengths + special)


class StockEncoder:
    """Encodes by calling the tokenizer, row by row; for tokenizers written in Python.

    One thread at a time: a call for targets switches the tokenizer itself (Marian, M2M100) until it ends, and a source
    that is encoded meanwhile would get the ids of a target.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._eos = tokenizer.eos_token_id
        self._add_eos = adds_no_end(tokenizer)
        self.dtype: type = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
        self.special_tokens = tokenizer.num_special_tokens_to_add() + self._add_eos
        self.notes: tuple[str, ...] = _notes(tokenizer)

    def encode(self, texts: pa.Array, limit: int, as_target: bool) -> Tokens:
        """Tokens of a `large_string` array, cut to `limit` tokens with the special ones kept (0 = never cut)."""
        room = limit - self._add_eos if limit else 0
        with self._lock:
            tokens = stock_tokens(self._tokenizer, texts.to_pylist(), room, as_target, self.dtype)
        if not self._add_eos:
            return tokens
        lengths = np.diff(tokens.offsets)
        ended = framed(tokens.values, tokens.offsets[:-1], lengths, ((), (self._eos,)), 0, False)
        return Tokens(ended.values, ended.offsets, tokens.full_lengths + 1)


def _notes(tokenizer: Any) -> tuple[str, ...]:
    if not adds_no_end(tokenizer):
        return ()
    return (f"the tokenizer adds no end token by itself; {tokenizer.eos_token} is appended to every source and target",)


def check_limit(encoder: TextEncoder, flag: str, limit: int) -> None:
    """Raise `UserError` when a limit (tokens) leaves no room beside the special tokens."""
    if 0 < limit <= encoder.special_tokens:
        raise UserError(
            f"{flag} {limit}: leaves no room for text beside the {encoder.special_tokens} special token(s) of the "
            f"tokenizer; give at least {encoder.special_tokens + 1}, or 0 for no limit"
        )


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
        joined = pc.binary_join_element_wise(texts, pa.scalar("\0", texts.type), pa.scalar("", texts.type))
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
        # One at the limit too: the library makes room for an end token before it sees that the text has its own.
        cut = [index for index, length in enumerate(lengths) if length >= limit]
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
