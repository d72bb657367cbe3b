"""What pretraining asks of an objective: how much text a row takes, its lengths, and the row itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int64]
Ids: TypeAlias = npt.NDArray[np.int32]
RawIds: TypeAlias = npt.NDArray[np.integer[Any]]  # of the corpus: what its shards are stored as


class Objective(Protocol):
    """Raw tokens -> what the encoder reads and what the model learns to predict, both with their special tokens.

    `seed` and the number of the sample decide all noise, so a row is the same in every process and after a resume.
    """

    def raw_length(self, max_source: int, max_target: int = 0) -> int:
        """Tokens of the corpus that a row takes: the most of which no source and no target is too long; 0 = none fit.

        `max_target` 0 = a target may be as long as a source.
        """

    def lengths(self, raw_lengths: IntArray, samples: IntArray, seed: int) -> tuple[IntArray, IntArray]:
        """Tokens of the sources and targets that `apply` gives, without applying it; ignored labels do not count.

        Targets are exact. Sources are exact too where the objective does not say that they are upper bounds.
        """

    def apply(self, ids: RawIds, sample: int, seed: int) -> tuple[Ids, Ids]:
        """Source and target of one sample of `ids`, which are not changed; a target may hold `IGNORE_INDEX`."""

    def sentinels_needed(self, raw_length: int) -> int:
        """The most different sentinels in a row of that many tokens of the corpus."""


def largest_fitting(fits: Callable[[int], bool]) -> int:
    """The largest number from 1 on that `fits`, 0 when 1 does not; whatever is above one that does not fit, neither
    does."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
