"""Tokens of texts put together from the tokens of their words, each of which is tokenized once.

A Rust tokenizer reads about 1 MB a second; most words of a text have been seen before. The ids are the same because of
three conditions, all of them checked, and a row that fails one goes to the tokenizer as a whole:

1. The tokenizer never looks across a space: `splits_at_spaces` knows its normalizers and pre-tokenizers.
2. The row is words with one space between them, no other white space, and no added token (`</s>`, `<extra_id_0>`).
3. Every character is one that normalization maps by itself, whatever stands beside it: no combining marks, joiners,
   control characters, full-width forms.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.byte_encoding import Tokens, text_buffers
from datamodules.unigram import unigram_words

_MOST_WORDS = 800_000  # kept at a time: about 200 MB
_SAFE = (
    r"!-~\u00b0\u00b7\u00c0-\u0131\u0134-\u013e\u0141-\u0148\u014a-\u017e\u0391-\u03a1\u03a3-\u03c9\u0410-\u044f\u2013\u2014\u2018\u2019\u201c\u201d\u2026"
    r"\u2190-\u2193\u25a0-\u25cf\u2605\u2606\u2661\u2665\u2669-\u266c\u3001\u3002\u3008-\u3011\u3041-\u3093\u30a1-\u30fa"
    r"\u3131-\u3163\u4e00-\u9fa5\uac00-\ud7a3"
)
_NORMALIZERS = {"NFC", "NFKC", "NFD", "NFKD", "Precompiled", "Strip"}


def splits_at_spaces(rust: Any) -> bool:
    """Whether the text of each word, with the space before it, gets its tokens whatever stands around it."""
    state = json.loads(rust.to_str())
    if state["model"].get("dropout"):
        return False
    normalizers = _members(state.get("normalizer"), "normalizers")
    if not all(item["type"] in _NORMALIZERS or _joins_spaces(item) for item in normalizers):
        return False
    if any(re.search(r"\s", token["content"]) for token in state["added_tokens"]):
        return False
    match _members(state.get("pre_tokenizer"), "pretokenizers"):
        case [{"type": "WhitespaceSplit"}, {"type": "Metaspace"} as last] | [{"type": "Metaspace"} as last]:
            return bool(last.get("split", True) and last.get("prepend_scheme", "always") == "always")
        case [{"type": "ByteLevel"} as only]:
            return bool(only.get("use_regex", True))
    return False


def _members(item: Any, key: str) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer: those of a sequence, or itself."""
    if item is None:
        return []
    return list(item[key]) if item["type"] == "Sequence" else [item]


def _joins_spaces(item: dict[str, Any]) -> bool:
    return bool(item["type"] == "Replace" and item["pattern"] == {"Regex": " {2,}"})


class WordEncoder:
    """Tokens without special ones, from a memory of words. Safe to use from several threads.

    `whole(texts)` gives the tokens of texts by the tokenizer itself.
    """

    def __init__(self, rust: Any, whole: Callable[[list[str]], Tokens], dtype: type) -> None:
        added = sorted({token.content for token in rust.get_added_tokens_decoder().values()} - {""})
        self._safe = re.compile(f" ?[{_SAFE}]{{1,200}}")
        self._added = re.compile("|".join(map(re.escape, added)) or "$.", re.IGNORECASE)  # "$.": nothing
        self._first = re.compile(f"[{re.escape(''.join({token[0] for token in added}))}]" if added else "$.", re.I)
        self._whole = whole
        self._dtype = dtype
        self._unigram = unigram_words(rust)
        self._memory = _Memory(dtype)

    def encode(self, texts: pa.Array) -> Tokens:
        """Tokens of a `large_string` array."""
        row_offsets, raw = text_buffers(texts)
        marks = raw == 32
        marks[row_offsets[: np.searchsorted(row_offsets, len(raw))]] = True  # not the starts of empty last rows
        starts = np.flatnonzero(marks)
        words = pc.dictionary_encode(_slices(raw, starts))
        numbers, tokens = self._known(words.dictionary.to_pylist())
        numbers = numbers[words.indices.to_numpy()]
        first = np.searchsorted(starts, row_offsets)  # the first word of each row
        unsafe = np.diff(first) == 0
        unsafe[np.searchsorted(first, np.flatnonzero(numbers < 0), side="right") - 1] = True
        filled = row_offsets[:-1][~unsafe]
        unsafe[np.flatnonzero(~unsafe)[raw[filled] == 32]] = True
        by_words = tokens.rows(np.maximum(numbers, 0))
        offsets = by_words.offsets[first]
        together = Tokens(by_words.values, offsets, np.diff(offsets))
        return together if not unsafe.any() else self._with_whole_rows(together, texts, np.flatnonzero(unsafe))

    def _is_safe(self, word: str) -> bool:
        if not self._safe.fullmatch(word):
            return False
        return not (self._first.search(word) and self._added.search(word))

    def _with_whole_rows(self, tokens: Tokens, texts: pa.Array, rows: np.ndarray) -> Tokens:
        return tokens.replaced(rows, self._whole(texts.take(pa.array(rows)).to_pylist()))

    def _tokens_of_words(self, words: list[str]) -> Tokens:
        if self._unigram is None:
            return self._whole(words)
        tokens, done = self._unigram.encode(words, self._dtype)
        left = np.flatnonzero(~done)
        return tokens.replaced(left, self._whole([words[index] for index in left])) if len(left) else tokens

    def _known(self, words: list[str]) -> tuple[np.ndarray, Tokens]:
        """Number of each word in the tokens that are returned with them; -1 for a word that is not safe."""
        memory = self._memory
        if len(memory.numbers) > _MOST_WORDS:
            memory = self._memory = _Memory(self._dtype)
        found = [memory.numbers.get(word, -2) for word in words]
        new = [word for word, number in zip(words, found, strict=True) if number == -2]
        if new:
            safe = [word for word in new if self._is_safe(word)]
            memory.add(safe, self._tokens_of_words(safe), set(new).difference(safe))
            later = iter([memory.numbers.get(word, -1) for word in new])
            found = [next(later) if number == -2 else number for number in found]
        return np.array(found, dtype=np.int64), memory.tokens


class _Memory:
    """Tokens of words by number. Words are only added, so whoever holds a number and later tokens finds them there."""

    def __init__(self, dtype: type) -> None:
        self.numbers: dict[str, int] = {}
        self.tokens = Tokens(np.empty(0, dtype), np.zeros(2, np.int64), np.zeros(1, np.int64))  # one empty row
        self._lock = threading.Lock()

    def add(self, words: list[str], tokens: Tokens, unsafe: set[str]) -> None:
        """Keep the tokens of `words`; what another thread has added meanwhile is kept twice, which does no harm."""
        with self._lock:
            first = len(self.tokens)
            self.tokens = self.tokens.followed_by(tokens)
            self.numbers.update((word, first + index) for index, word in enumerate(words))
            self.numbers.update((word, -1) for word in unsafe if len(word) < 200)


def _slices(raw: np.ndarray, starts: np.ndarray) -> pa.Array:
    """The slices of UTF-8 bytes from each start to the next, as text."""
    offsets = np.append(starts, len(raw)).astype(np.int64)
    return pa.Array.from_buffers(pa.large_string(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(raw)])
