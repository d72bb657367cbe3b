"""Flags of `tune.py`; all of train.py's are flags of it as well. No torch import."""

from __future__ import annotations

import dataclasses

from config.flags.train import TrainConfig
from config.parser import free

PRUNERS = ("asha", "median", "none")


@dataclasses.dataclass(frozen=True)
class SearchFlags:
    """Search"""

    search_space: str = free(
        "",
        "YAML file with the flags to search: a list of values, or {min, max} and perhaps log: true or step; the first"
        " word of the command line may be its name.",
        required=True,
        metavar="FILE.yaml",
        path="read",
    )
    trials: int = free(20, "Trials in all; a finished search goes on with a larger number.", minimum=1, maximum=10**4)
    jobs: int = free(
        0,
        "Trials at the same time, each on one GPU; 0 = as many as there are GPUs, one on the CPU; 1 = one trial on all"
        " devices.",
        minimum=0,
        maximum=1000,
    )
    prune: str = free(
        "asha",
        "Which trials are stopped early, by -monitor's best figure so far: asha = at 1, 3, 9, ... times -prune_after"
        " validations those outside the best third; median = after each validation those below the median of the"
        " finished trials; none = all run to their end.",
        choices=PRUNERS,
    )
    prune_after: int = free(1, "Validations of a trial before it may be stopped.", minimum=1, maximum=10**6)
    refit_seeds: int = free(
        3,
        "Seeds, other than the trials', with which the best flags and the flags without any search are trained once"
        " more at the end, to set the gain beside the noise of seeds; 0 = off.",
        minimum=0,
        maximum=1000,
    )


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The flags of a search beyond those of its trials."""

    search: SearchFlags = SearchFlags()


@dataclasses.dataclass(frozen=True)
class TuneConfig(TrainConfig):
    """Everything that a search is made of: the flags of all its trials, and its own."""

    search: SearchFlags = SearchFlags()
