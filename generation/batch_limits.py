"""How many rows are decoded together: like lengths, within limits of rows and of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from config.flags.inference import DecodeFlags


@dataclass(frozen=True)
class BatchLimits:
    """What a batch of sources may hold on each device."""

    rows: int
    tokens: int = 0  # of the sources, padding included; 0 = no limit. A row that is longer is a batch of its own

    @classmethod
    def of(cls, decode: DecodeFlags) -> BatchLimits:
        """What the flags ask for."""
        return cls(decode.batch_size, decode.max_tokens)

    def starts(self, lengths: Sequence[int] | np.ndarray) -> list[int]:
        """Where each batch begins among sources of these lengths (tokens), the longest first."""
        starts, start = [], 0
        while start < len(lengths):
            starts.append(start)
            start += min(self.rows, max(1, self.tokens // max(1, int(lengths[start])))) if self.tokens else self.rows
        return starts

    def cut(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Row numbers of the batches, the longest rows first."""
        order = longest_first(lengths)
        return np.split(order, self.starts(lengths[order])[1:]) if len(order) else []


def longest_first(lengths: np.ndarray) -> np.ndarray:
    """Row numbers by falling length; rows of one length keep their order."""
    return np.argsort(-lengths.astype(np.int64), kind="stable")
