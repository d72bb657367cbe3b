"""The special tokens around a source or target: those that the tokenizer puts around a text in fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.objectives.protocol import Ids
from models.special_tokens import encoded_source, encoded_target


@dataclass(frozen=True, eq=False)
class Frame:
    """Special tokens in front of a sequence and behind it: none and `</s>` for T5, `<s>` and `</s>` for BART."""

    before: Ids
    behind: Ids

    @classmethod
    def of(cls, before: Sequence[int], behind: Sequence[int]) -> Frame:
        """That of these ids."""
        return cls(np.array(before, np.int32), np.array(behind, np.int32))

    def __len__(self) -> int:
        return len(self.before) + len(self.behind)

    def around(self, ids: Ids) -> Ids:
        """`ids` with the special tokens."""
        return np.concatenate((self.before, ids, self.behind))

    def behind_tokens(self, ids: Sequence[int]) -> Frame:
        """The frame with more tokens in front, behind its own: those of a mode."""
        return Frame(np.concatenate((self.before, np.array(ids, np.int32))), self.behind)


def frames(tokenizer: Any) -> tuple[Frame, Frame]:
    """Of sources and of targets, as `tokenizer` and the encoding of data make them."""
    text = "a"
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    return _frame(encoded_source(tokenizer, text), bare), _frame(encoded_target(tokenizer, text), bare)


def _frame(ids: list[int], bare: list[int]) -> Frame:
    start = next(place for place in range(len(ids)) if ids[place : place + len(bare)] == bare)
    return Frame.of(ids[:start], ids[start + len(bare) :])
