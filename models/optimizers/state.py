"""Whether the saved state of an optimizer is one of this model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from models.loading import is_dense
from models.optimizers.build import OPTIMIZER_ROWS, Kept, Part
from models.optimizers.groups import parameter_groups
from models.optimizers.settings import OptimSettings


def state_problem(settings: OptimSettings, model: nn.Module, saved: Mapping[str, Any], complete: bool) -> str:
    """Why `saved`, from a checkpoint, is not the `state_dict` of the optimizer over `model`; empty if it may be.

    Its rates and the like are set from the flags after it is loaded, whatever they are.

    Args:
        complete: whether every parameter takes part in every step, so that none may lack a state.
    """
    row, own_groups = OPTIMIZER_ROWS[settings.optim], parameter_groups(model, settings)
    owners = [(parameter, group.matrices) for group in own_groups for parameter in group.parameters]
    groups, states = saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        return "param_groups is no list of groups"
    owned = [group.get("params") for group in groups]
    whole = all(isinstance(own, list) and all(type(number) is int for number in own) for own in owned)
    numbers = iter(range(len(owners)))
    if not whole or owned != [[next(numbers) for _ in group.parameters] for group in own_groups]:
        return "param_groups is not of the model's parameters"
    plain = (int, float, bool, str, tuple, type(None))
    if not all(isinstance(value, plain) for group in groups for key, value in group.items() if key != "params"):
        return "param_groups holds other than numbers"
    for name, kind in row.counts.items():
        if not all(type(group.get(name)) in (int, kind) and math.isfinite(group[name]) for group in groups):
            return f"param_groups holds no {name}"
    if not isinstance(states, dict):
        return "state is no mapping"
    if complete and states and len(states) < len(owners):
        return "state lacks some of the model's parameters"
    for number, state in states.items():
        if type(number) is not int or not 0 <= number < len(owners):
            return "state is not of the model's parameters"
        parameter, in_layer = owners[number]
        if problem := _misfit(state, row.kept(tuple(parameter.shape), in_layer), f"state.{number}", settings.optim):
            return problem
    return ""


def _misfit(state: Any, expected: Kept, place: str, name: str) -> str:
    """What is not as expected in the state of a parameter, or in a part of it; empty if nothing is."""
    if not isinstance(state, Mapping):
        return "state is not of the model's parameters"
    if set(state) != set(expected):
        return f"{place} is not one of {name}"
    for key, value in state.items():
        part = expected[key]
        if not isinstance(part, Part):
            if problem := _misfit(value, part, f"{place}.{key}", name):
                return problem
        elif not (part.shape == () and type(value) in (int, float)) and not _fits(value, part):
            return f"{place}.{key} does not fit the parameter"
    return ""


def _fits(value: Any, part: Part) -> bool:
    """Whether a tensor has the shape and the kind of numbers of `part`."""
    if not is_dense(value) or value.shape != part.shape:
        return False
    return value.is_floating_point() if part.dtype == torch.float32 else bool(value.dtype == part.dtype)
