"""Random numbers that are a pure function of (seed, sample, stream): the same with every version of numpy.

SplitMix64 (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators", figure 15), whose state is
hashed from the three. Making a generator of numpy's for every row would cost more than the row.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from datamodules.objectives.protocol import IntArray

Bits = npt.NDArray[np.uint64]

STEP = np.uint64(0x9E3779B97F4A7C15)
WORD = (1 << 64) - 1


def random_bits(seed: int, sample: int, stream: int, count: int) -> Bits:
    """`count` random numbers of 64 bits. Streams of a sample are independent of each other."""
    return mixed(_states(seed, np.array([sample]), stream) + np.arange(1, count + 1, dtype=np.uint64) * STEP)


def first_bits(seed: int, samples: IntArray, stream: int) -> Bits:
    """The first random number of the stream of each sample."""
    return mixed(_states(seed, samples, stream) + STEP)


def _states(seed: int, samples: IntArray, stream: int) -> Bits:
    return mixed(_start(seed, stream) ^ samples.astype(np.uint64))


@lru_cache(maxsize=64)
def _start(seed: int, stream: int) -> Bits:
    return mixed(np.array([(seed + (stream + 1) * int(STEP)) & WORD], np.uint64))


def mixed(z: Bits) -> Bits:
    """Each number well mixed: the finaliser of SplitMix64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def as_fractions(bits: Bits) -> npt.NDArray[np.float64]:
    """Numbers from 0 up to, not including, 1."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_parts(total: int, parts: int, bits: Bits) -> IntArray:
    """Lengths of `parts` non-empty parts of `total` items, every division equally likely.

    `bits` are `total - 1`, one for each place where a cut may lie: the smallest are the cuts.
    """
    edges = np.empty(parts + 1, np.int64)
    edges[0], edges[-1] = 0, total
    if parts > 1:
        edges[1:-1] = np.sort(np.argpartition(bits, parts - 2)[: parts - 1]) + 1
    return edges[1:] - edges[:-1]
