"""Dropout that the flags set is that of a model built so; noise on the embeddings is in training and on tokens only."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from models.loading import from_config
from models.regularisation import add_embedding_noise, check_dropout, set_dropout
from tests.small_configs import config_of
from utils.errors import UserError


def rates_in(model: PreTrainedModel) -> dict[str, float]:
    """Every rate of dropout in the modules."""
    return {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, float) and ("dropout" in key or isinstance(module, nn.Dropout))
    }


@pytest.mark.parametrize(
    ("name", "rates", "keys"),
    [
        ("t5", {"dropout": 0.3}, {"dropout_rate": 0.3}),
        ("umt5", {"dropout": 0.3, "attention_dropout": None}, {"dropout_rate": 0.3}),
        ("bart", {"dropout": 0.3, "attention_dropout": 0.2}, {"dropout": 0.3, "attention_dropout": 0.2}),
        ("mbart", {"activation_dropout": 0.1}, {"activation_dropout": 0.1}),
    ],
)
def test_dropout_is_that_of_a_model_built_so(name: str, rates: dict, keys: dict) -> None:
    model, built_so = from_config(config_of(name), 1), from_config(config_of(name, **keys), 1)
    check_dropout(model.config, rates)
    assert rates_in(model) != rates_in(built_so)
    set_dropout(model, rates)
    assert rates_in(model) == rates_in(built_so)
    assert model.config.to_dict() == built_so.config.to_dict()


def test_a_dropout_that_the_architecture_has_not_is_refused() -> None:
    config = from_config(config_of("t5"), 1).config
    with pytest.raises(UserError) as refused:
        check_dropout(config, {"dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": None})
    assert str(refused.value) == "-attention_dropout 0.2: a t5 model has no such dropout of its own; it has -dropout"


@torch.no_grad()
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_noise_is_on_the_tokens_of_the_source_in_training(name: str) -> None:
    model = from_config(config_of(name), 1)
    encoder, decoder = model.get_encoder().get_input_embeddings(), model.get_decoder().get_input_embeddings()
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    plain, of_decoder = encoder(ids), decoder(ids)
    add_embedding_noise(model, 4.0, 0)
    torch.manual_seed(1)
    noise = encoder(ids) - plain
    width = plain.shape[-1]
    assert noise[0].abs().max() == pytest.approx(4.0 / (4 * width) ** 0.5, rel=0.1)
    assert noise[1, :2].abs().max() == pytest.approx(4.0 / (2 * width) ** 0.5, rel=0.1)
    assert noise[0].abs().max() <= 4.0 / (4 * width) ** 0.5 + 1e-6
    assert noise[1, 2:].abs().max() == 0
    torch.manual_seed(1)
    assert torch.equal(encoder(ids) - plain, noise)
    assert torch.equal(decoder(ids), of_decoder)
    model.eval()
    assert torch.equal(encoder(ids), plain)
