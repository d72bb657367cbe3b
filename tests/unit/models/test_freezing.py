"""-freeze: what it leaves to train, what it tells, and the table of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models import freezing
from models.adapters.methods import chosen_adapter
from models.adapters.tuning import apply
from models.freezing import freeze_parts, trained_lines
from models.loading import from_config
from tests.small_configs import config_of
from utils.errors import UserError


def frozen(model: Any) -> set[str]:
    return {name for name, value in model.named_parameters() if not value.requires_grad}


@pytest.mark.parametrize("name", ["bart", "t5", "t5-untied"])
def test_parts_are_frozen_and_a_shared_embedding_only_by_name(name: str) -> None:
    model = from_config(config_of(name), seed=2)
    start = "model." if name == "bart" else ""
    encoder = {key for key, _ in model.named_parameters() if key.startswith(f"{start}encoder.")}
    assert freeze_parts(model, ("encoder",)) == []
    assert frozen(model) == encoder
    tied = "-freeze embedding: the output layer is the same matrix as the embedding, and frozen with it"
    if name == "t5-untied":
        assert freeze_parts(model, ("embedding", "decoder")) == []
        assert {key for key, value in model.named_parameters() if value.requires_grad} == {"lm_head.weight"}
    else:
        assert freeze_parts(model, ("embedding",)) == [tied]
        assert frozen(model) == encoder | {f"{start}shared.weight"}
        with pytest.raises(UserError, match=r"^-freeze decoder: leaves nothing to train$"):
            freeze_parts(model, ("decoder",))


def test_layers_and_expressions() -> None:
    model = from_config(config_of("bart", encoder_layers=3, decoder_layers=2), seed=2)
    freeze_parts(model, ("layers:1-2",))
    assert {".".join(name.split(".")[1:4]) for name in frozen(model)} == {
        *("encoder.layers.1", "encoder.layers.2", "decoder.layers.1")
    }
    model = from_config(config_of("t5"), seed=2)
    freeze_parts(model, (r"decoder\..*EncDecAttention\.[qk]\.",))
    assert frozen(model) == {
        name for name, _ in model.named_parameters() if "EncDecAttention.q" in name or "EncDecAttention.k" in name
    }


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("layers:0-9", r"-freeze layers:0-9: the layers of this model are layers:0-1"),
        (f"layers:{'9' * 5000}", "-freeze layers:9+: no parameter has such a name"),
        ("layers:1-0", r"-freeze layers:1-0: the layers of this model are layers:0-1"),
        ("encodr", r"-freeze encodr: no parameter has such a name \(did you mean encoder\?\); give .*model\.shared"),
    ],
)
def test_what_is_not_there_is_told(part: str, told: str) -> None:
    with pytest.raises(UserError, match=f"^{told}"):
        freeze_parts(from_config(config_of("bart"), seed=2), (part,))


def test_the_table_is_of_what_is_trained() -> None:
    model = from_config(config_of("t5-untied"), seed=2)
    assert trained_lines(model) == []
    torch.manual_seed(1)
    apply(model, chosen_adapter(model, "lora", (), (), 2, 4, 0.0))
    header, embedding, *others, total, size = trained_lines(model)
    assert header.split() == ["part", "parameters", "trained", "share"]
    assert embedding.split()[::2] == ["embedding", "0"]
    assert [line.split()[0] for line in others] == ["encoder", "decoder", "output", "adapter"]
    whole, trained = (int(word.replace(",", "")) for word in total.split()[1:3])
    assert whole == sum(value.numel() for value in model.parameters())
    assert trained == sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert size.startswith("best/ and last/ hold the adapter only: 0.0")


def test_an_expression_that_backtracks_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing, "SECONDS", 0.3)
    with pytest.raises(UserError, match=r"^-freeze \S+: this regular expression was searched for more than 0\.3 sec"):
        freeze_parts(from_config(config_of("bart"), seed=2), (r"([a-z._]+[a-z_.]*)+[0-9]$X",))
