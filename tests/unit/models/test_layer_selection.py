"""A model of some layers of another: what is left computes what it did there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from models.layer_selection import selected_layers, smaller_config, with_layers
from models.loading import config_from_dict, from_config, is_untied
from tests.small_configs import config_of
from utils.errors import UserError


def test_layers_are_evenly_spaced_from_the_first_to_the_last() -> None:
    assert [selected_layers(12, count) for count in (1, 2, 3, 6)] == [[0], [0, 11], [0, 6, 11], [0, 2, 4, 7, 9, 11]]
    assert selected_layers(4, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["t5", "t5-untied", "umt5", "bart", "mbart"])
def test_a_smaller_model_is_the_other_without_the_layers_between(name: str) -> None:
    t5 = "t5" in name
    changes = {"num_layers": 4} if t5 else {"encoder_layers": 4}
    model = from_config(config_of(name, **changes), seed=3).eval()
    smaller = with_layers(model, (3, 1), "-init_model x").eval()
    expected = copy.deepcopy(model)
    base = expected if t5 else expected.model
    for side, kept in (("encoder", [0, 2, 3]), ("decoder", [0])):
        layers = "block" if t5 else "layers"
        part = getattr(base, side)
        setattr(part, layers, nn.ModuleList(getattr(part, layers)[number] for number in kept))
    inputs = {"input_ids": torch.arange(3, 15).view(2, 6), "decoder_input_ids": torch.arange(5, 13).view(2, 4)}
    with torch.no_grad():
        assert torch.equal(smaller(**inputs).logits, expected(**inputs, use_cache=False).logits)
        assert smaller.generate(inputs["input_ids"], max_new_tokens=5, do_sample=False).shape[0] == 2
    keys = ("num_layers", "num_decoder_layers") if t5 else ("encoder_layers", "decoder_layers")
    assert [getattr(smaller.config, key) for key in keys] == [3, 1]
    assert is_untied(smaller) == is_untied(model)


def test_more_layers_than_there_are_and_other_architectures_are_refused() -> None:
    config = config_from_dict(config_of("bart"))
    with pytest.raises(UserError) as caught:
        smaller_config(config, (3, 9), "-init_model x")
    assert caught.value.problems == (
        "-encoder_layers 3: -init_model x has 2",
        "-decoder_layers 9: -init_model x has 2",
    )
    with pytest.raises(UserError, match="not of led"):
        smaller_config(config_from_dict({"model_type": "led"}), (1, 0), "-init_model x")
