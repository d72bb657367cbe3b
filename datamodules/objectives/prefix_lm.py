"""Prefix language modelling (Raffel et al. 2020, section 3.1.4): the source is the beginning, the target the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules.objectives.frames import Frame
from datamodules.objectives.noise import first_bits
from datamodules.objectives.protocol import Ids, IntArray, RawIds, largest_fitting
from datamodules.objectives.span_corruption import span_counts

SPLIT = 0  # stream of random numbers


@dataclass(frozen=True, eq=False)
class PrefixLM:
    """Of a row of n tokens the source has 1 to n-1, equally often each, as in T5; or with `density` always the same.

    A row of one token is all target.
    """

    source: Frame
    target: Frame
    density: float = 0.0  # of the tokens are target; 0 = drawn

    def raw_length(self, max_source: int, max_target: int = 0) -> int:
        """See `Objective`."""

        def fits(length: int) -> bool:
            least, most = self._least(length), self._most(length)
            source, target = length - least + len(self.source), most + len(self.target)
            return source <= max_source and target <= (max_target or max_source)

        return largest_fitting(fits)

    def lengths(self, raw_lengths: IntArray, samples: IntArray, seed: int) -> tuple[IntArray, IntArray]:
        """See `Objective`; both are exact."""
        if self.density:
            rest, _ = span_counts(raw_lengths, self.density, 1.0)
            rest = np.where(raw_lengths < 2, raw_lengths, rest)
        else:
            places = np.maximum(raw_lengths - 1, 1).astype(np.uint64)
            rest = np.minimum(raw_lengths, 1 + (first_bits(seed, samples, SPLIT) % places).astype(np.int64))
        return raw_lengths - rest + len(self.source), rest + len(self.target)

    def apply(self, ids: RawIds, sample: int, seed: int) -> tuple[Ids, Ids]:
        """See `Objective`."""
        source, _ = self.lengths(np.array([len(ids)]), np.array([sample]), seed)
        split = int(source[0]) - len(self.source)
        whole = ids.astype(np.int32)
        return self.source.around(whole[:split]), self.target.around(whole[split:])

    def sentinels_needed(self, raw_length: int) -> int:  # noqa: ARG002 (the protocol's)
        """See `Objective`: none."""
        return 0

    def _least(self, length: int) -> int:
        """Tokens of the shortest target."""
        if length < 2:
            return length
        return min(max(round(length * self.density), 1), length - 1)

    def _most(self, length: int) -> int:
        return self._least(length) if self.density or length < 2 else length - 1
