"""The Adafactor of devices against the library's, on the CPU: the same steps, the same state, a resume in between."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor as LibraryAdafactor

from models.optimizers import adafactor
from models.optimizers.adafactor import Adafactor

SHAPES = ((6, 4),) * 5 + ((4, 6),) * 2 + ((4,),) * 3 + ((3, 4, 5),) * 2 + ((), (1, 7))


def parameters_of(dtype: torch.dtype) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(1)
    return [nn.Parameter((0.1 * torch.randn(shape, generator=draw)).to(dtype)) for shape in SHAPES]


def optimizer_of(kind: type[LibraryAdafactor], parameters: list[nn.Parameter], automatic: bool) -> LibraryAdafactor:
    groups = [{"params": parameters[:6], "weight_decay": 0.1}, {"params": parameters[6:], "weight_decay": 0.0}]
    rate = None if automatic else 1e-2
    return kind(groups, lr=rate, scale_parameter=automatic, relative_step=automatic, warmup_init=automatic)


def give_gradients(parameters: list[nn.Parameter], step: int) -> None:
    """The same at the same step; one parameter has none in every third, and one none at all."""
    draw = torch.Generator().manual_seed(step)
    for number, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, generator=draw) * 10.0 ** (number % 5 - 3)
        left_out = number == 7 or (number == 1 and step % 3 == 0)
        parameter.grad = None if left_out else gradient.to(parameter.dtype)


@pytest.mark.parametrize("automatic", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_by_shape_are_those_of_the_library(
    automatic: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adafactor, "ELEMENTS_AT_ONCE", 50)  # two matrices of 24 at once
    wanted, found = parameters_of(dtype), parameters_of(dtype)
    library, ours = optimizer_of(LibraryAdafactor, wanted, automatic), optimizer_of(Adafactor, found, automatic)
    assert isinstance(ours, Adafactor)
    for step in range(20):
        for parameters in (wanted, found):
            give_gradients(parameters, step)
        library.step()
        ours.step_by_shape()
        if step == 9:  # either goes on with the other's state, as a resume on another device does
            states = copy.deepcopy((library.state_dict(), ours.state_dict()))
            library, ours = optimizer_of(LibraryAdafactor, wanted, automatic), optimizer_of(Adafactor, found, automatic)
            ours.load_state_dict(states[0])
            library.load_state_dict(states[1])
    tolerance = {"rtol": 1e-5, "atol": 1e-8} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **tolerance)
    states = library.state_dict()["state"], ours.state_dict()["state"]
    assert states[0].keys() == states[1].keys()
    for number, state in states[0].items():
        assert state.keys() == states[1][number].keys()
        for name, value in state.items():
            torch.testing.assert_close(torch.as_tensor(states[1][number][name]), torch.as_tensor(value), **tolerance)


def test_the_cpu_keeps_the_bits_of_the_library() -> None:
    wanted, found = parameters_of(torch.float32), parameters_of(torch.float32)
    for kind, parameters in ((LibraryAdafactor, wanted), (Adafactor, found)):
        optimizer = optimizer_of(kind, parameters, automatic=True)
        for step in range(3):
            give_gradients(parameters, step)
            optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
