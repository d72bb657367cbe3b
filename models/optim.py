"""Optimizers and learning-rate schedules.

A schedule is a pure function: step (0 is the first one) -> factor of the learning rate. Warm-up over W steps takes the
factor (step + 1) / W, so no step runs at rate 0; at and after `total_steps` the factor keeps its end value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from models.loading import is_dense

FUSED_DEVICES = frozenset(("cuda", "cpu", "mps", "xpu"))


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


def build_optimizer(
    model: nn.Module,
    name: str,
    learning_rate: float | None,
    weight_decay: float,
    fused: bool = True,
) -> Optimizer:
    """Give the optimizer of the model's trainable parameters, in two groups: with weight decay, and without.

    `adam` is AdamW (Loshchilov & Hutter 2019), fused where the device can (`fused=False` for fp16 with a gradient
    scaler, which Lightning cannot clip when fused). `adafactor` (Shazeer & Stern 2018) takes its own relative steps
    with warm-up when `learning_rate` is None, and then has no schedule.
    Raises ValueError for an unknown name, and a model without trainable parameters.
    """
    decayed, undecayed = decay_groups(model)
    if not decayed and not undecayed:
        raise ValueError("the model has no trainable parameter")
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    if name == "adam":
        assert learning_rate is not None
        can_fuse = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in decayed + undecayed)
        # None and not False, with which torch takes parameter by parameter where it would take all at once.
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True if fused and can_fuse else None)
    if name == "adafactor":
        from models.adafactor import Adafactor

        automatic = learning_rate is None
        adafactor: Optimizer = Adafactor(
            groups, lr=learning_rate, scale_parameter=automatic, relative_step=automatic, warmup_init=automatic
        )
        return adafactor
    raise ValueError(f"unknown optimizer {name!r}; choose one of adam, adafactor")


def decay_groups(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Give the trainable parameters with weight decay and those without: biases, norms, vectors. Tied ones once.

    T5's relative position biases are biases too, though they are stored as an embedding.
    """
    norms = {
        id(parameter)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }
    decayed: list[Tensor] = []
    undecayed: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim < 2 or id(parameter) in norms or "bias" in name
            (undecayed if free else decayed).append(parameter)
    return decayed, undecayed


def state_problem(name: str, model: nn.Module, saved: Mapping[str, Any], complete: bool) -> str:
    """Why `saved`, from a checkpoint, is not the `state_dict` of the optimizer `name` over `model`; empty if it may be.

    Its rates and the like are set from the flags after it is loaded, whatever they are.

    Args:
        complete: whether every parameter takes part in every step, so that none may lack a state.
    """
    decayed, undecayed = decay_groups(model)
    parameters = [*decayed, *undecayed]
    groups, states = saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        return "param_groups is no list of groups"
    numbers = list(range(len(parameters)))
    owned = [group.get("params") for group in groups]
    whole = all(isinstance(own, list) and all(type(number) is int for number in own) for own in owned)
    if not whole or owned != [numbers[: len(decayed)], numbers[len(decayed) :]]:
        return "param_groups is not of the model's parameters"
    plain = (int, float, bool, tuple, type(None))
    if not all(isinstance(value, plain) for group in groups for key, value in group.items() if key != "params"):
        return "param_groups holds other than numbers"
    if not isinstance(states, dict):
        return "state is no mapping"
    if complete and states and len(states) < len(parameters):
        return "state lacks some of the model's parameters"
    for number, state in states.items():
        if type(number) is not int or number not in numbers or not isinstance(state, dict):
            return "state is not of the model's parameters"
        expected = _state_shapes(name, parameters[number])
        if set(state) != set(expected):
            return f"state.{number} is not one of {name}"
        for key, value in state.items():
            shape = expected[key]
            number_instead = shape == () and type(value) in (int, float)
            if not number_instead and not (is_dense(value) and value.is_floating_point() and value.shape == shape):
                return f"state.{number}.{key} does not fit the parameter"
    return ""


def _state_shapes(name: str, parameter: Tensor) -> dict[str, tuple[int, ...]]:
    """What the optimizer `name` keeps of a parameter; () = a number or a tensor of one."""
    shape = tuple(parameter.shape)
    if name == "adam":
        return {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
    if len(shape) < 2:
        return {"step": (), "RMS": (), "exp_avg_sq": shape}
    return {"step": (), "RMS": (), "exp_avg_sq_row": shape[:-1], "exp_avg_sq_col": shape[:-2] + shape[-1:]}


def current_rate(optimizer: Optimizer) -> float:
    """Give the learning rate of the latest step, for display; for adafactor's own rate the relative step size.

    The latter is min(1e-6 * step, step**-0.5), which is then multiplied by the scale of each parameter.
    """
    group = optimizer.param_groups[0]
    if group["lr"] is not None:
        return float(group["lr"])
    step = max((int(state.get("step", 0)) for state in optimizer.state.values()), default=0)
    return min(1e-6 * step, step**-0.5) if step else 0.0


def resolve_warmup(warmup_steps: float, total_steps: int) -> int:
    """Give the warm-up in steps: a number below 1 is a fraction of `total_steps`."""
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


def schedule(optim: OptimSettings, total_steps: int) -> Callable[[int], float]:
    """Give the function step -> factor of the learning rate; the flags hold the limits of all numbers."""
    warmup = resolve_warmup(optim.warmup_steps, total_steps)
    restarts, gamma = optim.optim_cosanneal_restarts, optim.optim_cosanneal_gamma
    floor = optim.optim_cosanneal_min_lr / optim.learning_rate if optim.learning_rate else 0.0
    factors: dict[str, Callable[[int], float]] = {
        "cosanneal": lambda step: cosanneal(step, total_steps, warmup, restarts, gamma, floor),
        "linear": lambda step: linear(step, total_steps, warmup),
        "cyclic": lambda step: cyclic(step, total_steps, warmup, restarts, floor),
        "constant": lambda step: constant(step, total_steps, warmup),
        "inverse_sqrt": lambda step: inverse_sqrt(step, total_steps, warmup),
    }
    return factors[optim.lr_scheduler]


def build_scheduler(optimizer: Optimizer, optim: OptimSettings, total_steps: int) -> LambdaLR | None:
    """Give the schedule to be stepped once after each optimizer step; None where adafactor sets its own rate."""
    return None if optim.learning_rate is None else LambdaLR(optimizer, schedule(optim, total_steps))


def _warmup(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0
