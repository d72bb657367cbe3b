"""BART's noise (Lewis et al. 2020, "BART", section 2.2): sentences in another order, and spans that are one mask each.

As in fairseq's `denoising_dataset.py`, with which the released models were trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from datamodules.objectives.frames import Frame
from datamodules.objectives.noise import Bits, as_fractions, random_bits
from datamodules.objectives.pieces import Pieces
from datamodules.objectives.protocol import Ids, IntArray, RawIds

SENTENCES, LENGTHS, STARTS, RANDOM, INSERTS = range(5)  # streams of random numbers


@dataclass(frozen=True, eq=False)
class TextInfilling:
    """The target is the text as it was. In the source `density` of the words lie in spans that became one mask each.

    Lengths of spans have a Poisson distribution; a span of length 0 is a mask put between two tokens. A source is never
    longer than its target: masks beyond that are left out.
    """

    pieces: Pieces
    mask: int
    source: Frame
    target: Frame
    density: float = 0.3
    mean_length: float = 3.0  # words of a span
    random: float = 0.1  # of the masks are a random token instead
    permuted: float = 1.0  # of the sentences change places

    def raw_length(self, max_source: int, max_target: int = 0) -> int:
        """See `Objective`."""
        return max(0, min(max_source - len(self.source), (max_target or max_source) - len(self.target)))

    def lengths(
        self,
        raw_lengths: IntArray,
        samples: IntArray,  # noqa: ARG002 (the protocol's)
        seed: int,  # noqa: ARG002
    ) -> tuple[IntArray, IntArray]:
        """See `Objective`; sources are upper bounds."""
        return raw_lengths + len(self.source), raw_lengths + len(self.target)

    def apply(self, ids: RawIds, sample: int, seed: int) -> tuple[Ids, Ids]:
        """See `Objective`."""
        whole = ids.astype(np.int32)
        noised = self.infilled(self.reordered(whole, sample, seed), sample, seed)
        return self.source.around(noised), self.target.around(whole)

    def sentinels_needed(self, raw_length: int) -> int:  # noqa: ARG002 (the protocol's)
        """See `Objective`: none."""
        return 0

    def reordered(self, ids: Ids, sample: int, seed: int) -> Ids:
        """`ids` with their sentences in another order; the last one may be cut off by the end of the row."""
        if not self.permuted:
            return ids
        ends = self.pieces.sentence_ends(ids)
        count = len(ends)
        bits = random_bits(seed, sample, SENTENCES, 2 * count)
        moved = np.argsort(bits[:count])[: math.ceil(count * self.permuted)]
        order = np.arange(count)
        order[moved] = moved[np.argsort(bits[count : count + len(moved)])]
        sentences = np.split(ids, ends[:-1])
        return np.concatenate([ids[:0], *(sentences[number] for number in order)])

    def infilled(self, ids: Ids, sample: int, seed: int) -> Ids:
        """`ids` with spans of words in place of which there are masks."""
        starts = self.pieces.word_starts(ids)
        words = len(starts)
        budget = math.ceil(words * self.density)
        if not budget:
            return ids
        lengths = self._span_lengths(budget, random_bits(seed, sample, LENGTHS, 2 * budget + 16))
        inserts = int((lengths == 0).sum())
        lengths = lengths[lengths > 0]
        chosen = np.argsort(random_bits(seed, sample, STARTS, words))[: len(lengths)]
        edges = np.append(starts, len(ids))
        begins, ends = edges[chosen], edges[np.minimum(chosen + lengths, words)]
        marked = ids.copy()
        marked[begins] = self._masks(len(begins), random_bits(seed, sample, RANDOM, 2 * len(begins)))
        change = -np.bincount(ends, minlength=len(ids) + 1)  # of the spans that a token lies in behind their first
        change[begins + 1] += 1
        kept = marked[np.cumsum(change[:-1]) <= 0]
        inserts = min(inserts, len(ids) - len(kept))
        total = len(kept) + inserts
        bits = random_bits(seed, sample, INSERTS, total + 2 * inserts)
        inserted = np.zeros(total, np.bool_)
        inserted[np.argsort(bits[:total])[:inserts]] = True
        result = np.empty(total, np.int32)
        result[inserted] = self._masks(inserts, bits[total:])
        result[~inserted] = kept
        return result

    def _span_lengths(self, budget: int, bits: Bits) -> IntArray:
        """Lengths of spans in words, drawn until their sum is `budget`; the last one is made to fit."""
        lengths = np.searchsorted(poisson_steps(self.mean_length), as_fractions(bits), side="right")
        sums = np.cumsum(lengths)
        last = min(int(np.searchsorted(sums, budget)), len(lengths) - 1)
        lengths = lengths[: last + 1]
        lengths[last] = budget - (sums[last - 1] if last else 0)
        return lengths

    def _masks(self, count: int, bits: Bits) -> Ids:
        """`count` masks, some of them random tokens; two random numbers each."""
        ordinary = self.pieces.ordinary
        tokens = ordinary[(bits[:count] % np.uint64(len(ordinary))).astype(np.int64)]
        return np.where(as_fractions(bits[count:]) < self.random, tokens, np.int32(self.mask))


@lru_cache(maxsize=8)
def poisson_steps(mean: float) -> npt.NDArray[np.float64]:
    """Probability of at most 0, 1, 2, ... of a Poisson distribution, until nothing is left."""
    logs = [number * math.log(mean) - mean - math.lgamma(number + 1) for number in range(int(2 * mean + 64))]
    steps: npt.NDArray[np.float64] = np.minimum(np.cumsum(np.exp(logs)), 1.0)
    return steps
