"""Rows of pretraining: cuts of equal length of the token streams of corpora, made source and target by an objective.

    row n -> the corpus that has it in the mix, and its cut there -> raw tokens -> source and target with noise of n

Training rows have no end, and besides the seed a row depends on its number alone: a position in the plan is enough to
go on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from datamodules.batching import BatchOptions, BatchPlan, IntArray, consecutive_plan, rows_of_batch
from datamodules.corpus.order import Cuts, Mix
from datamodules.objectives.packing import PackedDocuments
from datamodules.objectives.protocol import Objective
from utils.padding import IGNORE_INDEX

VALIDATION_SEED = 20260101  # of the noise; not -seed, so that runs with other seeds validate on the same rows
SEEN_AHEAD = 1 << 14  # rows whose lengths stand for those of all
READ_AT_ONCE = 4096  # rows
COMPARED = 8  # rows whose tokens a resumed run must have again


class TokenStream(Protocol):
    """What is taken of a tokenized corpus."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Ids of all documents, one behind the other, each with the end token."""


@dataclass(frozen=True)
class Member:
    """A corpus in the mix: its first `stop` tokens are trained on."""

    corpus: TokenStream
    stop: int
    rate: float
    name: str


class CorpusRows:
    """The training rows: see the module's docstring. It gives what training takes of rows (`TrainingRows`).

    Args:
        length: tokens of a cut.
        seed: of the order and of the noise.
        steps: optimizer steps of an epoch of the run, which has nothing to do with passes through the corpora.
        special_ids: tokens of targets that are none of the text.

    Of an objective that packs documents the plan of an epoch reads all of its tokens, which say where they end.

    Raises:
        UserError: a rate so small that its corpus is never read.
    """

    def __init__(
        self,
        members: Sequence[Member],
        length: int,
        objective: Objective | PackedDocuments,
        seed: int,
        steps: int,
        special_ids: np.ndarray,
    ) -> None:
        self.members = members
        self.objective = objective
        self.seed = seed
        self.steps = steps
        self.special_ids: np.ndarray | None = special_ids
        self.separator = separator_of(objective)
        self.mix = Mix.of([member.name for member in members], [member.rate for member in members], seed)
        self.cuts = [Cuts(member.stop, length, seed) for member in members]
        self.raw_lengths = np.array([min(length, member.stop) for member in members])
        self.source_lengths, self.target_lengths = self._lengths(np.arange(SEEN_AHEAD))
        first = (side.tolist() for pair in self.pairs(np.arange(COMPARED)) for side in pair)
        said = ((member.corpus.fingerprint, member.stop, member.rate) for member in members)
        self.fingerprint = _digest([*said, *first])

    def __len__(self) -> int:
        """Rows of one pass through every corpus."""
        return sum(cuts.samples for cuts in self.cuts)

    def pairs(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token ids of source and target of each of some rows, whatever their numbers."""
        return self.pairs_of(rows, self.objective)

    def pairs_of(self, rows: np.ndarray, objective: Objective | PackedDocuments) -> list[tuple[np.ndarray, np.ndarray]]:
        """What another objective makes of the same cuts."""
        numbered = zip(rows.tolist(), self._raw(rows), strict=True)
        return [objective.apply(raw, row, self.seed) for row, raw in numbered]

    def _raw(self, rows: IntArray) -> list[np.ndarray]:
        """The tokens of the corpus that some rows take."""
        corpora, numbers = self.mix.places(rows)
        starts = np.empty_like(numbers)
        for number, cuts in enumerate(self.cuts):
            here = corpora == number
            starts[here] = cuts.starts(numbers[here])
        return [
            self.members[corpus].corpus.tokens(start, start + int(self.raw_lengths[corpus]))
            for corpus, start in zip(corpora.tolist(), starts.tolist(), strict=True)
        ]

    def plan(self, options: BatchOptions, seed: int, epoch: int, world_size: int) -> BatchPlan:
        """The batches of an epoch: the next rows, in their order, but like lengths together within a step."""
        assert seed == self.seed
        longest = int(self.source_lengths.max()), int(self.target_lengths.max())
        count = self.steps * options.accumulate * world_size * rows_of_batch(options, *longest)
        rows = np.arange(epoch * count, (epoch + 1) * count)
        return consecutive_plan(rows, *self._lengths(rows), options, self.steps, world_size)

    def describe(self, names: Sequence[str]) -> str:
        """See `TrainingRows`: the corpora are compared by `fingerprint`."""
        del names
        return ""

    def _lengths(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        if isinstance(self.objective, PackedDocuments):
            parts = [rows[start : start + READ_AT_ONCE] for start in range(0, len(rows), READ_AT_ONCE)]
            found = [self.objective.lengths(self._raw(part), part, self.seed) for part in parts]
            source, target = (np.concatenate(side) for side in zip(*found, strict=True))
            return source, target
        corpora, _ = self.mix.places(rows)
        return self.objective.lengths(self.raw_lengths[corpora], rows, self.seed)


class HeldOutRows:
    """The validation rows: always the same cuts, with the same noise.

    Args:
        cuts: a corpus and the first token of a cut of it, for each row.
        length: tokens of a cut.
    """

    def __init__(
        self, cuts: Sequence[tuple[TokenStream, int]], length: int, objective: Objective | PackedDocuments
    ) -> None:
        self.cuts = cuts
        self.length = length
        self.objective = objective
        pairs = self.pairs(np.arange(len(cuts)))
        self.source_lengths = np.array([len(source) for source, _ in pairs])
        self.target_lengths = np.array([np.count_nonzero(target != IGNORE_INDEX) for _, target in pairs])
        self.fingerprint = _digest(side.tolist() for pair in pairs for side in pair)

    def __len__(self) -> int:
        return len(self.cuts)

    def learnable(self) -> HeldOutRows:
        """All of them."""
        return self

    def pairs(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token ids of source and target of each of some rows."""
        return self.pairs_of(rows, self.objective)

    def pairs_of(self, rows: np.ndarray, objective: Objective | PackedDocuments) -> list[tuple[np.ndarray, np.ndarray]]:
        """See `CorpusRows`."""
        found = []
        for row in rows.tolist():
            corpus, start = self.cuts[row]
            found.append(objective.apply(corpus.tokens(start, start + self.length), row, VALIDATION_SEED))
        return found


@dataclass(frozen=True)
class ClozeRows:
    """The same rows as a query and its passage each: the pairs of a joint loss, out of the very cuts."""

    rows: CorpusRows | HeldOutRows
    objective: Objective

    def pairs(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token ids of query and passage of each of some rows."""
        return self.rows.pairs_of(rows, self.objective)

    @property
    def fingerprint(self) -> str:
        """Changes with what becomes of a cut; there are some rows."""
        first = self.pairs(np.arange(min(COMPARED, len(self.rows))))
        return _digest(side.tolist() for pair in first for side in pair)


def separator_of(objective: Objective | PackedDocuments) -> int | None:
    """The last token of each document of a row, where rows hold several that do not see each other."""
    return objective.separator if isinstance(objective, PackedDocuments) else None


def _digest(parts: Iterable[object]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        digest.update(f"{part}\n".encode())
    return digest.hexdigest()
