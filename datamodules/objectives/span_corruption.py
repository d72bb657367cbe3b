"""Span corruption (Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 3.1.4).

raw tokens        Thank you for inviting me to your party last week
source            Thank you <0> me to your party <1> </s>
target            <0> for inviting <1> last week </s>
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from datamodules.objectives.frames import Frame
from datamodules.objectives.noise import first_bits, random_bits, random_parts
from datamodules.objectives.protocol import Ids, IntArray, RawIds, largest_fitting

PARTS, ROLL = 0, 1  # streams of random numbers


@dataclass(frozen=True, eq=False)
class SpanCorruption:
    """Each span of noise is one sentinel in the source; the target is the sentinels, each with its span behind it.

    How many tokens are noise and in how many spans depends on the length alone; where they lie is drawn, every
    division of the noise and of the kept tokens into spans being equally likely. Without `random_roll` a row begins
    with kept tokens and ends in noise, as T5's own do. With it the row is turned by a random number of places, so that
    every place is noise equally often; a span that is cut in two by the ends of the row takes one sentinel more.
    """

    sentinels: Ids  # in the order of use
    source: Frame
    target: Frame
    density: float = 0.15  # of the tokens are noise
    mean_length: float = 3.0  # tokens of a span
    random_roll: bool = False

    def raw_length(self, max_source: int, max_target: int = 0) -> int:
        """See `Objective`. (As `random_spans_helper` of the T5 code has it.)"""

        def fits(length: int) -> bool:
            noise, spans = self._most(length)
            source, target = length - noise + spans + len(self.source), noise + spans + len(self.target)
            return source <= max_source and target <= (max_target or max_source)

        return largest_fitting(fits)

    def lengths(self, raw_lengths: IntArray, samples: IntArray, seed: int) -> tuple[IntArray, IntArray]:
        """See `Objective`; both are exact."""
        noise, spans = span_counts(raw_lengths, self.density, self.mean_length)
        if self.random_roll:
            spans = spans + (self._turns(raw_lengths, samples, seed) < noise - spans)
        return raw_lengths - noise + spans + len(self.source), noise + spans + len(self.target)

    def apply(self, ids: RawIds, sample: int, seed: int) -> tuple[Ids, Ids]:
        """See `Objective`."""
        noise = self.noise_mask(len(ids), sample, seed)
        return self.corrupted(ids, noise)

    def sentinels_needed(self, raw_length: int) -> int:
        """See `Objective`."""
        return self._most(raw_length)[1]

    def noise_mask(self, length: int, sample: int, seed: int) -> npt.NDArray[np.bool_]:
        """(length,) True = noise."""
        noise, spans = one_span_count(length, self.density, self.mean_length)
        if not spans:
            return np.zeros(length, np.bool_)
        kept = length - noise
        bits = random_bits(seed, sample, PARTS, length - 2)
        parts = np.empty(2 * spans, np.int64)
        parts[::2] = random_parts(kept, spans, bits[: kept - 1])
        parts[1::2] = random_parts(noise, spans, bits[kept - 1 :])
        mask = np.repeat(np.arange(2 * spans) % 2 == 1, parts)
        if not self.random_roll:
            return mask
        within = np.zeros(length, np.bool_)  # a span: what comes before is noise too
        np.logical_and(mask[1:], mask[:-1], out=within[1:])
        turn = int(self._turns(np.array([length]), np.array([sample]), seed)[0])
        cut_in_two = noise - spans  # of the turns, as many as there are places within a span: the lowest numbers
        places, turn = (within, turn) if turn < cut_in_two else (~within, turn - cut_in_two)
        first = np.flatnonzero(places)[turn]
        return np.concatenate((mask[first:], mask[:first]))

    def corrupted(self, ids: RawIds, noise: npt.NDArray[np.bool_]) -> tuple[Ids, Ids]:
        """Source and target of `ids` with this noise."""
        first = noise.copy()  # of each span
        first[1:] &= ~noise[:-1]
        marked = ids.astype(np.int32)
        starts = np.flatnonzero(first)
        sentinels = self.sentinels[: len(starts)]
        marked[starts] = sentinels
        source = marked[~noise | first]
        spans = np.cumsum(first)[noise]  # the number of each noise token's span, from 1
        target = np.empty(len(spans) + len(starts), np.int32)
        places = np.arange(len(spans)) + spans
        target[places] = ids[noise]
        target[places[first[noise]] - 1] = sentinels
        return self.source.around(source), self.target.around(target)

    def _turns(self, raw_lengths: IntArray, samples: IntArray, seed: int) -> IntArray:
        """A number below the length for each sample: which of its places comes first."""
        return (first_bits(seed, samples, ROLL) % np.maximum(raw_lengths, 1).astype(np.uint64)).astype(np.int64)

    def _most(self, length: int) -> tuple[int, int]:
        """Noise tokens, and the most spans of them."""
        noise, spans = one_span_count(length, self.density, self.mean_length)
        return noise, spans + (self.random_roll and noise > spans)


def span_counts(lengths: IntArray, density: float, mean_length: float) -> tuple[IntArray, IntArray]:
    """Noise tokens and spans of rows of these lengths, halves rounded to even numbers as in Python.

    A row of two tokens or more has at least one of either kind; a shorter one has no noise.
    """
    noise = np.clip(np.rint(lengths * density).astype(np.int64), 1, np.maximum(lengths - 1, 1))
    noise[lengths < 2] = 0
    spans = np.maximum(np.rint(noise / mean_length).astype(np.int64), 1)
    return noise, np.minimum(spans, np.minimum(noise, lengths - noise))


@lru_cache(maxsize=4096)
def one_span_count(length: int, density: float, mean_length: float) -> tuple[int, int]:
    """`span_counts` of one row."""
    noise, spans = span_counts(np.array([length]), density, mean_length)
    return int(noise[0]), int(spans[0])
