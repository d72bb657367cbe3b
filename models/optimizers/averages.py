"""A mean of the weights, which is validated, exported and predicted with in place of those that are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from models.optimizers.settings import OptimSettings

WARM_UP = 10  # steps: the first ones forget the weights that training began with


class AveragedWeights(ABC):
    """The trained weights of a model and their mean, which change places without a copy.

    Args:
        parameters: those that are trained, by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.in_use = False  # the mean is in the model
        self._others: Sequence[Tensor] = ()  # the trained weights meanwhile

    @abstractmethod
    def mean(self) -> Sequence[Tensor]:
        """Give the mean of each parameter."""

    @abstractmethod
    def update(self, step: int) -> None:
        """Take up the weights after optimizer step `step`, counted from 1."""

    @contextmanager
    def switched(self, to_mean: bool = True) -> Iterator[None]:
        """The model with the mean, or with the trained weights, for a while."""
        before = self.in_use
        self.switch(to_mean)
        try:
            yield
        finally:
            self.switch(before)

    @torch.inference_mode(False)
    @torch.no_grad()
    def switch(self, to_mean: bool) -> None:
        """Put the mean into the model, or the trained weights back."""
        if to_mean == self.in_use:
            return
        incoming = self.mean() if to_mean else self._others
        trained = [parameter.data for parameter in self.parameters.values()]
        for parameter, values in zip(self.parameters.values(), incoming, strict=True):
            parameter.data = values
        self.in_use, self._others = to_mean, trained if to_mean else ()


class ExponentialAverage(AveragedWeights):
    """The exponential moving average: mean = d * mean + (1 - d) * weights after each step.

    d is the decay, in the first steps (step + 1) / (step + 10): else the mean of a short run would be made of the
    weights that it began with (as in TensorFlow's ExponentialMovingAverage).

    Args:
        saved: the mean of a run that goes on, by name; none = the weights as they are.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, saved: Mapping[str, Tensor]) -> None:
        super().__init__(parameters)
        self.decay = decay
        self._mean = [
            torch.empty_like(parameter, requires_grad=False).copy_(saved.get(name, parameter.detach()))
            for name, parameter in parameters.items()
        ]

    def mean(self) -> Sequence[Tensor]:
        return self._mean

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + WARM_UP))
        # Numbers only, no count on the device: nothing waits.
        get_ema_multi_avg_fn(decay)(  # type: ignore[no-untyped-call]
            self._mean, [parameter.data for parameter in self.parameters.values()], step
        )


class ScheduleFree(AveragedWeights):
    """The mean that schedule-free training keeps: its x, made of the trained y and the optimizer's z.

    y = (1 - beta1) * z + beta1 * x (Defazio et al. 2024, equation 3); the package would compute x in place of y, and y
    again from it, with other bits than before.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
        super().__init__(parameters)
        self.optimizer = optimizer

    def mean(self) -> Sequence[Tensor]:
        beta1 = {id(part): group["betas"][0] for group in self.optimizer.param_groups for part in group["params"]}
        states = [self.optimizer.state.get(parameter, {}) for parameter in self.parameters.values()]
        return [
            torch.lerp(parameter.data, state["z"], 1 - 1 / beta1[id(parameter)])
            if "z" in state
            else parameter.data.clone()
            for parameter, state in zip(self.parameters.values(), states, strict=True)
        ]

    def update(self, step: int) -> None:
        """The optimizer takes them up itself."""


def averaged_weights(
    model: nn.Module, settings: OptimSettings, optimizer: Optimizer, saved: Mapping[str, Tensor]
) -> AveragedWeights | None:
    """Give the mean of the weights that the settings ask for; None where they ask for none.

    Args:
        saved: the mean of a run that goes on, by the names of the model.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if settings.optim == "schedulefree":
        return ScheduleFree(trained, optimizer)
    return ExponentialAverage(trained, settings.ema_decay, saved) if settings.ema_decay else None
