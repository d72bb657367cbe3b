"""The training rows of several tasks as one split, and which of them an epoch draws.

With rates an epoch has as many rows as there are in all. Each task has its share of them, the same number in every
epoch, taken from an endless sequence of permutations of its rows: over the epochs each row of a task is used equally
often, give or take one. What an epoch takes is a pure function of the seed and the number of the epoch, so that a
resume needs neither counters nor a random state.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np

from datamodules.batching import BatchOptions, BatchPlan, IntArray, random_order, training_plan
from datamodules.encoding.store import EncodedSplit
from utils.errors import raise_if_any
from utils.escapes import printable
from utils.tables import counted

DRAW = 1  # ends the seeds of the draws: batches have [seed, epoch]


class TrainingRows(Protocol):
    """The rows that training takes, and which of them stand in the batches of an epoch."""

    source_lengths: np.ndarray  # (rows,) tokens; of rows without end, of the first ones
    target_lengths: np.ndarray
    special_ids: np.ndarray | None  # tokens of targets that are none of the text; None = they are not told apart
    separator: int | None  # the last token of each of several documents in a row; None = a row is one

    def __len__(self) -> int: ...

    def pairs(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token ids of source and target of each of some rows."""

    def plan(self, options: BatchOptions, seed: int, epoch: int, world_size: int) -> BatchPlan:
        """The batches of an epoch; every epoch has as many steps."""

    def describe(self, names: Sequence[str]) -> str:
        """The tasks in a line, where there are several, by their names."""


class JoinedRows:
    """Rows of several splits, one split behind the other; what training needs of an `EncodedSplit`.

    Args:
        sampling: what an epoch draws of the rows of each; None = every row once.
    """

    special_ids: np.ndarray | None = None
    separator: int | None = None

    def __init__(self, splits: Sequence[EncodedSplit], sampling: Sampling | None = None) -> None:
        self.splits = splits
        self.sampling = sampling or Sampling(tuple(map(len, splits)))
        self.starts = list(accumulate(map(len, splits), initial=0))
        self.source_lengths = np.concatenate([split.source_lengths for split in splits])
        self.target_lengths = np.concatenate([split.target_lengths for split in splits])

    def __len__(self) -> int:
        return self.starts[-1]

    def pairs(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """See `TrainingRows`."""
        found = []
        for row in rows.tolist():
            number = bisect_right(self.starts, row) - 1
            split, own = self.splits[number], row - self.starts[number]
            found.append((split.source_ids(own), split.target_ids(own)))
        return found

    def plan(self, options: BatchOptions, seed: int, epoch: int, world_size: int) -> BatchPlan:
        """See `TrainingRows`."""
        drawn = self.sampling.rows(seed, epoch)
        return training_plan(self.source_lengths, self.target_lengths, options, seed, epoch, world_size, drawn)

    def describe(self, names: Sequence[str]) -> str:
        """See `TrainingRows`."""
        return self.sampling.describe(names) if len(names) > 1 else ""


@dataclass(frozen=True)
class Sampling:
    """What each epoch draws of the rows of every task.

    `counts` are the rows of each task; `shares` those that an epoch takes of it, () = each row once.
    """

    counts: tuple[int, ...]
    shares: tuple[int, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str], counts: Sequence[int], rates: Sequence[float]) -> Sampling:
        """With rates (their sum is 1), or without any.

        Raises:
            UserError: a rate so small that its task has no row in an epoch.
        """
        if not rates:
            return cls(tuple(counts))
        shares = _whole_shares(sum(counts), rates)
        raise_if_any(
            f"-train_task {name}: an epoch of {sum(counts):,} rows has none of it at rate {rate:.3g}; raise the rate,"
            " or the temperature"
            for name, share, rate in zip(names, shares, rates, strict=True)
            if not share
        )
        return cls(tuple(counts), shares)

    def describe(self, names: Sequence[str]) -> str:
        """The tasks in a line, and how many rows an epoch takes of each, where it draws them."""
        shares = [f" {share:,}" for share in self.shares] or [""] * len(names)
        return ", ".join(f"{name}{share}" for name, share in zip(names, shares, strict=True))

    def lines(self, names: Sequence[str]) -> list[str]:
        """What to tell of an epoch that draws its rows, a line a task; none where it takes every row once."""
        if not self.shares:
            return []
        rows = sum(self.shares)
        return [
            f"{printable(name)}: {share:,} of the {rows:,} rows of an epoch ({share / rows:.1%}),"
            f" each of its {counted(count, 'row')} {share / count:.3g} times"
            for name, share, count in zip(names, self.shares, self.counts, strict=True)
        ]

    def rows(self, seed: int, epoch: int) -> IntArray | None:
        """The rows of an epoch by their numbers among all, task by task; a row may occur more than once. None = all."""
        if not self.shares:
            return None
        starts = np.cumsum([0, *self.counts])
        return np.concatenate(
            [
                starts[task] + _drawn(self.counts[task], share, seed, epoch, task)
                for task, share in enumerate(self.shares)
            ]
        )


def _whole_shares(rows: int, rates: Sequence[float]) -> tuple[int, ...]:
    """`rows` shared out by `rates`: rounded down, and the rows left over go to the largest remainders."""
    exact = [rows * rate for rate in rates]
    shares = [int(share) for share in exact]
    order = sorted(range(len(rates)), key=lambda task: (shares[task] - exact[task], task))
    for task in order[: rows - sum(shares)]:
        shares[task] += 1
    return tuple(shares)


def _drawn(count: int, share: int, seed: int, epoch: int, task: int) -> IntArray:
    """The rows of one task in one epoch: `share` places of its endless sequence, from place `epoch * share` on."""
    first, last = epoch * share, (epoch + 1) * share
    rounds = range(first // count, -(-last // count))
    orders = [random_order(np.random.PCG64([seed, task, number, DRAW]), count) for number in rounds]
    begin = first - rounds.start * count
    return np.concatenate(orders)[begin : begin + share]
