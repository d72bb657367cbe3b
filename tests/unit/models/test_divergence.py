"""Distillation and R-Drop: equal to PyTorch's divergences with their gradients, in chunks as whole."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses.chunked import chunked_loss
from models.losses.divergence import Distillation, RDrop
from models.losses.objective import Objective, Teacher, batch_loss
from tests.trained_models import encoded, half_trained, words

VOCABULARY, TOKENS, WIDTH = 13, 7, 5


def layers(passes: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(8)
    hidden = torch.randn(TOKENS * passes, WIDTH, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(VOCABULARY, dtype=torch.float64, requires_grad=True)
    return hidden, weight, bias, torch.randint(VOCABULARY, (TOKENS,)), torch.linspace(0.2, 3, TOKENS).double()


def assert_same_with_gradients(loss: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    wanted = torch.autograd.grad(expected / 3, inputs)
    for gradient, other in zip(torch.autograd.grad(loss / 3, inputs), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("share", "smoothing"), [(0.3, 0.0), (1.0, 0.0), (0.6, 0.1)])
def test_distillation_is_the_divergence_and_the_cross_entropy_in_their_shares(chunk, weighted, share, smoothing):
    hidden, weight, bias, targets, factors = layers()
    factors = factors if weighted else None
    taught, rows, taught_bias = torch.randn(TOKENS, 9).double(), torch.randn(VOCABULARY, 9).double(), bias * 2
    temperature = 2.5
    logits, teacher = hidden @ weight.T + bias, taught @ rows.T + taught_bias.detach()
    divergence = F.kl_div(
        F.log_softmax(logits / temperature, -1), F.softmax(teacher / temperature, -1), reduction="none"
    ).sum(-1)
    entropy = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    terms = share * temperature**2 * divergence + (1 - share) * entropy
    expected = (terms if factors is None else terms * factors).sum()
    criterion = Distillation(taught, rows, taught_bias.detach(), temperature, share, smoothing, factors)
    loss, _ = chunked_loss(hidden, weight, bias, targets, criterion, chunk)
    assert_same_with_gradients(loss, expected, (hidden, weight, bias))


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rdrop_is_half_of_both_divergences_beside_the_mean_cross_entropy(chunk, weighted, smoothing):
    hidden, weight, bias, targets, factors = layers(passes=2)
    factors = factors if weighted else None
    logits = (hidden @ weight.T + bias).unflatten(0, (-1, 2))
    first, second = F.log_softmax(logits, -1).unbind(1)
    both = F.kl_div(first, second, reduction="none", log_target=True).sum(-1)
    both = both + F.kl_div(second, first, reduction="none", log_target=True).sum(-1)
    entropy = [F.cross_entropy(one, targets, reduction="none", label_smoothing=smoothing) for one in logits.unbind(1)]
    terms = 5.0 * both / 2 + (entropy[0] + entropy[1]) / 2
    expected = (terms if factors is None else terms * factors).sum()
    loss, _ = chunked_loss(hidden, weight, bias, targets, RDrop(5.0, smoothing, factors), chunk)
    assert_same_with_gradients(loss, expected, (hidden, weight, bias))


def batch_of(count: int) -> dict[str, Tensor]:
    ids, mask = encoded(words(count, seed=3))
    labels = ids.masked_fill(mask == 0, -100)
    index = torch.nonzero(labels.reshape(-1) != -100).squeeze(1)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "target_index": index}


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_model_that_is_its_own_teacher_learns_nothing_from_it(name):
    model, batch = half_trained(name), batch_of(6)
    zero = Objective(teacher=Teacher(model, temperature=2.0, share=1.0))(model, batch)
    assert abs(zero.item()) < 1e-4
    half = Objective(teacher=Teacher(model, temperature=2.0, share=0.5))(model, batch)
    torch.testing.assert_close(half, batch_loss(model, batch)[0] / 2, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_rdrop_without_dropout_is_the_cross_entropy_and_with_it_more(name):
    model, batch = half_trained(name), batch_of(6)
    plain = batch_loss(model, batch)[0]
    torch.testing.assert_close(Objective(rdrop_alpha=3.0)(model, batch), plain, rtol=1e-5, atol=1e-4)
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
        elif hasattr(module, "dropout") and isinstance(module.dropout, float):  # BART's layers
            module.dropout = 0.2
    losses = []
    for alpha in (0.001, 10.0):
        torch.manual_seed(1)
        losses.append(Objective(rdrop_alpha=alpha)(model, batch).item())
    assert losses[1] > losses[0] * 1.01
