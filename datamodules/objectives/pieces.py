"""What the ids of a tokenizer are: ordinary or special, where words begin, and where sentences end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.objectives.protocol import Ids, IntArray

BLANKS = ("▁", "Ġ")  # how a piece begins that has a blank in front: SentencePiece's, byte-level BPE's
SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")
CLOSING = "\"'”’」』)]》>"

Table = npt.NDArray[np.bool_]  # by id


@dataclass(frozen=True, eq=False)
class Pieces:
    """Tables of a vocabulary. Without pieces that begin with a blank every token is a word of its own."""

    ordinary: Ids  # all ids that are text
    starts: Table  # begin a word
    ends: Table  # may end a sentence
    always: Table  # end one whatever comes next: the end of a document, a line break

    @classmethod
    def of(cls, tokenizer: Any) -> Pieces:
        """Those of `tokenizer`, whose end token stands between documents."""
        vocabulary = tokenizer.get_vocab()
        names = [""] * (max(vocabulary.values()) + 1)  # "" where an id has no token
        for name, number in vocabulary.items():
            names[number] = name
        texts = [tokenizer.convert_tokens_to_string([name]) if name else "" for name in names]
        special = np.array([not name for name in names])
        special[[*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()]] = True
        starts = np.array([name.startswith(BLANKS) for name in names])
        ends = np.array([text.rstrip(CLOSING).endswith(SENTENCE_ENDS) for text in texts])
        always = np.array([text.endswith("\n") for text in texts])
        always[tokenizer.eos_token_id] = True
        if not starts.any():
            starts[:] = True
        return cls(np.flatnonzero(~special).astype(np.int32), starts | special, ends & ~special, always)

    def word_starts(self, ids: Ids) -> IntArray:
        """Places of `ids` where a word begins; the first is 0."""
        starts = self.starts[ids]
        starts[:1] = True
        return np.flatnonzero(starts)

    def sentence_ends(self, ids: Ids) -> IntArray:
        """Places behind the sentences of `ids`; the last is their end. What ends one is followed by a new word."""
        ends = self.ends[ids]
        ends[:-1] &= self.starts[ids[1:]]
        ends |= self.always[ids]
        ends[:-1] &= ~ends[1:]
        ends[-1:] = True
        return np.flatnonzero(ends) + 1
