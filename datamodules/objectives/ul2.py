"""UL2's mixture of denoisers (Tay et al. 2022, "UL2: Unifying Language Learning Paradigms", section 3.1.2, table 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datamodules.objectives.frames import Frame
from datamodules.objectives.noise import as_fractions, first_bits
from datamodules.objectives.prefix_lm import PrefixLM
from datamodules.objectives.protocol import Ids, IntArray, Objective, RawIds
from datamodules.objectives.span_corruption import SpanCorruption

CHOICE = 2  # stream of random numbers; a denoiser has streams of its own
MODES = {"R": "[NLU]", "X": "[NLG]", "S": "[S2S]"}  # the texts that the released model has in front of its sources
SPANS = {"R": ((3.0, 0.15), (8.0, 0.15)), "X": ((3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5))}
SUFFIX = 0.25  # of a row is target where one span is taken, at its end


@dataclass(frozen=True, eq=False)
class UL2:
    """Every row has one of the denoisers, drawn for it; all take equally many tokens of the corpus.

    So a row has as many as the denoiser with the longest source, or target, has room for; the others' are shorter.
    """

    denoisers: tuple[Objective, ...]
    rates: tuple[float, ...]  # of the denoisers; their sum is 1

    @classmethod
    def of(
        cls,
        sentinels: Ids,
        frames: tuple[Frame, Frame],
        modes: Mapping[str, Sequence[int]],
        shares: Mapping[str, float] | None = None,
        random_roll: bool = False,
    ) -> UL2:
        """The seven of the paper, equally often each, or the modes R, X and S as often as `shares` says.

        Args:
            modes: ids of the tokens in front of the sources of a mode.
        """
        source, target = frames
        by_mode: dict[str, list[Objective]] = {
            mode: [
                SpanCorruption(sentinels, source.behind_tokens(modes[mode]), target, density, mean_length, random_roll)
                for mean_length, density in spans
            ]
            for mode, spans in SPANS.items()
        }
        by_mode["S"] = [PrefixLM(source.behind_tokens(modes["S"]), target, SUFFIX)]
        count = sum(map(len, by_mode.values()))
        rates = [
            (shares[mode] / len(denoisers) if shares else 1 / count)
            for mode, denoisers in by_mode.items()
            for _ in denoisers
        ]
        whole = sum(rates)
        return cls(
            tuple(denoiser for denoisers in by_mode.values() for denoiser in denoisers),
            tuple(rate / whole for rate in rates),
        )

    def raw_length(self, max_source: int, max_target: int = 0) -> int:
        """See `Objective`."""
        return min(denoiser.raw_length(max_source, max_target) for denoiser in self._used())

    def lengths(self, raw_lengths: IntArray, samples: IntArray, seed: int) -> tuple[IntArray, IntArray]:
        """See `Objective`; both are exact."""
        source, target = np.empty_like(raw_lengths), np.empty_like(raw_lengths)
        chosen = self._chosen(samples, seed)
        for number, denoiser in enumerate(self.denoisers):
            mine = chosen == number
            source[mine], target[mine] = denoiser.lengths(raw_lengths[mine], samples[mine], seed)
        return source, target

    def apply(self, ids: RawIds, sample: int, seed: int) -> tuple[Ids, Ids]:
        """See `Objective`."""
        return self.denoisers[int(self._chosen(np.array([sample]), seed)[0])].apply(ids, sample, seed)

    def sentinels_needed(self, raw_length: int) -> int:
        """See `Objective`."""
        return max(denoiser.sentinels_needed(raw_length) for denoiser in self._used())

    def _used(self) -> list[Objective]:
        return [denoiser for denoiser, rate in zip(self.denoisers, self.rates, strict=True) if rate]

    def _chosen(self, samples: IntArray, seed: int) -> npt.NDArray[np.int64]:
        """The number of each sample's denoiser."""
        steps = np.cumsum(self.rates)
        steps[-1] = 1.0
        return np.searchsorted(steps, as_fractions(first_bits(seed, samples, CHOICE)), side="right")
