"""Fewer casts under autocast: gradients keep their precision, frozen weights get none, and nothing stays behind."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from datamodules.collate import Batch, collate
from models.kernels import position_bias
from models.kernels.accelerate import accelerate
from models.loading import from_config
from models.losses.objective import batch_loss
from tests.small_configs import config_of, with_dropout

KINDS = ["t5", "t5-untied", "mt5", "umt5", "bart", "mbart"]


def batch(seed: int = 0) -> Batch:
    """Four rows, padded to a multiple of 8."""
    random = np.random.default_rng(seed)
    return collate([(random.integers(3, 384, n), random.integers(3, 384, n // 8)) for n in (60, 33, 57, 60)], 0, 8)


def add_gradients(model: PreTrainedModel, rows: Batch, precision: torch.dtype = torch.bfloat16) -> None:
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        loss, _ = batch_loss(model, rows)
    loss.backward()  # type: ignore[no-untyped-call]


def gradients(model: PreTrainedModel, precision: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    model.zero_grad()
    add_gradients(model, batch(), precision)
    return {name: part.grad for name, part in model.named_parameters() if part.grad is not None}


def together(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts.values()])


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_gradients_are_as_near_to_fp32_as_those_of_transformers(kind: str) -> None:
    plain = from_config(config_of(kind), seed=1).train()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    exact, wanted, got = gradients(plain, torch.float32), gradients(plain), gradients(fast)
    assert got.keys() == wanted.keys() == exact.keys()
    assert {part.dtype for part in got.values()} == {torch.float32}
    for side in ("encoder", "decoder", "relative_attention_bias", ""):
        exact_part, wanted_part, got_part = (
            together({name: part for name, part in parts.items() if side in name} or {"": torch.zeros(1)})
            for parts in (exact, wanted, got)
        )
        error = (wanted_part - exact_part).norm()
        assert (got_part - exact_part).norm() <= 1.5 * error, side
        assert (got_part - wanted_part).norm() <= 1.5 * error, side


@pytest.mark.parametrize("kind", ["t5", "umt5", "bart"])
def test_checkpointing_and_accumulation_give_the_same_bits(kind: str) -> None:
    model = from_config(with_dropout(kind), seed=1).train()
    accelerate(model)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        for seed in (1, 2):  # two micro-batches
            torch.manual_seed(seed)
            add_gradients(model, batch(seed))
        found.append({name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None})
    assert found[0].keys() == found[1].keys() == dict(model.named_parameters()).keys()
    assert {name for name in found[0] if not torch.equal(found[0][name], found[1][name])} == set()


def test_frozen_weights_get_no_gradient_and_the_others_theirs() -> None:
    model = from_config(config_of("t5"), seed=1).train()
    accelerate(model)
    exact = {name: part.clone() for name, part in gradients(model, torch.float32).items()}
    trained = {name for name in exact if name.endswith((".v.weight", ".wo.weight"))}
    for name, part in model.named_parameters():
        part.requires_grad = name in trained
    found = gradients(model)
    assert found.keys() == trained
    error = together({name: found[name] - exact[name] for name in trained}).norm()
    assert error <= 2**-5 * together({name: exact[name] for name in trained}).norm()


def test_nothing_is_left_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = from_config(config_of("t5"), seed=1).train()
    accelerate(model)
    made: list[weakref.ref[Tensor]] = []
    shared_bias = position_bias.shared_bias

    def noted(*arguments: Any) -> position_bias.SharedBias:
        shared = shared_bias(*arguments)
        made.append(weakref.ref(shared.merged))
        return shared

    monkeypatch.setattr(position_bias, "shared_bias", noted)
    gradients(model)
    assert [reference() for reference in made] == [None, None]  # one an encoder, one a decoder
    assert {name for name, module in model.named_modules() if "forward" in vars(module)} == set()
    with failing_attention(model), pytest.raises(ValueError, match="no attention"):
        gradients(model)
    assert {name for name, module in model.named_modules() if "forward" in vars(module)} == set()


@contextmanager
def failing_attention(model: nn.Module) -> Iterator[None]:
    def fail(*_: Any) -> None:
        raise ValueError("no attention")

    hook = model.decoder.block[1].layer[0].register_forward_pre_hook(fail)
    yield
    hook.remove()
