"""Which tokens the samples of an endless training run are: a pure function of their numbers, with nothing to store.

    sample n of a mix -> corpus i and a number of its own -> (epoch, place in it) -> permuted cut -> first token

A resume begins at any number in the same time, and no rank, worker or batch size changes what a number stands for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.batching import IntArray
from datamodules.objectives.noise import mixed
from utils.errors import UserError

ROUNDS = 4  # of the Feistel network: pseudo-random where the round function is (Luby and Rackoff 1988)
BLOCK = 1 << 16  # samples of a mix, of which each corpus has the same share in every block
_PERMUTE, _SHIFT, _MIX = 1, 2, 3  # what a key is for


def permuted(indices: IntArray, count: int, keys: Sequence[int]) -> IntArray:
    """Where a permutation of `count` numbers, chosen by `keys`, takes the `indices` (each below `count`).

    A Feistel network over the next even number of bits; what falls outside is sent through again (cycle walking,
    Black and Rogaway 2002), four times at most on average.
    """
    half = max(1, (max(count - 1, 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    rounds = np.frombuffer(_bits(keys, 8 * ROUNDS), dtype="<u8")
    values = np.array(indices, dtype=np.uint64)
    walking = np.arange(len(values))
    while len(walking):
        left, right = values[walking] >> shift, values[walking] & mask
        for key in rounds:
            left, right = right, left ^ (mixed(right ^ key) & mask)
        values[walking] = (left << shift) | right
        walking = walking[values[walking] >= count]
    return values.astype(np.int64)


def _bits(keys: Sequence[int], size: int) -> bytes:
    return hashlib.blake2b(" ".join(map(str, keys)).encode(), digest_size=size).digest()


@dataclass(frozen=True)
class Cuts:
    """The samples of one corpus: its stream of `tokens` tokens cut into runs of `length`, shuffled in every epoch.

    Every epoch cuts at another place, so that the same text is seen with other beginnings; fewer than twice `length`
    tokens at the two ends are left out of an epoch. A stream shorter than `length` is one sample.
    """

    tokens: int
    length: int
    seed: int

    @property
    def samples(self) -> int:
        """Samples of an epoch."""
        return max(1, (self.tokens - self.length + 1) // self.length)

    def starts(self, numbers: IntArray) -> IntArray:
        """The first token of each sample of the endless sequence."""
        numbers = np.asarray(numbers, dtype=np.int64)
        epochs, places = np.divmod(numbers, self.samples)
        starts = np.zeros_like(numbers)
        if self.tokens <= self.length:
            return starts
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            order = permuted(places[here], self.samples, (_PERMUTE, self.seed, epoch))
            room = min(self.length, self.tokens - self.samples * self.length + 1)
            shift = int.from_bytes(_bits((_SHIFT, self.seed, epoch), 8), "little") % room
            starts[here] = order * self.length + shift
        return starts


@dataclass(frozen=True)
class Mix:
    """Which corpus each sample of an endless sequence comes from, at fixed rates, and its number in that corpus."""

    shares: tuple[int, ...]  # of the samples of a block
    seed: int

    @classmethod
    def of(cls, names: Sequence[str], rates: Sequence[float], seed: int) -> Mix:
        """At rates, whose sum may be any.

        Raises:
            UserError: a rate so small that its corpus has no sample in a block.
        """
        ends = np.rint(np.cumsum(rates) / np.sum(rates) * BLOCK).astype(int)
        shares = np.diff(ends, prepend=0).tolist()
        for name, rate, share in zip(names, rates, shares, strict=True):
            if not share:
                raise UserError(f"-corpus {name}: of {BLOCK:,} samples none is of it at rate {rate:g}; raise the rate")
        return cls(tuple(shares), seed)

    def places(self, numbers: IntArray) -> tuple[IntArray, IntArray]:
        """The corpus of each sample, and its number among the samples of that corpus."""
        numbers = np.asarray(numbers, dtype=np.int64)
        if len(self.shares) == 1:
            return np.zeros_like(numbers), numbers
        blocks, places = np.divmod(numbers, BLOCK)
        slots = np.empty_like(places)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            slots[here] = permuted(places[here], BLOCK, (_MIX, self.seed, block))
        ends = np.cumsum(self.shares)
        corpora = np.searchsorted(ends, slots, side="right")
        shares = np.asarray(self.shares)[corpora]
        return corpora, blocks * shares + slots - (ends[corpora] - shares)
