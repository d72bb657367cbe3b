"""Encoding in parts gives the states of the whole batch, whatever the padding and the parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from generation.incremental import decoder
from generation.incremental.decoder import StepModel
from tests.small_configs import CONFIGS, config_of


def model_of(name: str, **changes: Any) -> Any:
    torch.manual_seed(3)
    config = config_of(name, **changes)
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(**config)).eval()
    for parameter in model.parameters():  # biases and norms too, which are zeros and ones at first
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def sources(lengths: list[int], padding: int = 0) -> tuple[Tensor, Tensor]:
    """Random ids of these lengths, padded to the longest and `padding` columns more."""
    width = max(lengths) + padding
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(3, 259, mask.shape, generator=torch.Generator().manual_seed(1)) * mask, mask


BATCHES = {
    "one length": sources([17, 17, 17]),
    "falling": sources([40, 31, 20, 9, 1]),
    "file order, wide padding": sources([3, 40, 1, 22, 13], padding=11),
    "nothing in the last rows": sources([3, 40, 0, 0]),
    "longer than the farthest distance": sources([120, 2]),
}


@pytest.mark.parametrize("at_once", [1, 64, 1024])
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_states_are_those_of_the_library(name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "TOKENS_AT_ONCE", at_once)
    model = model_of(name)
    states_of = StepModel(model, torch.float32)._encoded
    for what, (ids, mask) in BATCHES.items():
        expected = model.get_encoder()(input_ids=ids, attention_mask=mask)[0]
        found = states_of(ids, mask)
        assert found.shape == expected.shape, what
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=2e-5, msg=what)
