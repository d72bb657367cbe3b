"""What a trained tokenizer makes of lines that it was not trained on."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from datamodules.encoding.tokens import make_encoder
from models.sentencepiece_models.fast_tokenizer import BLANK
from utils.tables import format_table, visible

EXAMPLES = 5
SCRIPTS = {  # how names of letters in Unicode begin
    "HANGUL": "Korean",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "CJK": "Chinese",
    "LATIN": "Latin",
    "CYRILLIC": "Cyrillic",
    "ARABIC": "Arabic",
    "THAI": "Thai",
    "DEVANAGARI": "Devanagari",
}
OTHER = "other"
RESTORED_LINES = 2000  # decoding is slow


def language_of(text: str) -> str:
    """The language that most letters of a text are of, as far as they tell it; Latin ones are of many languages."""
    letters: Counter[str] = Counter()
    for letter, count in Counter(text).items():
        if letter.isalpha():
            letters[SCRIPTS.get(unicodedata.name(letter, "").partition(" ")[0], OTHER)] += count
    if letters["Japanese"]:
        letters["Japanese"] += letters.pop("Chinese", 0)
    return max(letters, key=lambda name: (letters[name], name)) if letters else OTHER


@dataclass
class Counts:
    """Sums over some lines."""

    lines: int = 0
    bytes: int = 0
    words: int = 0
    tokens: int = 0
    unknown: int = 0
    single_bytes: int = 0

    def add(self, text: str, ids: Sequence[int], unknown: int, byte_ids: Collection[int]) -> None:
        self.lines += 1
        self.bytes += len(text.encode())
        self.words += len(text.split())
        self.tokens += len(ids)
        self.unknown += sum(id_ == unknown for id_ in ids)
        self.single_bytes += sum(id_ in byte_ids for id_ in ids)

    def rates(self) -> dict[str, Any]:
        tokens = max(self.tokens, 1)
        return {
            "lines": self.lines,
            "tokens": self.tokens,
            "bytes_per_token": round(self.bytes / tokens, 3),
            "tokens_per_word": round(self.tokens / max(self.words, 1), 3),
            "unknown_rate": round(self.unknown / tokens, 6),
            "byte_rate": round(self.single_bytes / tokens, 6),
        }


@dataclass
class Measured:
    """All lines, those of each language, the first few cut into pieces, and how many of them decode to themselves."""

    all: Counts = field(default_factory=Counts)
    by_language: dict[str, Counts] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    restored: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.all.rates(),
            "restored_rate": round(self.restored, 6),
            "by_language": {name: counts.rates() for name, counts in self._languages()},
            "examples": self.examples,
        }

    def _languages(self) -> list[tuple[str, Counts]]:
        return sorted(self.by_language.items(), key=lambda item: (-item[1].bytes, item[0]))

    def table(self) -> list[str]:
        """Lines to print."""
        headers = ["", "lines", "bytes a token", "tokens a word", "unknown", "single bytes"]
        named = self._languages() + [("all", self.all)] * (len(self.by_language) > 1)
        rows = []
        for name, counts in named:
            rates = counts.rates()
            shown = [f"{rates['bytes_per_token']:.2f}", f"{rates['tokens_per_word']:.2f}"]
            shares = [f"{rates['unknown_rate']:.3%}", f"{rates['byte_rate']:.3%}"]
            rows.append([name, f"{counts.lines:,}", *shown, *shares])
        return [
            *format_table(headers, rows),
            f"{self.restored:.1%} of the lines decode to what they were",
            *(f"  {visible(' '.join(example['pieces']), 100)}" for example in self.examples),
        ]


def measured(tokenizer: Any, lines: Sequence[str], model: Any) -> Measured:
    """What `tokenizer` makes of `lines`; `model` is the SentencePiece model it was made from, None where it joins
    bytes."""
    byte_ids = {at for at, piece in enumerate(model.pieces) if piece.type == piece.BYTE} if model else set()

    def shown(id_: int) -> str:
        return str(tokenizer.convert_ids_to_tokens(id_) if model else tokenizer.decode([id_]).replace(" ", BLANK))

    result = Measured()
    tokens = make_encoder(tokenizer).encode(pa.array(lines, pa.large_string()), 0, False)
    pairs = [(text, tokens.row(index)[:-1].tolist()) for index, text in enumerate(lines)]  # without </s>
    for text, ids in pairs:
        for counts in (result.all, result.by_language.setdefault(language_of(text), Counts())):
            counts.add(text, ids, tokenizer.unk_token_id, byte_ids)
    result.examples = [{"text": text, "pieces": [shown(id_) for id_ in ids]} for text, ids in pairs[:EXAMPLES]]
    some = pairs[:RESTORED_LINES]
    same = sum(text == tokenizer.decode(ids) for text, ids in some)
    result.restored = same / max(len(some), 1)
    return result
