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

from datamodules.encoding.arrays import Tokens, text_buffers

_LONGEST = 200  # characters of a word that is segmented here
_GROUP = 1 << 18  # characters at a time, the empty places behind short words too
_SHIFT = 21  # bits of a code point
_START = 0x2581  # ▁, the mark of a word's start
_KEYS = {"type", "unk_id", "vocab", "byte_fallback"}

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


def unigram_words(rust: Any) -> UnigramWords | None:
    """The segmenter of a Rust tokenizer that marks word starts with ▁; None when its model is no plain unigram one."""
    state = json.loads(rust.to_str())
    model = state["model"]
    if model.get("type") != "Unigram" or not set(model) <= _KEYS or model.get("byte_fallback"):
        return None
    pre_tokenizer = json.dumps(state.get("pre_tokenizer"), ensure_ascii=False)
    return UnigramWords(model["vocab"], rust.normalizer) if '"replacement": "▁"' in pre_tokenizer else None


class UnigramWords:
    """Segments words (with or without the space before them)."""

    def __init__(self, vocabulary: list[tuple[str, float]], normalizer: Any) -> None:
        self._normalizer = normalizer
        self._scores = np.array([score for _, score in vocabulary], dtype=np.float64)
        children: dict[int, int] = {}
        pieces = [-1]  # id of the piece that ends at each node of the trie; node 0 is the root
        for number, (piece, _) in enumerate(vocabulary):
            node = 0
            for character in piece:
                key = node << _SHIFT | ord(character)
                node = children.setdefault(key, len(pieces))
                if node == len(pieces):
                    pieces.append(-1)
            pieces[node] = number
        keys = np.fromiter(children.keys(), dtype=np.int64, count=len(children))
        order = np.argsort(keys)
        self._keys, self._nodes = keys[order], np.fromiter(children.values(), dtype=np.int64, count=len(keys))[order]
        self._pieces = np.array(pieces, dtype=np.int64)
        self._first = np.zeros(1 << 16, dtype=np.int64)  # child of the root by character of the basic plane
        at_root = self._keys < 1 << 16
        self._first[self._keys[at_root]] = self._nodes[at_root]
        self._known = np.full(1 << 16, -1, dtype=np.int8)  # whether a character is a piece and left as it is

    def encode(self, words: list[str], dtype: type) -> tuple[Tokens, np.ndarray]:
        """Tokens of the words, and which of them were segmented here (the others have none)."""
        lengths = np.fromiter((len(word) - word.startswith(" ") for word in words), dtype=np.int64, count=len(words))
        here = np.flatnonzero((lengths > 0) & (lengths < _LONGEST))
        here = here[np.argsort(-lengths[here], kind="stable")]
        done = np.zeros(len(words), dtype=bool)
        parts: list[np.ndarray] = [np.empty(0, dtype=dtype)]
        counts = np.zeros(len(words), dtype=np.int64)
        order = []
        while len(here):
            size = max(_GROUP // int(lengths[here[0]] + 1), 1)
            group, here = here[:size], here[size:]
            characters = self._matrix([words[index] for index in group], lengths[group])
            known = self._all_known(characters)
            group, characters = group[known], characters[known]
            if len(group):
                values, counts[group] = self._segment(characters, lengths[group] + 1)
                parts.append(values.astype(dtype))
                order.append(group)
                done[group] = True
        values = np.concatenate(parts)
        placed = np.concatenate([*order, np.flatnonzero(~done)]).astype(np.int64)
        offsets = np.concatenate(([0], np.cumsum(counts[placed])))
        back = np.empty(len(words), dtype=np.int64)
        back[placed] = np.arange(len(words))
        return Tokens(values, offsets, counts[placed]).rows(back), done

    def _matrix(self, words: list[str], lengths: np.ndarray) -> np.ndarray:
        """(words, longest + 1) code points: ▁, then the word; 0 behind it."""
        text = "".join(word.removeprefix(" ") for word in words)
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
        matrix = np.zeros((len(words), int(lengths.max()) + 1), dtype=np.int64)
        matrix[:, 1:][np.arange(matrix.shape[1] - 1) < lengths[:, None]] = points
        matrix[:, 0] = _START
        return matrix

    def _all_known(self, characters: np.ndarray) -> np.ndarray:
        basic = np.where(characters < 1 << 16, characters, 0xFFFF)
        for point in np.flatnonzero(np.bincount(basic.ravel(), minlength=1 << 16)):
            if self._known[point] < 0:
                text = chr(point)
                same = self._normalizer is None or point == _START or self._normalizer.normalize_str(text) == text
                self._known[point] = point == 0 or (same and self._pieces[self._first[point]] >= 0)
        known: np.ndarray = (self._known[basic] == 1).all(axis=1)
        return known

    def _segment(self, characters: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pieces of all words one after the other, and their number for each; `lengths` must not grow."""
        count, width = characters.shape
        best = np.full((count, width + 1), -np.inf)
        best[:, 0] = 0.0
        piece_to = np.zeros((count, width + 1), dtype=np.int64)
        came_from = np.zeros((count, width + 1), dtype=np.int64)
        for start in range(width):
            rows = np.arange(int(np.searchsorted(-lengths, -start, side="left")))  # words longer than `start`
            nodes = self._first[characters[rows, start]]
            for end in range(start + 1, width + 1):
                pieces = self._pieces[nodes]
                ended = pieces >= 0
                at, ids = rows[ended], pieces[ended]
                scores = self._scores[ids] + best[at, start]
                better = scores > best[at, end]
                at, ids = at[better], ids[better]
                best[at, end], piece_to[at, end], came_from[at, end] = scores[better], ids, start
                if end == width:
                    break
                rows, nodes = self._next(rows, nodes, characters[rows, end])
                if len(rows) == 0:
                    break
        return _walk_back(piece_to, came_from, lengths)

    def _next(self, rows: np.ndarray, nodes: np.ndarray, characters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows whose node has a child for its character, and these children."""
        keys = nodes << _SHIFT | characters
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found = self._keys[places] == keys
        return rows[found], self._nodes[places[found]]


def _walk_back(piece_to: np.ndarray, came_from: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count = len(ends)
    width = int(ends.max())
    pieces = np.zeros((count, width), dtype=np.int64)  # filled from the right
    counts = np.zeros(count, dtype=np.int64)
    rows, at = np.arange(count), ends.copy()
    for column in range(width - 1, -1, -1):
        pieces[rows, column] = piece_to[rows, at]
        counts[rows] += 1
        at = came_from[rows, at]
        rows, at = rows[at > 0], at[at > 0]
        if len(rows) == 0:
            break
    return pieces[np.arange(width) >= width - counts[:, None]], counts
