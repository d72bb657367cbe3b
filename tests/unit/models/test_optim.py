"""Schedules against their formulas at points computed by hand; optimizers with the right groups and lasting state."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from config.flags.optim import OPTIMIZERS, SCHEDULES
from models.optimizers.build import OPTIMIZER_ROWS, build_optimizer, current_rate
from models.optimizers.groups import parameter_groups
from models.optimizers.schedules import Plateau, build_scheduler, resolve_warmup, schedule
from models.optimizers.settings import OptimSettings


def tiny_t5() -> nn.Module:
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5ForConditionalGeneration(config)


def tiny_bart() -> nn.Module:
    config = BartConfig(vocab_size=40, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=8)
    config.update(dict.fromkeys(["encoder_layers", "decoder_layers"], 1))
    config.update(dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 2))
    return BartForConditionalGeneration(config)


def settings(
    name: str, rate: float | None = 1.0, warmup_steps=0, restarts=4, gamma=0.75, floor=0.0, **more
) -> OptimSettings:
    """Those of a schedule; with a rate of 1 its floor is a factor."""
    return OptimSettings("adam", rate, name, warmup_steps, gamma, restarts, floor, **more)


def moved_by(name: str, rate: float | None, weight_decay: float = 0.0, **more) -> OptimSettings:
    return OptimSettings(name, rate, "constant", weight_decay=weight_decay, **more)


def built(model: nn.Module, *args, fused: bool = True, **more) -> torch.optim.Optimizer:
    return build_optimizer(model, moved_by(*args, **more), fused)


def divided(model: nn.Module) -> list[list[torch.Tensor]]:
    """The parameters with weight decay, and those without."""
    return [group.parameters for group in parameter_groups(model, moved_by("adam", 1e-3))]


def curve(name: str, steps: int, total_steps: int, **shape) -> list[float]:
    factor = schedule(settings(name, **shape), total_steps)
    return [factor(step) for step in range(steps)]


def test_linear_curve():
    assert curve("linear", 7, 5) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0])
    assert curve("linear", 8, 6, warmup_steps=2) == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0])


def test_constant_curve():
    assert curve("constant", 6, 5, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert curve("constant", 3, 5) == [1.0, 1.0, 1.0]


def test_inverse_sqrt_curve():
    assert curve("inverse_sqrt", 16, 20, warmup_steps=4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, math.sqrt(0.8)])
    assert curve("inverse_sqrt", 16, 20, warmup_steps=4)[15] == 0.5  # sqrt(4 / 16)
    assert curve("flat_inverse_sqrt", 16, 20, warmup_steps=4)[:5] == pytest.approx([1.0, 1.0, 1.0, 1.0, math.sqrt(0.8)])
    assert curve("flat_inverse_sqrt", 16, 20, warmup_steps=4)[15] == 0.5
    assert curve("inverse_sqrt", 5, 3) == pytest.approx([1.0, 2**-0.5, 3**-0.5, 0.5, 0.5])


def test_cosanneal_curve():
    """Two cycles of four steps after two of warm-up; the second peak is 0.5; the floor 0.1."""
    expected = [0.5, 1.0]
    for peak in (1.0, 0.5):
        middle = 0.1 + (peak - 0.1) / 2
        swing = (peak - 0.1) / 2 * math.sqrt(0.5)  # cos(pi / 4)
        expected += [peak, middle + swing, middle, middle - swing]
    expected += [0.1, 0.1]
    assert curve("cosanneal", 12, 10, warmup_steps=2, restarts=2, gamma=0.5, floor=0.1) == pytest.approx(expected)


def test_cosanneal_peaks_of_the_default_cycles():
    factors = curve("cosanneal", 401, 400)
    assert [factors[start] for start in (0, 100, 200, 300)] == pytest.approx([1.0, 0.75, 0.5625, 0.421875])
    assert factors[50] == pytest.approx(0.5)
    assert factors[400] == 0.0
    restarts = [step for step in range(1, 400) if factors[step] > factors[step - 1]]
    assert restarts == [100, 200, 300]


def test_cosanneal_never_falls_below_its_floor():
    factors = curve("cosanneal", 50, 40, restarts=4, gamma=0.1, floor=0.2)
    assert min(factors) == 0.2
    assert factors[20:] == [0.2] * 30  # peaks of 0.01 and 0.001 lie below the floor


def test_cyclic_curve():
    expected = [0.25, 0.75, 0.75, 0.25] * 2
    assert curve("cyclic", 10, 8, restarts=2) == pytest.approx([*expected, 0.0, 0.0])
    with_floor = [0.2 + 0.8 * value for value in expected]
    assert curve("cyclic", 10, 8, restarts=2, floor=0.2) == pytest.approx([*with_floor, 0.2, 0.2])
    assert curve("cyclic", 3, 6, restarts=1, warmup_steps=4) == pytest.approx([1 / 6, 0.5, 0.75])
    assert curve("cyclic", 5, 5, restarts=1)[2] == 1.0
    uneven = [0.25, 0.75, 0.75, 0.25, 0.2, 0.6, 1.0, 0.6, 0.2]  # 9 steps in cycles of 4 and 5
    assert curve("cyclic", 9, 9, restarts=2) == pytest.approx(uneven)


def test_cosine_curve():
    swing = 0.45 * math.sqrt(0.5)  # cos(pi / 4)
    expected = [0.5, 1.0, 1.0, 0.55 + swing, 0.55, 0.55 - swing, 0.1, 0.1]
    assert curve("cosine", 8, 6, warmup_steps=2, floor=0.1) == pytest.approx(expected)


def test_polynomial_curve():
    expected = [0.5, 1.0, 1.0, 0.2 + 0.8 * 0.75**2, 0.2 + 0.8 * 0.25, 0.2 + 0.8 * 0.0625, 0.2, 0.2]
    assert curve("polynomial", 8, 6, warmup_steps=2, floor=0.2, polynomial_power=2.0) == pytest.approx(expected)
    assert curve("polynomial", 8, 6, warmup_steps=2) == curve("linear", 8, 6, warmup_steps=2)


def test_wsd_curve():
    expected = [0.5, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]
    assert curve("wsd", 10, 8, warmup_steps=2, floor=0.2, wsd_decay_steps=0.5) == pytest.approx(expected)
    assert curve("wsd", 4, 3, wsd_decay_steps=0.0) == [1.0, 1.0, 1.0, 0.0]


def test_plateau_lowers_the_rate_after_each_wait():
    """Two validations without a gain halve it, and the wait begins anew; it never falls below the floor."""
    waits, factors = Plateau(patience=2), []
    factor = schedule(settings("plateau", 1.0, 2, floor=0.3), 10, lambda: waits.reductions)
    for better in (True, False, True, False, False, False, False, False):
        waits.note(better)
        factors.append(factor(5))
    assert factors == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.3, 0.3]
    assert factor(0) == 0.15


@given(
    st.sampled_from(SCHEDULES),
    st.integers(1, 60),
    st.one_of(st.integers(0, 70), st.floats(0, 0.99)),
    st.integers(1, 5),
    st.floats(0.1, 1.0),
    st.floats(0.0, 0.5),
)
def test_every_step_has_a_rate_and_the_end_value_stays(name, total_steps, warmup_steps, restarts, gamma, floor):
    factor = schedule(settings(name, 1.0, warmup_steps, restarts, gamma, floor), total_steps)
    factors = [factor(step) for step in range(total_steps)]
    assert all(0.0 < value <= 1.0 + 1e-12 for value in factors)
    assert {factor(total_steps + later) for later in (0, 1, 1000)} == {factor(total_steps)}
    if resolve_warmup(warmup_steps, total_steps) == 0 and name != "cyclic":
        assert factors[0] == 1.0


def test_warmup_as_steps_and_as_a_fraction():
    assert [resolve_warmup(value, 1000) for value in (0, 0.06, 0.5, 1, 1.0, 250)] == [0, 60, 500, 1, 1, 250]
    assert curve("linear", 20, 20, warmup_steps=0.25) == curve("linear", 20, 20, warmup_steps=5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_scheduler_applies_the_curve_and_resumes(name):
    def build():
        optimizer = built(nn.Linear(2, 2), "adam", 1e-3)
        return optimizer, build_scheduler(optimizer, settings(name, 1e-3, 0.2, 2, 0.5, 1e-5), 10)

    optimizer, scheduler = build()
    factor = schedule(settings(name, 1.0, 2, 2, 0.5, 1e-2), 10)
    for step in range(12):
        assert current_rate(optimizer) == pytest.approx(1e-3 * factor(step))
        assert {group["lr"] for group in optimizer.param_groups} == {current_rate(optimizer)}
        if step == 6:
            saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
        optimizer.step()
        scheduler.step()
    resumed, resumed_scheduler = build()
    resumed.load_state_dict(saved[0])
    resumed_scheduler.load_state_dict(saved[1])
    for step in range(7, 12):
        resumed.step()
        resumed_scheduler.step()
        assert current_rate(resumed) == pytest.approx(1e-3 * factor(step))


@pytest.mark.parametrize("model", [tiny_t5(), tiny_bart()], ids=["t5", "bart"])
def test_no_decay_on_biases_and_norms(model):
    decayed, undecayed = ({id(parameter) for parameter in group} for group in divided(model))
    names = {name: id(parameter) for name, parameter in model.named_parameters()}
    without = {name for name, key in names.items() if key in undecayed}
    assert decayed | undecayed == set(names.values())
    assert not decayed & undecayed
    assert without == {name for name in names if "norm" in name or "bias" in name}
    assert names["shared.weight" if "shared.weight" in names else "model.shared.weight"] in decayed
    optimizer = built(model, "adam", 1e-3, 0.01)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)  # tied ones once


def test_expected_parameters_of_t5_are_free_of_decay():
    model = tiny_t5()
    undecayed = {id(parameter) for parameter in divided(model)[1]}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in undecayed]
    assert sorted(name.removesuffix(".weight") for name in names) == [
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "decoder.block.0.layer.0.layer_norm",
        "decoder.block.0.layer.1.layer_norm",
        "decoder.block.0.layer.2.layer_norm",
        "decoder.final_layer_norm",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "encoder.block.0.layer.0.layer_norm",
        "encoder.block.0.layer.1.layer_norm",
        "encoder.final_layer_norm",
    ]


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    decayed, undecayed = divided(model)
    assert [decayed, undecayed] == [[model[1].weight], [model[1].bias]]
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        built(model, "adam", 1e-3, 0.0)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(4, 3)).pow(2).mean().backward()
        optimizer.step()


@pytest.mark.parametrize(("name", "rate"), [("adam", 1e-2), ("adafactor", 1e-2), ("adafactor", None)])
def test_saved_state_continues_to_the_very_same_weights(name, rate, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    optimizer = built(model, name, rate, 0.01)
    train(model, optimizer, range(3))
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    train(model, optimizer, range(3, 6))

    resumed = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    resumed_optimizer = built(resumed, name, rate, 0.01)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(weights)
    resumed_optimizer.load_state_dict(state)
    train(resumed, resumed_optimizer, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
    assert current_rate(resumed_optimizer) == current_rate(optimizer)


def test_adam_is_fused_and_can_be_unfused():
    model = nn.Linear(2, 2)
    assert built(model, "adam", 1e-3, 0.0).defaults["fused"] is True
    assert built(model, "adam", 1e-3, 0.0, fused=False).defaults["fused"] is None
    assert built(nn.Linear(2, 2, device="meta"), "adam", 1e-3, 0.0).defaults["fused"] is None


def test_adafactor_sets_its_own_rate_unless_one_is_given():
    model = nn.Linear(3, 2)
    automatic = built(model, "adafactor", None, 0.0)
    group = automatic.param_groups[0]
    assert (group["lr"], group["relative_step"], group["scale_parameter"], group["warmup_init"]) == (
        None,
        True,
        True,
        True,
    )
    assert build_scheduler(automatic, settings("linear", None), 10) is None
    assert current_rate(automatic) == 0.0
    train(model, automatic, range(3))
    assert current_rate(automatic) == pytest.approx(3e-6)
    group = built(model, "adafactor", 1e-3, 0.0).param_groups[0]
    assert (group["lr"], group["relative_step"], group["scale_parameter"], group["warmup_init"]) == (
        1e-3,
        False,
        False,
        False,
    )


def test_adafactor_scales_a_given_rate_by_the_weights_when_asked():
    large, small = (nn.Linear(2, 2, bias=False) for _ in range(2))
    for model, size in ((large, 3.0), (small, 0.5)):
        nn.init.constant_(model.weight, size)
        optimizer = built(model, "adafactor", 1e-2, scale_parameter=True)
        model.weight.grad = torch.ones(2, 2)
        optimizer.step()
        torch.testing.assert_close(model.weight, torch.full((2, 2), size * 0.99))


def test_unknown_optimizer_is_refused_with_the_list():
    assert list(OPTIMIZERS) == list(OPTIMIZER_ROWS)
    with pytest.raises(ValueError, match="unknown optimizer 'sgd'; choose one of adam, adafactor, adam8"):
        built(nn.Linear(2, 2), "sgd", 1e-3, 0.0)
