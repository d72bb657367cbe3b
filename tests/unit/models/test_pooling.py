"""Vectors of texts: what the library's own passes give, whatever stands beside a text in its batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from models.adapters.methods import chosen_adapter
from models.adapters.tuning import apply
from models.loading import from_config
from models.retrieval.pooling import DECODER, MEAN, POOLINGS, check_pooling, freeze_unused, pooled
from tests.small_configs import NEWER, config_of
from tests.small_models import example_batch
from utils.errors import UserError

KINDS = ["t5", "umt5", "bart"]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_vector_that_it_has_alone(kind: str, pooling: str) -> None:
    model = from_config(config_of(kind), seed=3).eval()
    batch = example_batch()
    with torch.no_grad():
        vectors = pooled(model, batch["input_ids"], batch["attention_mask"], pooling)
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            ids = batch["input_ids"][row : row + 1, :length]
            start = torch.zeros(1, 1, dtype=torch.int64)
            output = model(input_ids=ids, decoder_input_ids=start, output_hidden_states=True)
            states = output.encoder_last_hidden_state if pooling == MEAN else output.decoder_hidden_states[-1]
            torch.testing.assert_close(vectors[row : row + 1], normalize(states.mean(1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", [*KINDS, "t5-untied"])
def test_what_gets_no_gradient_is_not_trained(kind: str, pooling: str) -> None:
    model = from_config(config_of(kind), seed=3)
    batch = example_batch()
    pooled(model, batch["input_ids"], batch["attention_mask"], pooling).sum().backward()  # type: ignore[no-untyped-call]
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    freeze_unused(model, pooling)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == without


def test_of_an_adapter_the_part_in_the_encoder_is_trained() -> None:
    pytest.importorskip("peft")
    model = from_config(config_of("t5"), seed=3)
    apply(model, chosen_adapter(model, "lora", (), (), 4, 8, 0.0, 5))
    freeze_unused(model, MEAN)
    batch = example_batch()
    pooled(model, batch["input_ids"], batch["attention_mask"], MEAN).sum().backward()  # type: ignore[no-untyped-call]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {(name.split(".")[0], name.rpartition("lora_")[1]) for name in trained} == {("encoder", "lora_")}


def test_a_model_of_which_nothing_used_is_trained_is_refused() -> None:
    model = from_config(config_of("t5"), seed=3)
    model.get_encoder().requires_grad_(False)
    with pytest.raises(UserError, match="-freeze: leaves nothing to train of what -pooling mean takes"):
        freeze_unused(model, MEAN)


def test_an_architecture_that_was_not_tried_is_refused() -> None:
    model = from_config(NEWER["led"], seed=1)
    with pytest.raises(UserError, match="was not tried with a led model; give one of t5, mt5"):
        check_pooling(model.config, MEAN, "-init_model x")
    bart = from_config(config_of("mbart"), seed=1)
    bart.config.decoder_start_token_id = None
    check_pooling(bart.config, MEAN, "-init_model x")
    with pytest.raises(UserError, match="no start token for -pooling decoder; give mean"):
        check_pooling(bart.config, DECODER, "-init_model x")
