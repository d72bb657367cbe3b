"""Means of the weights: their values, and that the trained weights come back bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.optimizers.averages import ExponentialAverage, ScheduleFree
from models.optimizers.build import build_optimizer
from models.optimizers.settings import OptimSettings


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def move(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).pow(2).sum().backward()
        optimizer.step()


def test_the_moving_average_follows_its_formula_and_forgets_the_beginning() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    parameters = dict(model.named_parameters())
    model.weight.data.fill_(7.0)
    average = ExponentialAverage(parameters, 0.5, {})
    expected = 7.0
    for step in range(1, 12):
        model.weight.data.fill_(float(step))
        average.update(step)
        decay = min(0.5, (step + 1) / (step + 10))
        expected = decay * expected + (1 - decay) * step
        assert average.mean()[0].item() == pytest.approx(expected, rel=1e-14)
    with average.switched():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 11.0


def test_the_mean_of_a_run_that_goes_on_is_taken_up() -> None:
    model = nn.Linear(2, 2)
    saved = {"weight": torch.full((2, 2), 3.0)}
    average = ExponentialAverage(dict(model.named_parameters()), 0.9, saved)
    with average.switched():
        assert model.weight.eq(3.0).all()
    saved["weight"].fill_(0.0)
    assert average.mean()[0].eq(3.0).all()


def test_switching_takes_no_memory_and_nests() -> None:
    model = nn.Linear(3, 2)
    average = ExponentialAverage(dict(model.named_parameters()), 0.9, {})
    optimizer = build_optimizer(model, OptimSettings("adam", 0.1, "constant"))
    move(model, optimizer, 2)
    average.update(1)
    trained, place = weights_of(model), model.weight.data_ptr()
    with torch.inference_mode():
        average.switch(to_mean=True)
        assert model.weight.data_ptr() == average.mean()[0].data_ptr()
        with average.switched(to_mean=False):
            assert model.weight.data_ptr() == place
        with average.switched():
            assert average.in_use
        assert average.in_use
        average.switch(to_mean=False)
    assert all(map(torch.equal, model.parameters(), trained))
    assert model.weight.data_ptr() == place
    move(model, optimizer, 1)  # gradients and steps find the parameters
    assert not torch.equal(model.weight, trained[0])


def test_schedule_free_weights_are_those_of_its_own_evaluation_mode() -> None:
    """And the trained ones are left as they were, which its own switching would change in the last bits."""
    pytest.importorskip("schedulefree")
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, OptimSettings("schedulefree", 0.1, "constant", adam_beta1=0.8))
    averages = ScheduleFree(dict(model.named_parameters()), optimizer)
    with averages.switched():  # before any step
        pass
    move(model, optimizer, 3)
    trained = weights_of(model)
    with averages.switched():
        mean = weights_of(model)
    assert all(map(torch.equal, model.parameters(), trained))
    optimizer.eval()
    assert all(map(torch.equal, model.parameters(), mean))
    assert not torch.equal(mean[0], trained[0])
