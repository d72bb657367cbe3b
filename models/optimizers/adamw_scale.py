"""AdamW whose steps are in proportion to the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

SMALLEST_SCALE = 1e-3  # of a parameter that is nearly 0


class AdamWScale(Optimizer):
    """AdamW with the step of each parameter times the root mean square of its weights, as Adafactor has it.

    Of nanoT5 (Nawrot 2023, `nanoT5/utils/copied_utils.py`, AdamWScale), where it pretrained T5 better than Adafactor;
    the weight decay is in proportion to the learning rate alone. No step waits for the device.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure` gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(group, parameter, self.state[parameter])
        return loss

    def _move(self, group: dict[str, Any], parameter: Tensor, state: dict[str, Any]) -> None:
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        state["step"] += 1
        (beta1, beta2), gradient = group["betas"], parameter.grad
        assert gradient is not None
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = group["lr"] * (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
        scale = (torch.linalg.vector_norm(parameter) / parameter.numel() ** 0.5).clamp(min=SMALLEST_SCALE)
        update = state["exp_avg"] / state["exp_avg_sq"].sqrt().add_(group["eps"])
        parameter.sub_(update.mul_(scale * size))
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
