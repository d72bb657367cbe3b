"""Optimizers: one row a name, and what each keeps of a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.loading import is_dense

FUSED_DEVICES = frozenset(("cuda", "cpu", "mps", "xpu"))


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
        from models.optimizers.adafactor import Adafactor

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
