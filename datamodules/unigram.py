"""The best segmentation of many words at once under a unigram vocabulary, as the Rust tokenizers find it.

The Viterbi search of Kudo (2018, "Subword Regularization", section 3), position by position, for all words together in
numpy: the same double-precision additions in the same order, and of equal scores the first found stays, as in
`Unigram::encode_optimized` of the tokenizers library. Words with a character outside the vocabulary, or that the
normalizer would change, are left to the tokenizer.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from datamodules.byte_encoding import Tokens

_LONGEST = 200  # characters of a word that is segmented here
_GROUP = 1 << 18  # characters at a time, the empty places behind short words too
_SHIFT = 21  # bits of a code point
_START = 0x2581  # ▁, the mark of a word's start
_KEYS = {"type", "unk_id", "vocab", "byte_fallback"}


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
