"""Ids of texts by SentencePiece itself, for tokenizers that were made from its models: the same, but sooner."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import normalizers

from models.sentencepiece_models.fast_tokenizer import Form
from models.sentencepiece_models.processor import sentencepiece_processor

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# SentencePiece adds up log probabilities in single precision, and those of our models are multiples of 1/256: of so
# many letters every sum is exact.
MOST_LETTERS = 2000


class SentencePieceIds:
    """Encodes texts without special tokens around them. Safe to use from several threads."""

    def __init__(self, tokenizer: Any, processor: SentencePieceProcessor, form: Form) -> None:
        self._rust = tokenizer.backend_tokenizer
        self._processor = processor
        self._form = form
        # Not Python's: its tables are of another version of Unicode.
        self._normalize = (normalizers.NFC() if form == "NFC" else normalizers.NFKC()).normalize_str
        added = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        self._first_letters = {token[0] for token in added}
        self._added = re.compile("|".join(map(re.escape, added)))

    @classmethod
    def of(cls, tokenizer: Any) -> SentencePieceIds | None:
        """None where `tokenizer` is of another kind."""
        found = sentencepiece_processor(tokenizer)
        return cls(tokenizer, *found) if found else None

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts, one after the other, and how many each has."""
        parts: list[str] = []
        owners: list[int] = []
        others: list[int] = []
        for index, text in enumerate(texts):
            cut = self._parts(text)
            parts += cut
            owners += [index] * len(cut)
            if not cut:
                others.append(index)
        rows: list[np.ndarray] = self._processor.encode(parts, num_threads=1, return_type="numpy") if parts else []
        if others:
            encodings = self._rust.encode_batch_fast([texts[index] for index in others], add_special_tokens=False)
            rows += [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
            owners += others
            rows = [rows[at] for at in np.argsort(owners, kind="stable")]
            owners.sort()
        lengths = np.zeros(len(texts), dtype=np.int64)
        np.add.at(lengths, owners, [len(row) for row in rows])
        return np.concatenate(rows) if rows else np.empty(0, dtype=np.int32), lengths

    def _parts(self, text: str) -> list[str]:
        """The text in its normal form, cut at blanks where it is long.

        Nothing where it holds an added token or a word that is too long.
        """
        if any(letter in text for letter in self._first_letters) and self._added.search(text):
            return []
        if not unicodedata.is_normalized(self._form, text):
            text = self._normalize(text)
        if len(text) <= MOST_LETTERS:
            return [text]
        parts = []
        start = 0
        while len(text) - start > MOST_LETTERS:
            cut = text.rfind(" ", start + 1, start + MOST_LETTERS)
            if cut < 0:
                return []
            parts.append(text[start:cut])
            start = cut + 1
        return [*parts, text[start:]]
