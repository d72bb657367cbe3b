"""Every optimizer: its state continues to the very same weights and is checked; its groups; its steps by hand."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from config.flags.optim import OPTIMIZERS
from models.loading import from_config
from models.losses.objective import batch_loss
from models.optimizers.adamw_scale import AdamWScale
from models.optimizers.build import OPTIMIZER_ROWS, build_optimizer, state_memory
from models.optimizers.groups import parameter_groups
from models.optimizers.settings import OptimSettings
from models.optimizers.state import state_problem
from tests.small_configs import config_of
from tests.small_models import example_batch

GROUPED = {"layerwise_lr_decay": 0.5, "embedding_learning_rate": 4e-3}
CASES = [(name, {"learning_rate": 1e-3, **GROUPED}) for name in OPTIMIZERS] + [("adafactor", {"learning_rate": None})]


def settings_of(name: str, **more: Any) -> OptimSettings:
    package = OPTIMIZERS[name].package if name in OPTIMIZERS else ""
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return OptimSettings(
        **{"optim": name, "learning_rate": 1e-3, "lr_scheduler": "constant", "weight_decay": 0.01, **more}
    )


def small(name: str = "t5-untied", **more: Any) -> PreTrainedModel:
    return from_config(config_of(name, **more), seed=1)


def train(model: PreTrainedModel, optimizer: torch.optim.Optimizer, steps: int) -> None:
    batch = example_batch()
    batch["target_index"] = (batch["labels"].flatten() != -100).nonzero().flatten()
    for _ in range(steps):
        optimizer.zero_grad()
        batch_loss(model, batch)[0].backward()
        optimizer.step()


@pytest.mark.parametrize(("name", "more"), CASES)
def test_saved_state_is_taken_and_continues_to_the_very_same_weights(name: str, more: dict[str, Any], tmp_path) -> None:
    """A matrix of 4,096 elements and more has its state in 8 bits where an optimizer does so."""
    settings = settings_of(name, **more)
    model = small(d_ff=128)
    optimizer = build_optimizer(model, settings)
    memory = sum(one.nbytes for one in state_memory(model, settings))
    train(model, optimizer, 3)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    train(model, optimizer, 3)
    resumed = small(d_ff=128)
    resumed_optimizer = build_optimizer(resumed, settings)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state_problem(settings, resumed, state, complete=True) == ""
    kept = [one for of_one in state["state"].values() for one in tensors_of(of_one) if one.ndim]
    assert sum(one.nbytes for one in kept) == memory
    resumed.load_state_dict(weights)
    resumed_optimizer.load_state_dict(state)
    train(resumed, resumed_optimizer, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
    before = small(d_ff=128)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def tensors_of(state: dict[str, Any]) -> list[torch.Tensor]:
    inner = [one for value in state.values() if isinstance(value, dict) for one in tensors_of(value)]
    return [value for value in state.values() if isinstance(value, torch.Tensor)] + inner


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_damaged_state_is_named(name: str) -> None:
    settings, model = settings_of(name), small(d_ff=128)
    optimizer = build_optimizer(model, settings)
    train(model, optimizer, 1)
    whole = optimizer.state_dict()
    number = max(whole["state"], key=lambda key: sum(one.numel() for one in tensors_of(whole["state"][key])))

    def problem(change: Any) -> str:
        damaged = copy.deepcopy(whole)
        change(damaged, inner(damaged["state"][number]))
        return state_problem(settings, model, damaged, complete=True)

    def inner(state: dict[str, Any]) -> dict[str, Any]:
        return next((value for value in state.values() if isinstance(value, dict)), state)

    key = next(
        key for key, value in inner(whole["state"][number]).items() if isinstance(value, torch.Tensor) and value.ndim
    )
    assert f".{key} does not fit the parameter" in problem(lambda _, state: state.update({key: state[key][:-1]}))
    assert f".{key} does not fit the parameter" in problem(
        lambda _, state: state.update({key: state[key].to(torch.int64)})
    )
    assert problem(lambda _, state: state.pop(key)).endswith(f"is not one of {name}")
    assert problem(lambda all_of_it, _: all_of_it["state"].pop(number)) == "state lacks some of the model's parameters"
    assert problem(lambda all_of_it, _: all_of_it["param_groups"][0]["params"].reverse()) == (
        "param_groups is not of the model's parameters"
    )
    others = [other for other in OPTIMIZERS if other not in (name, "adamwscale", "adam")]
    assert all(
        state_problem(settings_of(other), model, whole, True) for other in others if not OPTIMIZERS[other].package
    )
    for count in OPTIMIZER_ROWS[name].counts:
        words = f"param_groups holds no {count}"
        assert problem(lambda all_of_it, _: all_of_it["param_groups"][0].update({count: float("nan")})) == words  # noqa: B023


def test_the_state_of_another_division_into_groups_is_refused() -> None:
    model = small()
    optimizer = build_optimizer(model, settings_of("adam"))
    train(model, optimizer, 1)
    problem = state_problem(settings_of("adam", **GROUPED), model, optimizer.state_dict(), complete=True)
    assert problem == "param_groups is not of the model's parameters"


def rates_of(model: PreTrainedModel, **more: Any) -> dict[str, float]:
    groups = parameter_groups(model, settings_of("adam", **more))
    assert [group.rate for group in groups[:2]] == [1.0, 1.0]
    assert [group.decays for group in groups[:2]] == [True, False]
    rates = {id(parameter): group.rate for group in groups for parameter in group.parameters}
    return {name: rates[id(parameter)] for name, parameter in model.named_parameters()}


def test_each_layer_has_its_own_rate_and_the_embeddings_the_lowest() -> None:
    rates = rates_of(small("bart", encoder_layers=3), layerwise_lr_decay=0.5)
    found = {
        place: {rate for name, rate in rates.items() if name.startswith(f"model.{place}")}
        for place in ("encoder.layers.0", "encoder.layers.2", "decoder.layers.0", "decoder.layers.1", "shared")
    }
    assert found == {
        "encoder.layers.0": {0.25},
        "encoder.layers.2": {1.0},
        "decoder.layers.0": {0.5},
        "decoder.layers.1": {1.0},
        "shared": {0.125},
    }
    assert rates["model.encoder.embed_positions.weight"] == 0.125
    assert rates["model.encoder.layernorm_embedding.weight"] == 1.0


def test_embeddings_have_their_own_rate() -> None:
    for more in ({}, {"layerwise_lr_decay": 0.5}):
        rates = rates_of(small("t5-untied"), embedding_learning_rate=5e-4, **more)
        assert rates["shared.weight"] == 0.5
        assert rates["lm_head.weight"] == 1.0
        assert rates["encoder.block.1.layer.0.SelfAttention.q.weight"] == 1.0
    optimizer = build_optimizer(small(), settings_of("adam", embedding_learning_rate=1e-3))
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


def test_muon_moves_the_matrices_of_the_layers_alone() -> None:
    model = small("t5-untied")
    optimizer = build_optimizer(model, settings_of("muon", adam_beta1=0.8, adam_epsilon=1e-5))
    by_muon = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) not in by_muon}
    assert {name for name in names if not name.endswith("layer_norm.weight")} == {
        "shared.weight",
        "lm_head.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    }
    assert [group.get("betas") for group in optimizer.param_groups] == [None, (0.8, 0.999), (0.8, 0.999)]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.01, 0.0]
    weight = model.encoder.block[0].layer[0].SelfAttention.q.weight
    before = weight.detach().double()
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    step = (weight.detach().double() - before * (1 - 1e-3 * 0.01)) / (1e-3 * 0.2 * max(weight.shape) ** 0.5)
    singular = torch.linalg.svdvals(step)
    assert float(singular.min()) > 0.5
    assert float(singular.max()) < 1.5


def test_a_step_of_adamwscale() -> None:
    """As nanoT5 computes it: AdamW's step times the root mean square of the weights, and the decay after it."""
    weights = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    parameter = nn.Parameter(weights.clone())
    optimizer = AdamWScale([{"params": [parameter]}], lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.5)
    mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
    for step, gradient in enumerate(([[1.0, -2.0]], [[0.5, 4.0]]), 1):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        mean = 0.9 * mean + 0.1 * parameter.grad
        square = 0.99 * square + 0.01 * parameter.grad**2
        size = 0.1 * (1 - 0.99**step) ** 0.5 / (1 - 0.9**step) * (weights.square().mean() ** 0.5)
        weights = (weights - size * mean / (square.sqrt() + 1e-6)) * (1 - 0.1 * 0.5)
        optimizer.step()
        assert torch.allclose(parameter.detach(), weights, rtol=1e-12)
    small_one = nn.Parameter(torch.zeros(2))
    optimizer = AdamWScale([{"params": [small_one]}], lr=0.1, eps=0.0)
    small_one.grad = torch.tensor([1.0, -3.0])
    optimizer.step()
    assert small_one.tolist() == pytest.approx([-1e-4, 1e-4])  # of a scale of 1e-3 at least


@pytest.mark.parametrize("name", ["adam", "lion", "adamwscale", "schedulefree", "adam8"])
def test_betas_are_those_of_the_flags(name: str) -> None:
    group = build_optimizer(nn.Linear(2, 2), settings_of(name, adam_beta1=0.7, adam_beta2=0.8)).param_groups[0]
    assert group["betas"] == (0.7, 0.8)
    group = build_optimizer(nn.Linear(2, 2), settings_of(name)).param_groups[0]
    assert group["betas"] == ((0.9, 0.99) if name == "lion" else (0.9, 0.999))


@pytest.mark.parametrize("name", ["adam", "lion"])
def test_a_shard_of_a_parameter_moves_as_the_whole_does(name: str) -> None:
    torch.manual_seed(0)
    whole = nn.Linear(6, 4, bias=False)
    shard = nn.Linear(6, 2, bias=False)
    shard.weight.data.copy_(whole.weight[:2])
    optimizers = [build_optimizer(model, settings_of(name)) for model in (whole, shard)]
    for _ in range(3):
        gradient = torch.randn(4, 6)
        for model, optimizer, part in ((whole, optimizers[0], gradient), (shard, optimizers[1], gradient[:2])):
            model.weight.grad = part.clone()
            optimizer.step()
    assert torch.equal(whole.weight[:2], shard.weight)
