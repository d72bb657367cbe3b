"""UL2's mixture of denoisers (Tay et al. 2022, "UL2: Unifying Language Learning Paradigms", section 3.1.2, table 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from datamodules.objectives.frames import Frame
from datamodules.objectives.mixed import MixedObjectives
from datamodules.objectives.prefix_lm import PrefixLM
from datamodules.objectives.protocol import Ids, Objective
from datamodules.objectives.span_corruption import SpanCorruption

CHOICE = 100  # stream of random numbers
MODES = {"R": "[NLU]", "X": "[NLG]", "S": "[S2S]"}  # the texts that the released model has in front of its sources
SPANS = {"R": ((3.0, 0.15), (8.0, 0.15)), "X": ((3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5))}
SUFFIX = 0.25  # of a row is target where one span is taken, at its end


def ul2(
    sentinels: Ids,
    frames: tuple[Frame, Frame],
    modes: Mapping[str, Sequence[int]],
    rates: Mapping[str, float] | None = None,
    random_roll: bool = False,
) -> MixedObjectives:
    """The seven denoisers of the paper, equally often each, or the modes R, X and S at these rates.

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
    denoisers = [(mode, denoiser) for mode, of_mode in by_mode.items() for denoiser in of_mode]
    return MixedObjectives(
        tuple(denoiser for _, denoiser in denoisers),
        tuple(rates[mode] / len(by_mode[mode]) if rates else 1.0 for mode, _ in denoisers),
        CHOICE,
    )
