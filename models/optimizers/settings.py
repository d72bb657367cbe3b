"""How the weights are moved."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimSettings:
    """How the weights are moved; the names are those of the flags."""

    optim: str
    learning_rate: float | None  # None: adafactor's own
    lr_scheduler: str
    warmup_steps: float  # below 1: a fraction of all steps
    optim_cosanneal_gamma: float
    optim_cosanneal_restarts: int
    optim_cosanneal_min_lr: float  # the floor of cosanneal and cyclic
    weight_decay: float
    grad_clip: float
    label_smoothing: float
