"""A base in 8 or 4 bits: what it computes, forward and backward and merged, how small it is, and what is refused."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from config.flags.train import TrainConfig
from config.parser import parse_flags
from models.adapters.methods import chosen_adapter
from models.adapters.quantised import QuantisedLinear, check_quantisable, quantise, quantised_layers
from models.adapters.tuning import MergedWeights, apply, own_names
from models.freezing import trained_lines
from models.kernels.accelerate import accelerate
from models.loading import config_from_dict, from_config
from tests.small_configs import NEWER, config_of
from training.checks import check_train
from utils.errors import UserError
from utils.libraries import require_package

IDS, DECODER_IDS = torch.arange(3, 30).view(3, 9), torch.arange(40, 55).view(3, 5)


def adapted(name: str, method: str = "lora", kept: tuple[str, ...] = ()) -> PreTrainedModel:
    """A model whose adapter has moved, as in training."""
    model = from_config(config_of(name), seed=4).eval()
    torch.manual_seed(2)
    apply(model, chosen_adapter(model, method, (), kept, 4, 8, 0.0))
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, model.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model(input_ids=IDS, decoder_input_ids=DECODER_IDS).logits
    return found


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
@pytest.mark.parametrize(("name", "method"), [("t5-untied", "lora"), ("bart", "ia3"), ("bart", "adalora")])
def test_a_rounded_base_trains_as_plain_layers_of_the_same_weights_and_so_it_is_merged(
    name: str, method: str, load_in: str
) -> None:
    pytest.importorskip("bitsandbytes")
    kept = ("lm_head",) if name == "t5-untied" else ()
    models = [adapted(name, method, kept), adapted(name, method, kept)]
    quantise(models[0], load_in)
    layers = quantised_layers(models[0])
    assert len(layers) == {"t5-untied": 36, "bart": 32}[name]  # all but lm_head, under the adapter and beside it
    for path, layer in layers.items():
        plain = models[1].get_submodule(path)
        assert isinstance(plain, nn.Linear)
        rounded = layer.plain()
        assert (rounded.weight - plain.weight).norm() < (0.01 if load_in == "8bit" else 0.11) * plain.weight.norm()
        plain.weight = rounded.weight
    for model in models:
        accelerate(model)
        logits(model).square().mean().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits(models[0]), logits(models[1]), rtol=0, atol=1e-5)
    own = [dict(model.named_parameters()) for model in models]
    assert {path for path, one in own[0].items() if one.grad is not None} == set(own_names(models[1]))
    for path in own_names(models[1]):
        torch.testing.assert_close(own[0][path].grad, own[1][path].grad, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        expected = logits(models[0])
        with MergedWeights(models[0]) as merged:
            assert not quantised_layers(merged)
            torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)
        assert torch.equal(logits(models[0]), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(logits(models[0]), logits(models[1]), rtol=0, atol=0.1)


@pytest.mark.parametrize(("load_in", "bytes_each"), [("8bit", 1 + 4 / 64), ("4bit", 0.5 + 4 / 64)])
def test_a_base_is_rounded_to_the_same_bits_again_and_told_to_be_small(load_in: str, bytes_each: float) -> None:
    pytest.importorskip("bitsandbytes")
    layer = nn.Linear(64, 48)
    one, again = (QuantisedLinear(copy.deepcopy(layer), int(load_in[0])) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(one.buffers(), again.buffers(), strict=True))
    assert sum(buffer.nbytes for buffer in one.buffers()) == 64 * 48 * bytes_each
    assert one.state_dict().keys() == layer.state_dict().keys()
    model = adapted("t5")
    lines = trained_lines(model)
    quantise(model, load_in)
    *same, told = trained_lines(model)
    assert same == lines
    assert f" frozen layers take 0.0{'41' if load_in == '8bit' else '21'} MB in {load_in[0]} bits in place of " in told


def test_what_cannot_be_rounded_is_told_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config, given, problems = parse_flags(TrainConfig, ["-load_in", "4bit", "-tuning_method", "dora"])
    check_train(config, given, problems)
    assert [problem for problem in problems if problem.startswith("-load_in")] == [
        "-load_in 4bit needs the package bitsandbytes, which is missing; install it: pip install bitsandbytes==0.50.2",
        "-load_in 4bit: only with -tuning_method lora or rslora or adalora or ia3: weights of 8 or 4 bits cannot be"
        " trained, an adapter on them can",
    ]
    with pytest.raises(UserError, match=r"^-load_in 8bit: for t5, .*, not switch_transformers; leave it out$"):
        check_quantisable(config_from_dict(NEWER["switch"]), "8bit")


def test_an_import_fetches_no_kernels_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels.py").write_text("")
    (tmp_path / "asks_for_kernels.py").write_text("try:\n    import kernels\nexcept ImportError:\n    kernels = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert require_package("asks_for_kernels", "-load_in").kernels is None
    assert "kernels" not in sys.modules
