"""Several objectives, one of which is drawn for each row: those of UL2, or sentence order beside another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules.objectives.noise import as_fractions, first_bits
from datamodules.objectives.protocol import Ids, IntArray, Objective, RawIds


@dataclass(frozen=True, eq=False)
class MixedObjectives:
    """All take equally many tokens of the corpus: as many as the one with the longest source, or target, has room for.

    The sources of the others are shorter.
    """

    objectives: tuple[Objective, ...]
    rates: tuple[float, ...]  # how often each comes, in any unit
    stream: int  # of random numbers, that of no other mixture around or within this one

    def raw_length(self, max_source: int, max_target: int = 0) -> int:
        """See `Objective`."""
        return min(objective.raw_length(max_source, max_target) for objective in self._used())

    def lengths(self, raw_lengths: IntArray, samples: IntArray, seed: int) -> tuple[IntArray, IntArray]:
        """See `Objective`; sources are upper bounds where they are in one of the objectives."""
        source, target = np.empty_like(raw_lengths), np.empty_like(raw_lengths)
        chosen = self._chosen(samples, seed)
        for number, objective in enumerate(self.objectives):
            mine = chosen == number
            source[mine], target[mine] = objective.lengths(raw_lengths[mine], samples[mine], seed)
        return source, target

    def apply(self, ids: RawIds, sample: int, seed: int) -> tuple[Ids, Ids]:
        """See `Objective`."""
        return self.objectives[int(self._chosen(np.array([sample]), seed)[0])].apply(ids, sample, seed)

    def sentinels_needed(self, raw_length: int) -> int:
        """See `Objective`."""
        return max(objective.sentinels_needed(raw_length) for objective in self._used())

    def _used(self) -> list[Objective]:
        return [objective for objective, rate in zip(self.objectives, self.rates, strict=True) if rate]

    def _chosen(self, samples: IntArray, seed: int) -> IntArray:
        """The number of each sample's objective."""
        steps = np.cumsum(self.rates) / sum(self.rates)
        last = max(number for number, rate in enumerate(self.rates) if rate)
        drawn = np.searchsorted(steps, as_fractions(first_bits(seed, samples, self.stream)), side="right")
        return np.minimum(drawn, last)
