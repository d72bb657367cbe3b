"""Masked language modelling: BERT's masks in the source (Devlin et al. 2019, section 3.1).

A decoder learns the whole text (Raffel et al. 2020, section 3.1.4, call it BERT-style); an encoder by itself, as BERT,
the chosen tokens at their places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules.objectives.frames import Frame
from datamodules.objectives.noise import as_fractions, random_bits
from datamodules.objectives.protocol import Ids, IntArray, RawIds
from utils.padding import IGNORE_INDEX

NOISE = 0  # stream of random numbers
MASKED, SAME = 0.8, 0.1  # of the chosen tokens; the others are random ones


@dataclass(frozen=True, eq=False)
class MaskedLM:
    """Of the chosen tokens 80 % are a mask in the source, 10 % another token, and 10 % as they were."""

    mask: int
    ordinary: Ids  # ids to draw other tokens from
    source: Frame
    target: Frame
    density: float = 0.15  # of the tokens are chosen
    encoder_alone: bool = False  # the target is as long as the source, and holds `IGNORE_INDEX` but at chosen tokens

    def raw_length(self, max_source: int, max_target: int = 0) -> int:
        """See `Objective`."""
        if self.encoder_alone:
            return max(0, max_source - len(self.source))
        return max(0, min(max_source - len(self.source), (max_target or max_source) - len(self.target)))

    def lengths(
        self,
        raw_lengths: IntArray,
        samples: IntArray,  # noqa: ARG002 (the protocol's)
        seed: int,  # noqa: ARG002
    ) -> tuple[IntArray, IntArray]:
        """See `Objective`; both are exact."""
        if self.encoder_alone:
            return raw_lengths + len(self.source), self._chosen(raw_lengths)
        return raw_lengths + len(self.source), raw_lengths + len(self.target)

    def apply(self, ids: RawIds, sample: int, seed: int) -> tuple[Ids, Ids]:
        """See `Objective`."""
        whole = ids.astype(np.int32)
        count = int(self._chosen(np.array([len(ids)]))[0])
        bits = random_bits(seed, sample, NOISE, len(ids) + 2 * count)
        chosen = np.argsort(bits[: len(ids)])[:count]
        bits = bits[len(ids) :]
        random = self.ordinary[(bits[:count] % np.uint64(len(self.ordinary))).astype(np.int64)]
        kinds = as_fractions(bits[count:])
        noised = whole.copy()
        noised[chosen] = np.where(kinds < MASKED, self.mask, np.where(kinds < 1 - SAME, random, whole[chosen]))
        source = self.source.around(noised)
        if not self.encoder_alone:
            return source, self.target.around(whole)
        labels = np.full(len(source), IGNORE_INDEX, np.int32)
        labels[len(self.source.before) + chosen] = whole[chosen]
        return source, labels

    def sentinels_needed(self, raw_length: int) -> int:  # noqa: ARG002 (the protocol's)
        """See `Objective`: none."""
        return 0

    def _chosen(self, raw_lengths: IntArray) -> IntArray:
        """How many tokens of a row are chosen."""
        return np.clip(np.round(raw_lengths * self.density).astype(np.int64), 1, raw_lengths)
