"""Learning-rate schedules.

A schedule is a pure function: step (0 is the first one) -> factor of the learning rate. Warm-up over W steps takes the
factor (step + 1) / W, so no step runs at rate 0; at and after `total_steps` the factor keeps its end value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from models.optimizers.settings import OptimSettings


def resolve_warmup(warmup_steps: float, total_steps: int) -> int:
    """Give the warm-up, or the fall of wsd, in steps: a number below 1 is a fraction of `total_steps`."""
    return round(warmup_steps * total_steps) if warmup_steps < 1 else round(warmup_steps)


def constant(step: int, total_steps: int, warmup: int) -> float:
    """Give the factor of a constant rate after a linear warm-up."""
    return _warmup(min(step, total_steps), warmup)


def linear(step: int, total_steps: int, warmup: int) -> float:
    """Give the factor of a linear warm-up, then (T - step) / (T - W) down to 0 at step T = `total_steps`."""
    if step >= total_steps:
        return 0.0
    return _warmup(step, warmup) if step < warmup else (total_steps - step) / (total_steps - warmup)


def inverse_sqrt(step: int, total_steps: int, warmup: int) -> float:
    """Give the factor min(s / W, sqrt(W / s)), s = step + 1, W at least 1 (Vaswani et al. 2017, section 5.3)."""
    peak, count = max(1, warmup), min(step, total_steps) + 1
    return min(count / peak, math.sqrt(peak / count))


def flat_inverse_sqrt(step: int, total_steps: int, warmup: int) -> float:
    """Give the factor min(1, sqrt(W / s)), s = step + 1, W at least 1 (Raffel et al. 2020, section 3.1.2): no step is
    smaller for the warm-up."""
    peak, count = max(1, warmup), min(step, total_steps) + 1
    return min(1.0, math.sqrt(peak / count))


def cosanneal(step: int, total_steps: int, warmup: int, restarts: int, gamma: float, floor: float) -> float:
    """Give the factor of cyclic cosine annealing (SGDR, Loshchilov & Hutter 2017, equation 5).

    After a linear warm-up the remaining steps are `restarts` cycles of equal length. Cycle i (from 0) falls from its
    peak max(gamma**i, floor) to the floor: floor + (peak - floor) * (1 + cos(pi * share)) / 2, where `share` of the
    cycle is done, 0 to 1; the next cycle starts at once from its own peak. `floor` is min_lr / learning_rate.
    """
    floor = min(1.0, floor)
    if step >= total_steps:
        return floor
    if step < warmup:
        return _warmup(step, warmup)
    cycle, done = divmod((step - warmup) * restarts, total_steps - warmup)
    peak = max(gamma**cycle, floor)
    return floor + (peak - floor) * (1 + math.cos(math.pi * done / (total_steps - warmup))) / 2


def cyclic(step: int, total_steps: int, warmup: int, restarts: int, floor: float) -> float:
    """Give the factor of the triangular policy (Smith 2017, "Cyclical Learning Rates", section 3.1).

    All steps are `restarts` cycles of equal length, in whole steps. Each rises from the floor to 1 and falls back:
    floor + (1 - floor) * (1 - |2 * share - 1|), with the share of the cycle at the middle of the step, so that no step
    has rate 0. The warm-up bounds it from above. `floor` is min_lr / learning_rate.
    """
    floor = min(1.0, floor)
    if step >= total_steps:
        return floor
    cycles = min(restarts, total_steps)
    cycle = ((step + 1) * cycles - 1) // total_steps
    first, end = (number * total_steps // cycles for number in (cycle, cycle + 1))
    share = (step - first + 0.5) / (end - first)
    return min(floor + (1 - floor) * (1 - abs(2 * share - 1)), _warmup(step, warmup))


def cosine(step: int, total_steps: int, warmup: int, floor: float) -> float:
    """Give the factor of one half of a cosine, from 1 after the warm-up to the floor (min_lr / learning_rate)."""
    return cosanneal(step, total_steps, warmup, 1, 1.0, floor)


def polynomial(step: int, total_steps: int, warmup: int, power: float, floor: float) -> float:
    """Give the factor floor + (1 - floor) * left ** power, where `left` of the steps after the warm-up is to come."""
    floor = min(1.0, floor)
    if step >= total_steps:
        return floor
    if step < warmup:
        return _warmup(step, warmup)
    left: float = ((total_steps - step) / (total_steps - warmup)) ** power
    return floor + (1 - floor) * left


def wsd(step: int, total_steps: int, warmup: int, decay: int, floor: float) -> float:
    """Give the factor of warm-up, a constant rate, and a straight fall to the floor in the last `decay` steps.

    (Warmup-stable-decay: Hu et al. 2024, "MiniCPM", section 4; the straight fall is that of Hägele et al. 2024.)
    """
    floor = min(1.0, floor)
    if step >= total_steps:
        return floor
    fall = min(1.0, (total_steps - step) / decay) if decay else 1.0
    return min(_warmup(step, warmup), floor + (1 - floor) * fall)


def plateau(step: int, total_steps: int, warmup: int, left: float, floor: float) -> float:
    """Give the factor of a rate of which so much is `left`, but never less than the floor, after a linear warm-up."""
    return constant(step, total_steps, warmup) * max(left, min(1.0, floor))


def schedule(
    optim: OptimSettings, total_steps: int, reductions: Callable[[], int] = lambda: 0
) -> Callable[[int], float]:
    """Give the function step -> factor of the learning rate; the flags hold the limits of all numbers.

    Args:
        reductions: how many times plateau has lowered the rate.
    """
    warmup = resolve_warmup(optim.warmup_steps, total_steps)
    restarts, gamma = optim.optim_cosanneal_restarts, optim.optim_cosanneal_gamma
    floor = optim.optim_cosanneal_min_lr / optim.learning_rate if optim.learning_rate else 0.0
    factors: dict[str, Callable[[int], float]] = {
        "cosanneal": lambda step: cosanneal(step, total_steps, warmup, restarts, gamma, floor),
        "linear": lambda step: linear(step, total_steps, warmup),
        "cyclic": lambda step: cyclic(step, total_steps, warmup, restarts, floor),
        "constant": lambda step: constant(step, total_steps, warmup),
        "inverse_sqrt": lambda step: inverse_sqrt(step, total_steps, warmup),
        "flat_inverse_sqrt": lambda step: flat_inverse_sqrt(step, total_steps, warmup),
        "cosine": lambda step: cosine(step, total_steps, warmup, floor),
        "polynomial": lambda step: polynomial(step, total_steps, warmup, optim.polynomial_power, floor),
        "wsd": lambda step: wsd(step, total_steps, warmup, resolve_warmup(optim.wsd_decay_steps, total_steps), floor),
        "plateau": lambda step: plateau(step, total_steps, warmup, optim.plateau_factor ** reductions(), floor),
    }
    return factors[optim.lr_scheduler]


def build_scheduler(
    optimizer: Optimizer, optim: OptimSettings, total_steps: int, reductions: Callable[[], int] = lambda: 0
) -> LambdaLR | None:
    """Give the schedule to be stepped once after each optimizer step; None where adafactor sets its own rate."""
    return None if optim.learning_rate is None else LambdaLR(optimizer, schedule(optim, total_steps, reductions))


@dataclass
class Plateau:
    """How often the rate was lowered because a figure did not get better."""

    patience: int  # validations
    waited: int = 0  # validations without a gain since the latest, or since the rate was lowered
    reductions: int = 0

    def note(self, better: bool) -> None:
        """Count a validation."""
        self.waited = 0 if better else self.waited + 1
        if self.waited >= self.patience:
            self.waited, self.reductions = 0, self.reductions + 1


def _warmup(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0
