"""Inverse cloze (Lee et al. 2019, "Latent Retrieval for Weakly Supervised Open Domain Question Answering", section 4):
pairs of a query and its passage out of raw text, for the loss of retrieval.

source   query: C </s>           a sentence of a document
target   passage: A B D </s>     the sentences around it; in one of ten rows with the sentence itself
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules.objectives.frames import Frame
from datamodules.objectives.noise import as_fractions, random_bits
from datamodules.objectives.pieces import Pieces
from datamodules.objectives.protocol import Ids, IntArray, RawIds

SENTENCE, WINDOW = 7, 8  # streams of random numbers
KEPT = 0.1  # of the rows have the sentence in their passage: texts that share words are near as well
PREFIXES = ("query:", "passage:")  # as the task retrieval writes them


@dataclass(frozen=True, eq=False)
class InverseCloze:
    """Takes the longest document of a row, and of its sentences one that the row has not cut, where there is any; a
    query is cut to `room` tokens.

    A document that is one sentence is cut in front of its middle word. (The original drops it.)
    """

    pieces: Pieces
    separator: int
    source: Frame  # with the prefix
    target: Frame
    room: int  # tokens of text in a source
    window: int = 0  # tokens that are taken of a row, from a drawn place on, where it has more; 0 = all

    def raw_length(self, max_source: int, max_target: int = 0) -> int:
        """See `Objective`: a passage may be the whole row."""
        return max((max_target or max_source) - len(self.target), 0) if self.room > 0 else 0

    def lengths(self, raw_lengths: IntArray, samples: IntArray, seed: int) -> tuple[IntArray, IntArray]:  # noqa: ARG002
        """See `Objective`; both are upper bounds, as the loss is not over the tokens of targets."""
        return np.minimum(raw_lengths, self.room) + len(self.source), raw_lengths + len(self.target)

    def apply(self, ids: RawIds, sample: int, seed: int) -> tuple[Ids, Ids]:
        """See `Objective`."""
        ids = self._windowed(ids, sample, seed)
        documents = np.split(ids, np.flatnonzero(ids == self.separator))
        longest = max(range(len(documents)), key=lambda number: len(documents[number]))
        text = documents[longest].astype(np.int32)
        text = text[text != self.separator]
        ends = self.pieces.sentence_ends(text)
        choice, keep = random_bits(seed, sample, SENTENCE, 2)
        if len(ends) > 1:
            cut = longest == 0, longest == len(documents) - 1  # its first sentence, its last
            whole_ones = range(cut[0], len(ends) - cut[1]) or range(len(ends))
            number = whole_ones[int(choice % np.uint64(len(whole_ones)))]
            first, last = int(ends[number - 1]) if number else 0, int(ends[number])
        else:
            words = self.pieces.word_starts(text)
            first, last = 0, int(words[len(words) // 2]) if len(words) > 1 else len(text)
        rest = np.concatenate((text[:first], text[last:]))
        whole = as_fractions(np.array([keep]))[0] < KEPT or not len(rest)
        return self.source.around(text[first:last][: self.room]), self.target.around(text if whole else rest)

    def sentinels_needed(self, raw_length: int) -> int:  # noqa: ARG002 (the protocol's)
        """See `Objective`: none."""
        return 0

    def _windowed(self, ids: RawIds, sample: int, seed: int) -> RawIds:
        places = len(ids) - self.window + 1
        if not self.window or places < 2:
            return ids
        start = int(random_bits(seed, sample, WINDOW, 1)[0] % np.uint64(places))
        return ids[start : start + self.window]
