"""How the weights are moved."""

from __future__ import annotations

from dataclasses import dataclass

PLATEAU_KEY = "s2s_plateau"  # in a checkpoint: what the schedule of that name counts
PLATEAU_COUNTS = ("waited", "reductions")
TRAINED_KEY = "s2s_trained_weights"  # there: those that are trained, where "state_dict" has their mean
MEAN_KEY = "s2s_mean_weights"  # in what Lightning loads: the mean, where "state_dict" has those that are trained


@dataclass(frozen=True)
class OptimSettings:
    """How the weights are moved; the names, and what they mean, are those of the flags."""

    optim: str
    learning_rate: float | None  # None: adafactor's own
    lr_scheduler: str
    warmup_steps: float = 0.0  # below 1: a fraction of all steps
    optim_cosanneal_gamma: float = 0.75
    optim_cosanneal_restarts: int = 4
    optim_cosanneal_min_lr: float = 0.0  # the floor of every schedule that has one
    weight_decay: float = 0.0
    grad_clip: float = 0.0
    embedding_learning_rate: float | None = None
    layerwise_lr_decay: float = 1.0
    adam_beta1: float | None = None
    adam_beta2: float | None = None
    adam_epsilon: float | None = None
    polynomial_power: float = 1.0
    wsd_decay_steps: float = 0.1
    plateau_factor: float = 0.5
    plateau_patience: int = 2
    ema_decay: float = 0.0
    scale_parameter: bool = False  # adafactor at a given rate: its steps are in proportion to the weights
