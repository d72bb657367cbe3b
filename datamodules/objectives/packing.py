"""Several documents in a row that do not see each other: each is corrupted by itself, and masks keep them apart.

    raw tokens   a b c </s> d e f g </s> h i
    source       a <0> c </s> d <0> g </s> <0> i </s>      1 1 1 1 2 2 2 2 3 3 3     the segments
    target       <0> b </s> <0> e f </s> <0> h </s>        1 1 1 2 2 2 2 3 3 3

A token attends to those of its own segment alone: in the encoder, in the decoder (to earlier ones), and between them.
T5's positions are differences, so that a document is worth the same as in a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.objectives.protocol import Ids, IntArray, Objective, RawIds
from datamodules.objectives.span_corruption import SpanCorruption
from utils.errors import UserError

MOST_PIECES = 1 << 16  # of a row: each has a sample number of its own
MOST_DENSITY = 0.4  # above, a short document may be longer with its sentinels than without


@dataclass(frozen=True, eq=False)
class PackedDocuments:
    """Rows of one raw length, in which `separator` ends each document; the last may go on in another row.

    The lengths depend on where documents end, so `lengths` takes the raw tokens themselves.
    """

    objective: Objective  # of a document: no longer than the document and one token
    separator: int

    def raw_length(self, max_source: int, max_target: int = 0) -> int:
        """Tokens of the corpus that a row takes; rows of few long documents come out shorter than `max_source`."""
        return max(0, min(max_source, max_target or max_source, MOST_PIECES) - 1)

    def lengths(self, rows: Sequence[RawIds], samples: IntArray, seed: int) -> tuple[IntArray, IntArray]:
        """Tokens of the sources and targets that `apply` gives; both are exact."""
        pieces = [[len(piece) for piece in self._pieces(ids)] for ids in rows]
        counts = np.array([len(lengths) for lengths in pieces], np.int64)
        of_row = np.repeat(np.arange(len(rows)), counts)
        number = np.arange(len(of_row)) - np.repeat(np.cumsum(counts) - counts, counts)
        raw_lengths = np.array([length for lengths in pieces for length in lengths], np.int64)
        both = self.objective.lengths(raw_lengths, samples[of_row] * MOST_PIECES + number, seed)
        source, target = (np.bincount(of_row, side, len(rows)).astype(np.int64) for side in both)
        return source, target

    def apply(self, ids: RawIds, sample: int, seed: int) -> tuple[Ids, Ids]:
        """Source and target of a row, each document's with an end token of its own; empty without a document."""
        none = np.zeros(0, np.int32)
        parts = [
            self.objective.apply(piece, sample * MOST_PIECES + number, seed)
            for number, piece in enumerate(self._pieces(ids))
        ]
        return np.concatenate([none, *(source for source, _ in parts)]), np.concatenate(
            [none, *(target for _, target in parts)]
        )

    def sentinels_needed(self, raw_length: int) -> int:
        """See `Objective`: those of a row that is one document."""
        return self.objective.sentinels_needed(raw_length)

    def _pieces(self, ids: RawIds) -> list[RawIds]:
        """The documents of a row without their end tokens."""
        ends = np.flatnonzero(ids == self.separator)
        starts = np.concatenate(([0], ends + 1))
        stops = np.append(ends, len(ids))
        return [ids[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True) if stop > start]


def packed(objective: Objective, separator: int) -> PackedDocuments:
    """`objective` for each document of a row.

    Raises:
        UserError: so much noise that a row may come out too long.
    """
    if isinstance(objective, SpanCorruption) and objective.density > MOST_DENSITY:
        raise UserError(
            f"-pack_documents: with -noise_density {objective.density} a short document may be longer than its text;"
            f" give {MOST_DENSITY} or less"
        )
    return PackedDocuments(objective, separator)
