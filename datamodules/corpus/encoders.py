"""Documents to token ids at the speed of the fastest library that gives the tokenizer's ids; no special tokens.

`sentencepiece` encodes a Unigram model several times faster than `tokenizers`, but not always alike: equally likely
pieces ("......" as 4 + 2 or 2 + 4 dots) fall otherwise, and letters that combine are normalised by another rule. The
latter are left to the tokenizer. Whether the rest is equal is proved on samples of every piece of the corpus. The
tokenizers of train_tokenizer.py are made so that both are equal.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.encoding.arrays import tokens_of_lists
from datamodules.encoding.sentencepiece_ids import SentencePieceIds
from datamodules.encoding.tokens import is_byte_tokenizer

BYTE_OFFSET = 3  # ByT5: id = byte + 3
MODEL_FILES = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "spm.model")
_JAMO_OR_LINE_END = re.compile("[\u1100-\u115f\u3131-\u314e][\u1160-\u11a2\u314f-\u3163]|\x85")
SAMPLED_FIRST, SAMPLED_EVERY = 100, 200  # documents of a piece that are encoded twice
SAMPLE_LETTERS = 20_000
SAME_SCORE = 1e-3  # of natural logarithms: what float32 sums of long documents differ by


@dataclass(frozen=True)
class EncoderSpec:
    """What a process needs to make an encoder; can be pickled. `name` is told; `key` tells the ids apart."""

    name: str  # bytes, sentencepiece, tokenizers or python
    dtype: str  # of the shards, little-endian
    key: str = ""
    model: bytes = field(default=b"", repr=False)  # of SentencePiece
    rust: str = field(default="", repr=False)  # tokenizer.json
    tokenizer: Any = field(default=None, repr=False)  # one written in Python, or made from a SentencePiece model
    special: tuple[str, ...] = ()  # texts that the tokenizer takes for special tokens


class OtherIdsError(Exception):
    """`sentencepiece` gives a document other ids than the tokenizer: number `at` of those given to `encode`."""

    def __init__(self, at: int, place: str = "") -> None:
        super().__init__(at, place)
        self.at, self.place = at, place


def id_count(tokenizer: Any) -> int:
    """One more than the highest id."""
    highest: int = max(tokenizer.get_vocab().values())
    return max(len(tokenizer), highest + 1)


def encoder_specs(tokenizer: Any) -> list[EncoderSpec]:
    """The encoders that may serve for a tokenizer, the fastest first; the last one is the tokenizer itself."""
    if is_byte_tokenizer(tokenizer):
        return [EncoderSpec("bytes", "|u1")]
    dtype = "<u2" if id_count(tokenizer) <= 1 << 16 else "<u4"
    if not tokenizer.is_fast:
        return [EncoderSpec("python", dtype, tokenizer=tokenizer)]
    if SentencePieceIds.of(tokenizer):
        return [EncoderSpec("sentencepiece", dtype, tokenizer=tokenizer)]
    rust = tokenizer.backend_tokenizer
    rust.no_truncation()
    rust.no_padding()
    text = rust.to_str()
    own = EncoderSpec("tokenizers", dtype, rust=text)
    model = sentencepiece_model(tokenizer, json.loads(text))
    if not model:
        return [own]
    special = tuple(sorted(tokenizer.added_tokens_encoder))
    key = hashlib.blake2b(model, digest_size=16).hexdigest()
    return [EncoderSpec("sentencepiece", dtype, key, model, text, special=special), own]


def sentencepiece_model(tokenizer: Any, content: dict[str, Any]) -> bytes:
    """The SentencePiece model of a tokenizer: its file, or one made of what tokenizer.json holds; b"" without any."""
    known = getattr(tokenizer, "vocab_file", None)
    folder = tokenizer.name_or_path or ""
    for path in (*([known] if known else []), *(os.path.join(folder, name) for name in MODEL_FILES)):
        if str(path).endswith(".model") and os.path.isfile(path):
            return Path(path).read_bytes()
    return _unigram_model(content)


def _unigram_model(content: dict[str, Any]) -> bytes:
    """A SentencePiece model with the pieces and the normalisation of a tokenizer.json; b"" where it has no such."""
    model = content["model"]
    normalizer = content.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    maps = [step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"]
    if model.get("type") != "Unigram" or model.get("unk_id") is None or len(maps) != 1:
        return b""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # its names are made at run time
    added = {token["id"]: token["special"] for token in content["added_tokens"]}
    made = proto.ModelProto()
    made.trainer_spec.model_type = made.trainer_spec.UNIGRAM
    made.trainer_spec.byte_fallback = bool(model.get("byte_fallback"))
    made.trainer_spec.vocab_size = len(model["vocab"])
    made.normalizer_spec.precompiled_charsmap = base64.b64decode(maps[0])
    kinds = made.SentencePiece
    for number, (text, score) in enumerate(model["vocab"]):
        kind = kinds.NORMAL
        if number == model["unk_id"]:
            kind = kinds.UNKNOWN
        elif number in added:
            kind = kinds.CONTROL if added[number] else kinds.USER_DEFINED
        elif made.trainer_spec.byte_fallback and re.fullmatch("<0x[0-9A-F]{2}>", text):
            kind = kinds.BYTE
        made.pieces.add(piece=text, score=score, type=kind)
    return bytes(made.SerializeToString())


def reads_otherwise(text: str) -> bool:
    """Whether `sentencepiece` may normalise a text to another one than `tokenizers`, which looks at one letter with its
    marks at a time: it holds letters that combine (NFC), Korean ones that do so beside each other, or U+0085."""
    if text.isascii():
        return False
    return not unicodedata.is_normalized("NFC", text) or _JAMO_OR_LINE_END.search(text) is not None


class DocumentEncoder:
    """Encodes the documents of one piece of a corpus after the other. Which of them it compares with the tokenizer
    depends on nothing else; `compared` and `ties`, those that got other, equally likely pieces, are of this piece.

    Raises:
        OtherIdsError: from `encode`, when the two differ otherwise.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        self.spec = spec
        self.start_piece()
        self._equal: SentencePieceIds | None = None
        if spec.name == "sentencepiece" and not spec.model:
            tokenizer = copy.deepcopy(spec.tokenizer)
            tokenizer.backend_tokenizer.encode_special_tokens = True
            self._equal = SentencePieceIds.of(tokenizer)
        if spec.rust:
            from tokenizers import Tokenizer

            self._rust = Tokenizer.from_str(spec.rust)
            self._rust.encode_special_tokens = True  # "<mask>" in a text is text
        if spec.model:
            from sentencepiece import SentencePieceProcessor

            self._pieces = SentencePieceProcessor(model_proto=spec.model)
            self._special = re.compile("|".join(map(re.escape, spec.special)) or "$^")

    def start_piece(self) -> None:
        """Count the documents of a piece anew."""
        self.compared = self.ties = self.documents = 0

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the texts one behind the other, in the type of the shards, and how many each has."""
        match self.spec.name:
            case "bytes":
                rows = [text.encode() for text in texts]
                lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
                values: np.ndarray = np.frombuffer(b"".join(rows), dtype=np.uint8)
                return values, lengths
            case "sentencepiece" if self._equal:
                values, lengths = self._equal.encode(texts)
                return values.astype(self.spec.dtype), lengths
            case "sentencepiece":
                found = self._by_sentencepiece(list(texts))
            case "tokenizers":
                found = self._by_tokenizers(texts)
            case _:
                call = self.spec.tokenizer
                ids = call(list(texts), add_special_tokens=False, verbose=False, return_attention_mask=False)
                tokens = tokens_of_lists(ids["input_ids"], [*map(len, ids["input_ids"])], np.int32)
                return tokens.values.astype(self.spec.dtype), tokens.full_lengths
        lengths = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
        return np.concatenate([np.empty(0, np.int32), *found]).astype(self.spec.dtype), lengths

    def _by_tokenizers(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._rust.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def _by_sentencepiece(self, texts: list[str]) -> list[np.ndarray]:
        found: list[np.ndarray] = self._pieces.encode(texts, return_type="numpy", num_threads=1)
        odd = [at for at, text in enumerate(texts) if reads_otherwise(text)]
        for at, ids in zip(odd, self._by_tokenizers([texts[at] for at in odd]), strict=True):
            found[at] = ids
        for at in self._sampled(len(texts)):
            self._compare(texts[at][:SAMPLE_LETTERS], at)
        self.documents += len(texts)
        return found

    def _sampled(self, count: int) -> list[int]:
        """Which of the next documents are compared."""
        numbers = range(self.documents, self.documents + count)
        return [at for at, number in enumerate(numbers) if number < SAMPLED_FIRST or number % SAMPLED_EVERY == 0]

    def _compare(self, text: str, at: int) -> None:
        if reads_otherwise(text) or self._special.search(text):  # the text of a special token stays text in a corpus
            return
        ours, theirs = self._pieces.encode(text), self._rust.encode(text, add_special_tokens=False).ids
        self.compared += 1
        if ours == theirs:
            return
        if not self._is_tie(ours, theirs):
            raise OtherIdsError(at)
        self.ties += 1

    def _is_tie(self, one: list[int], other: list[int]) -> bool:
        """Whether both are pieces of the same text with the same probability."""
        model, size = self._pieces, self._pieces.get_piece_size()
        if max(other) >= size or "".join(model.id_to_piece(one)) != "".join(model.id_to_piece(other)):
            return False
        scores = [sum(map(model.get_score, ids)) for ids in (one, other)]
        return abs(scores[0] - scores[1]) < SAME_SCORE * max(1, len(one) / 100)
