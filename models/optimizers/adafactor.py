"""Adafactor (Shazeer & Stern 2018) that a device computes in a few dozen launches, and without a wait of the host."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.optimization import Adafactor as LibraryAdafactor

ELEMENTS_AT_ONCE = 1 << 25  # of stacked gradients: 128 MiB, however large the model is


class Adafactor(LibraryAdafactor):  # type: ignore[misc]
    """The library's Adafactor, state and settings included; without a first moment.

    On the CPU it is the library's own step. Other devices get some thirty launches for all parameters of one shape
    (the library: 24 for each parameter) and equal results but for the rounding of fp32. Beside the state that needs
    `ELEMENTS_AT_ONCE` numbers, or as many as the largest parameter has if they are more; twice that with weight decay,
    or with weights in half precision. The library's step needs up to three times the largest parameter.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure` gives."""
        if all(part.device.type == "cpu" for group in self.param_groups for part in group["params"]):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.step_by_shape()
        return loss

    @torch.no_grad()
    def step_by_shape(self) -> None:
        """The step that devices take: the parameters of one shape, and with as many steps behind them, together."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["step"] = int(state.get("step", 0)) + 1
                    alike[parameter.shape, parameter.dtype, parameter.device, state["step"]].append(parameter)
            for parameters in alike.values():
                for some in _parts(parameters):
                    self._step_stacked(group, some)

    def _step_stacked(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """The step of parameters of one shape; all numbers of one parameter lie in one row of what is stacked."""
        states = [self.state[parameter] for parameter in parameters]
        step, (tiny, smallest_scale) = states[0]["step"], group["eps"]
        share = step ** group["decay_rate"]  # of the new squares in their running average
        rms = torch.stack(torch._foreach_norm(parameters, 2, torch.float32)) / parameters[0].numel() ** 0.5
        update = torch.stack([parameter.grad for parameter in parameters]).float()  # type: ignore[misc]
        if update.ndim > 2:
            row = _average(states, "exp_avg_sq_row", _mean_square(update, -1) + tiny, share)
            column = _average(states, "exp_avg_sq_col", _mean_square(update, -2) + tiny, share)
            update.mul_((row / row.mean(-1, keepdim=True)).rsqrt_().unsqueeze(-1)).mul_(column.rsqrt().unsqueeze(-2))
        else:
            update.mul_(_average(states, "exp_avg_sq", update.square().add_(tiny), share).rsqrt())
        per_row = (-1, *[1] * parameters[0].ndim)
        norm = torch.linalg.vector_norm(update.flatten(1) if update.ndim > 1 else update.unsqueeze(1), dim=1)
        too_large = (norm / (parameters[0].numel() ** 0.5 * group["clip_threshold"])).clamp_(min=1.0)
        # The library's own function for the rate, with a scale of 1: that of a parameter is known on the device only.
        rate = self._get_lr({**group, "scale_parameter": False}, {"step": step})
        rates = rms.clamp(min=smallest_scale) * rate if group["scale_parameter"] else torch.full_like(rms, rate)
        update.mul_((rates / too_large).view(per_row))
        decays, half = group["weight_decay"] != 0, parameters[0].dtype != torch.float32
        if decays or half:
            weights = torch.stack(parameters).float()
            if decays:
                weights.mul_((1 - group["weight_decay"] * rates).view(per_row))
            torch._foreach_copy_(parameters, list(weights.sub_(update).unbind()))
        else:
            torch._foreach_sub_(parameters, list(update.unbind()))
        for state, of_parameter in zip(states, rms.unbind(), strict=True):
            state["RMS"] = of_parameter


def _parts(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters, all of one shape, in parts of at most `ELEMENTS_AT_ONCE`, but of one at least."""
    most = max(1, ELEMENTS_AT_ONCE // max(1, parameters[0].numel()))
    for start in range(0, len(parameters), most):
        yield parameters[start : start + most]


def _mean_square(values: Tensor, dim: int) -> Tensor:
    mean: Tensor = torch.linalg.vector_norm(values, dim=dim).square_().div_(values.shape[dim])
    return mean


def _average(states: list[dict[str, Any]], name: str, squares: Tensor, share: float) -> Tensor:
    """The running average of `squares`, stacked; each state then has its own part of it."""
    if name not in states[0]:
        averages = squares * share
    else:
        averages = torch.stack([state[name] for state in states]).float().mul_(1 - share).add_(squares, alpha=share)
    for state, own in zip(states, averages.unbind(), strict=True):
        state[name] = own
    return averages
