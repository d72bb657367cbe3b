"""The losses of newer architectures: soft-capped logits in chunks, and the routers of a mixture of experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from models.loading import from_config
from models.losses.cross_entropy import token_loss_and_correct
from models.losses.objective import Objective, Teacher, batch_loss
from tests.small_configs import NEWER
from tests.small_models import example_batch


def batch_of(rows: slice = slice(None)) -> dict[str, Any]:
    batch = {name: value[rows] for name, value in example_batch().items()}
    return {**batch, "target_index": (batch["labels"] != -100).flatten().nonzero()[:, 0]}


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_capped_logits_in_chunks_have_the_loss_and_the_gradient_of_those_at_once(smoothing: float) -> None:
    draw = torch.Generator()
    labels = torch.tensor([[3, 8, 1], [4, -100, 2]])
    found = []
    for most in (10**9, 20):
        draw.manual_seed(2)
        hidden, weight = (torch.randn(shape, generator=draw) * 4 for shape in ((2, 3, 6), (9, 6)))
        hidden.requires_grad_()
        weight.requires_grad_()
        loss, correct = token_loss_and_correct(
            hidden, weight, labels, softcap=5.0, label_smoothing=smoothing, max_logits=most
        )
        (loss / 5).backward()
        found.append((loss, correct, hidden.grad, weight.grad))
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole)
    logits = 5 * torch.tanh(hidden @ weight.T / 5)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing
    )
    torch.testing.assert_close(found[0][0], expected)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_the_z_loss_is_the_squared_log_of_the_normalizer_of_every_token(softcap: float) -> None:
    draw = torch.Generator().manual_seed(2)
    labels, weights = torch.tensor([[3, 8, 1], [4, -100, 2]]), torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0])
    hidden, weight = (torch.randn(shape, generator=draw).double().requires_grad_() for shape in ((2, 3, 6), (9, 6)))
    logits = (hidden @ weight.T).flatten(0, 1)[[0, 1, 2, 3, 5]]
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    losses = torch.nn.functional.cross_entropy(logits, labels.flatten()[[0, 1, 2, 3, 5]], reduction="none")
    expected = ((losses + 0.3 * logits.logsumexp(-1) ** 2) * weights).sum()
    whole = torch.autograd.grad(expected, (hidden, weight))
    for most in (10**9, 20):
        options = {"softcap": softcap, "z_loss": 0.3, "token_weights": weights.double(), "max_logits": most}
        loss, _ = token_loss_and_correct(hidden, weight, labels, **options)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), whole)


def test_a_soft_capped_teacher_that_is_the_student_has_no_divergence() -> None:
    model = from_config(NEWER["t5gemma"], seed=1).eval()
    batch = batch_of()
    plain = batch_loss(model, batch)[0]
    half = Objective(teacher=Teacher(model, temperature=2.0, share=0.5))(model, batch)
    torch.testing.assert_close(half, plain / 2)
    torch.testing.assert_close(Objective(rdrop_alpha=3.0)(model, batch), plain)


@pytest.fixture
def switch() -> PreTrainedModel:
    """In training, without what is drawn."""
    return from_config({**NEWER["switch"], "dropout_rate": 0.0, "router_jitter_noise": 0.0}, seed=1).train()


def test_one_batch_a_step_has_the_library_s_loss_with_its_routers(switch: PreTrainedModel) -> None:
    batch = batch_of()
    ours = batch_loss(switch, batch)[0] / len(batch["target_index"])
    library = switch(**example_batch(), output_router_logits=True)
    torch.testing.assert_close(ours, library.loss)
    without = batch_loss(switch.eval(), batch)[0] / len(batch["target_index"])
    z_losses = library.encoder_z_loss + library.decoder_z_loss
    balance = library.encoder_aux_loss + library.decoder_aux_loss
    torch.testing.assert_close(ours, without + 0.1 * (z_losses + balance))  # validation tells the cross-entropy


def test_accumulated_rows_of_the_same_lengths_have_the_gradient_of_one_batch(switch: PreTrainedModel) -> None:
    def step(*parts: slice) -> dict[str, torch.Tensor]:
        switch.zero_grad()
        for part in parts:
            batch = batch_of(part)
            batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
            batch["labels"] = batch["labels"].clamp(min=3)
            batch["target_index"] = torch.arange(batch["labels"].numel())
            (batch_loss(switch, batch)[0] / 15).backward()
        return gradients(switch)

    whole, accumulated = step(slice(None)), step(slice(0, 1), slice(1, 3))
    assert whole.keys() == accumulated.keys()
    for name, value in whole.items():
        torch.testing.assert_close(accumulated[name], value, rtol=1e-4, atol=1e-6)


def test_class_weights_count_the_routers_as_often_as_the_tokens(switch: PreTrainedModel) -> None:
    batch = batch_of()
    weights = torch.full((len(batch["target_index"]),), 3.0)
    weighted = batch_loss(switch, {**batch, "token_weights": weights})[0]
    torch.testing.assert_close(weighted, batch_loss(switch, batch)[0] * 3)


@pytest.mark.parametrize("name", ["led", "longt5-global", "t5gemma", "switch"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    found = []
    for again in (False, True):
        model = from_config(NEWER[name], seed=1).train()
        if again:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(7)
        loss = batch_loss(model, batch_of())[0]
        loss.backward()
        found.append((loss.detach(), gradients(model)))
    assert found[0][0].equal(found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    for key, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][key], value, rtol=1e-4, atol=1e-6)
