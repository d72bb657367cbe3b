"""Sentence order prediction (Lan et al. 2020, "ALBERT", section 3.1) as text to text: are two parts in their order?

source   sop: A </s> B </s>      two parts of a document, cut at the end of a sentence
target   0 </s>                  or 1: B stands in front of A in the document
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules.objectives.frames import Frame
from datamodules.objectives.noise import first_bits, random_bits
from datamodules.objectives.pieces import Pieces
from datamodules.objectives.protocol import Ids, IntArray, RawIds

CHOICE, SWAP, SPLIT = 101, 5, 6  # streams of random numbers
PREFIX, LABELS = "sop:", ("0", "1")
ANY_LENGTH = 1 << 40


@dataclass(frozen=True, eq=False)
class SentenceOrder:
    """Takes the longest document of a row, cut to `room` tokens; half the rows are swapped.

    A document that is one sentence is cut between two words. (The original takes another document's text there, which
    asks for the topic and not for the order.)
    """

    pieces: Pieces
    labels: tuple[Ids, Ids]
    separator: int
    source: Frame  # with the prefix
    target: Frame
    room: int  # tokens of text in a source

    def raw_length(self, max_source: int, max_target: int = 0) -> int:
        """See `Objective`: however long a row is, `room` tokens of it are taken."""
        source = self.room + 1 + len(self.source)
        target = max(map(len, self.labels)) + len(self.target)
        return ANY_LENGTH if source <= max_source and target <= (max_target or max_source) else 0

    def lengths(self, raw_lengths: IntArray, samples: IntArray, seed: int) -> tuple[IntArray, IntArray]:
        """See `Objective`; sources are upper bounds."""
        source = np.minimum(raw_lengths, self.room) + 1 + len(self.source)
        of_labels = np.array([len(label) for label in self.labels])
        return source, of_labels[self._swapped(samples, seed)] + len(self.target)

    def apply(self, ids: RawIds, sample: int, seed: int) -> tuple[Ids, Ids]:
        """See `Objective`."""
        documents = np.split(ids, np.flatnonzero(ids == self.separator))
        text = max(documents, key=len).astype(np.int32)
        text = text[text != self.separator][: self.room]
        places = self._borders(text)
        split = int(places[int(random_bits(seed, sample, SPLIT, 1)[0] % np.uint64(len(places)))]) if len(places) else 0
        swapped = int(self._swapped(np.array([sample]), seed)[0])
        parts = (text[split:], text[:split]) if swapped else (text[:split], text[split:])
        both = np.concatenate((parts[0], np.array([self.separator], np.int32), parts[1]))
        return self.source.around(both), self.target.around(self.labels[swapped])

    def sentinels_needed(self, raw_length: int) -> int:  # noqa: ARG002 (the protocol's)
        """See `Objective`: none."""
        return 0

    def _borders(self, text: Ids) -> IntArray:
        """Where `text` may be cut: behind sentences, else in front of words, else anywhere."""
        for places in (self.pieces.sentence_ends(text)[:-1], self.pieces.word_starts(text)[1:]):
            if len(places):
                return places
        return np.arange(1, len(text))

    def _swapped(self, samples: IntArray, seed: int) -> IntArray:
        return (first_bits(seed, samples, SWAP) >> np.uint64(63)).astype(np.int64)
