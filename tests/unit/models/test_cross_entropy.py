"""The summed loss: equal to PyTorch's cross-entropy, whole or in chunks, with the gradients, and lean in memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration
from transformers.trainer_pt_utils import LabelSmoother

from models.losses.cross_entropy import token_loss_and_correct, token_loss_sum


def problem(batch: int = 3, length: int = 5, width: int = 6, vocabulary: int = 11, dtype=torch.float32):
    torch.manual_seed(batch * 1000 + vocabulary)
    hidden = torch.randn(batch, length, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    bias = torch.randn(1, vocabulary, dtype=dtype, requires_grad=True)
    labels = torch.randint(vocabulary, (batch, length))
    labels[0, -2:] = -100
    labels[-1, 1:] = -100
    return hidden, weight, bias, labels


def reference(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, smoothing: float, scale: float) -> Tensor:
    logits = (hidden * scale) @ weight.T + bias
    return F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum", label_smoothing=smoothing
    )


@pytest.mark.parametrize("max_logits", [None, 11, 33, 40, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_loss_and_gradients_equal_pytorchs(max_logits, smoothing, scale):
    hidden, weight, bias, labels = problem()
    inputs = (hidden, weight, bias)
    expected = reference(hidden, weight, bias, labels, smoothing, scale)
    expected_gradients = torch.autograd.grad(expected / 7, inputs)
    loss = token_loss_sum(
        hidden, weight, labels, bias=bias, scale=scale, label_smoothing=smoothing, max_logits=max_logits
    )
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for gradient, wanted in zip(torch.autograd.grad(loss / 7, inputs), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_logits", [None, 33])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_multiply_the_loss_and_the_gradient_of_each_token(max_logits, smoothing):
    hidden, weight, bias, labels = problem()
    inputs = (hidden, weight, bias)
    factors = torch.linspace(0.1, 2.0, int((labels != -100).sum()))
    one_by_one = F.cross_entropy(
        (hidden @ weight.T + bias).flatten(0, 1)[labels.flatten() != -100],
        labels[labels != -100],
        reduction="none",
        label_smoothing=smoothing,
    )
    expected = (one_by_one * factors).sum()
    more = {"bias": bias, "label_smoothing": smoothing, "max_logits": max_logits, "token_weights": factors}
    loss = token_loss_sum(hidden, weight, labels, **more)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    wanted = torch.autograd.grad(expected, inputs)
    for gradient, other in zip(torch.autograd.grad(loss, inputs), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-6)


@given(
    st.integers(1, 4), st.integers(2, 6), st.integers(2, 30), st.integers(1, 90), st.sampled_from([0.0, 0.2]), st.data()
)
def test_chunks_change_nothing_in_float64(batch, length, vocabulary, max_logits, smoothing, data):
    hidden, weight, bias, labels = problem(batch, length, 4, vocabulary, torch.float64)
    labels = labels.where(torch.tensor(data.draw(st.lists(st.booleans(), min_size=batch, max_size=batch)))[:, None], 0)
    losses, gradients = [], []
    for limit in (max_logits, 10**9):
        loss = token_loss_sum(hidden, weight, labels, bias=bias, label_smoothing=smoothing, max_logits=limit)
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss, (hidden, weight, bias)))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("max_logits", [10**9, 22])
def test_gradients_of_several_batches_add_up(max_logits):
    hidden, weight, bias, labels = problem()
    inputs = (hidden, weight, bias)
    for factor in (0.5, -2.0):
        (factor * token_loss_sum(hidden, weight, labels, bias=bias, max_logits=max_logits)).backward()
    wanted = torch.autograd.grad(-1.5 * reference(hidden, weight, bias, labels, 0.0, 1.0), inputs)
    for tensor, other in zip(inputs, wanted, strict=True):
        torch.testing.assert_close(tensor.grad, other, rtol=1e-5, atol=1e-6)


def test_a_second_backward_is_refused_since_the_first_works_in_place():
    hidden, weight, _, labels = problem()
    loss = token_loss_sum(hidden, weight, labels, max_logits=22)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="was taken already"):
        loss.backward()


def test_label_smoothing_is_that_of_transformers():
    hidden, weight, bias, labels = problem()
    logits = hidden @ weight.T + bias
    expected = LabelSmoother(epsilon=0.1)({"logits": logits}, labels, num_items_in_batch=1)
    for max_logits in (None, 22):
        loss = token_loss_sum(hidden, weight, labels, bias=bias, label_smoothing=0.1, max_logits=max_logits)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("max_logits", [None, 22])
def test_given_places_of_the_targets_equal_the_search_for_them(max_logits):
    hidden, weight, _, labels = problem()
    places = (labels.flatten() != -100).nonzero().flatten()
    found = token_loss_sum(hidden, weight, labels, max_logits=max_logits)
    given_places = token_loss_sum(hidden, weight, labels, target_index=places, max_logits=max_logits)
    assert torch.equal(found, given_places)


@pytest.mark.parametrize("max_logits", [None, 22])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_correct_tokens_are_counted_and_padding_is_not(max_logits, smoothing):
    hidden, weight, bias, labels = problem(4, 6)
    predicted = (hidden @ weight.T + bias).argmax(-1)
    labels[1] = predicted[1]
    labels[2, :3] = predicted[2, :3]
    expected = int(((predicted == labels) & (labels != -100)).sum())
    assert expected >= 9
    with torch.no_grad():
        loss, correct = token_loss_and_correct(
            hidden, weight, labels, bias=bias, label_smoothing=smoothing, max_logits=max_logits
        )
    assert correct.item() == expected
    assert not loss.requires_grad
    wanted = reference(hidden, weight, bias, labels, smoothing, 1.0)
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("max_logits", [None, 1])
def test_no_label_gives_exactly_zero(max_logits):
    hidden, weight, bias, labels = problem()
    loss, correct = token_loss_and_correct(
        hidden, weight, torch.full_like(labels, -100), bias=bias, label_smoothing=0.1, max_logits=max_logits
    )
    gradients = torch.autograd.grad(loss, (hidden, weight, bias))
    assert loss.item() == 0.0
    assert correct.item() == 0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


@pytest.mark.parametrize("max_logits", [None, 300])
def test_bf16_autocast_accumulates_the_loss_in_fp32(max_logits):
    hidden, weight, bias, labels = problem(8, 40, 16, 100)
    inputs = (hidden, weight, bias)
    expected = reference(hidden, weight, bias, labels, 0.0, 1.0)
    expected_gradients = torch.autograd.grad(expected, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        loss = token_loss_sum(hidden, weight, labels, bias=bias, max_logits=max_logits)
        logits = F.linear(hidden, weight).float() + bias
    assert loss.dtype == torch.float32
    rounded = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(loss, rounded, rtol=2e-6, atol=0)  # bf16 logits, but their losses summed in fp32
    for gradient, wanted in zip(torch.autograd.grad(loss, inputs), expected_gradients, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - wanted).norm() < 0.01 * wanted.norm()


def test_frozen_output_embedding_gets_no_gradient():
    hidden, weight, _, labels = problem()
    loss = token_loss_sum(hidden, weight.detach(), labels, max_logits=22)
    loss.backward()
    wanted = torch.autograd.grad(reference(hidden, weight, torch.zeros(1, 11), labels, 0.0, 1.0), hidden)[0]
    torch.testing.assert_close(hidden.grad, wanted, rtol=1e-5, atol=1e-6)
    assert weight.grad is None


class Operations(TorchDispatchMode):
    """Notes each operation that gives a tensor, and how many elements that has."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.noted.append((func._schema.name.removeprefix("aten::"), tensor.numel()))
        return result

    def passes(self, elements: int) -> list[str]:
        """The operations over so many elements that are no views."""
        views = ("t", "permute", "slice", "detach", "alias")
        return [name for name, size in self.noted if size == elements and name not in views]


@pytest.mark.parametrize("autocast", [False, True])
def test_large_vocabulary_never_holds_more_than_one_chunk_of_logits(autocast):
    vocabulary, width, limit = 250_112, 2, 2**20  # 4 tokens a chunk; all logits would be 22 times as many
    hidden, weight, _, labels = problem(10, 10, width, vocabulary)
    with Operations() as operations, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = token_loss_sum(hidden, weight, labels, label_smoothing=0.1, max_logits=limit)
        loss.backward()
    assert max(size for _, size in operations.noted) == 4 * vocabulary
    expected = reference(hidden, weight, torch.zeros(1), labels, 0.1, 1.0)
    torch.testing.assert_close(loss, expected, rtol=1e-2 if autocast else 1e-6, atol=0)


@pytest.mark.parametrize("gradient", [True, False])
def test_passes_over_the_logits_of_a_chunk(gradient):
    hidden, weight, _, labels = problem(3, 10, 7, 50)  # 19 targets: chunks of 10 and 9
    with Operations() as forward, torch.set_grad_enabled(gradient):
        loss = token_loss_sum(hidden, weight, labels, max_logits=10 * 50)
    wanted = ["mm", "softmax"] + (["scatter_"] if gradient else [])  # beside what reduces them
    assert forward.passes(10 * 50) == wanted
    assert forward.passes(50 * 7) == (["mm", "addmm_"] if gradient else [])
    if gradient:
        with Operations() as backward:
            loss.backward()
        assert backward.passes(50 * 7) == ["mul_"]  # and no copy for `weight.grad`


@pytest.mark.parametrize("architecture", ["t5-scaled", "t5-unscaled", "bart"])
@pytest.mark.parametrize("max_logits", [None, 80])
def test_equals_the_loss_of_the_model_itself(architecture, max_logits):
    torch.manual_seed(1)
    if architecture == "bart":
        config = BartConfig(vocab_size=40, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, dropout=0.0)
        config.update(dict.fromkeys(["encoder_layers", "decoder_layers"], 1))
        config.update(dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 2))
        model = BartForConditionalGeneration(config)
        torch.nn.init.normal_(model.final_logits_bias)
        bias, scale = model.final_logits_bias, 1.0
    else:
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
        model = T5ForConditionalGeneration(T5Config(vocab_size=40, decoder_start_token_id=0, **sizes))
        model.config.scale_decoder_outputs = architecture == "t5-scaled"
        bias, scale = None, 16**-0.5 if model.config.scale_decoder_outputs else 1.0
    source = torch.randint(3, 40, (2, 5))
    labels = torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100]])
    outputs = model(input_ids=source, labels=labels, output_hidden_states=True, use_cache=False)
    loss = token_loss_sum(
        outputs.decoder_hidden_states[-1], model.lm_head.weight, labels, bias=bias, scale=scale, max_logits=max_logits
    )
    torch.testing.assert_close(loss, outputs.loss * 6, rtol=1e-6, atol=0)
