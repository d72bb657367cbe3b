"""The Triton kernel of attention on CPU tensors, in Triton's interpreter; `test_fused_attention.py` runs this."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.forward import decode_teacher_forced
from models.kernels import attention as kernel
from models.kernels.accelerate import accelerate
from models.kernels.fused import use_fused_attention
from models.loading import from_config
from tests.plain_attention import kept_by_dropout, plain_attention
from tests.small_configs import config_of


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "block_size", lambda _: 16)


@pytest.mark.parametrize(
    ("queries", "keys", "bias", "padded", "causal", "dropout"),
    [
        (19, 19, True, True, False, 0.1),  # an encoder of T5
        (21, 21, True, False, True, 0.1),  # a decoder of T5
        (5, 37, False, True, False, 0.0),  # cross-attention
        (16, 16, False, False, True, 0.0),  # a decoder of BART, one block exactly
        (33, 1, True, False, False, 0.0),
    ],
)
def test_values_and_gradients(queries: int, keys: int, bias: bool, padded: bool, causal: bool, dropout: float) -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, n, 2, 16, requires_grad=True) for n in (queries, keys, keys))
    table = torch.randn(2, queries + keys - 1, requires_grad=True) if bias else None
    lengths = torch.tensor([keys, keys // 3], dtype=torch.int32) if padded else None
    options = {"table": table, "lengths": lengths, "causal": causal, "scale": 0.3}
    kept = kept_by_dropout(kernel.attention, q.detach(), keys, dropout, 5) if dropout else None
    torch.manual_seed(5)
    found = kernel.attention(q, k, v, dropout=dropout, **options)
    wanted = plain_attention(q, k, v, kept=kept, **options)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=5e-6)
    inputs = [part for part in (q, k, v, table) if part is not None]
    grad = torch.randn_like(found)
    gradients = zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(wanted, inputs, grad.double()), strict=True
    )
    for one, other in gradients:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_half_precision_keeps_scores_in_fp32() -> None:
    """In fp16; of bf16 the interpreter cannot make products."""
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, 20, 1, 16, dtype=torch.float16, requires_grad=True) for _ in range(3))
    table = (torch.randn(1, 39) * 10).requires_grad_()  # T5's biases are as large
    inputs = (q, k, v, table)
    found, wanted = kernel.attention(q, k, v, table=table), plain_attention(q, k, v, table)
    assert found.dtype == torch.float16
    assert (found - wanted).norm() < 5e-4 * wanted.norm()
    gradients = torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(wanted.sum(), inputs)
    for one, other in zip(*gradients, strict=True):
        assert (one.double() - other.double()).norm() < 2e-3 * other.double().norm()


def test_dropout_follows_the_seed_at_its_rate() -> None:
    q = torch.zeros(2, 32, 2, 16)
    first, again, other = (kept_by_dropout(kernel.attention, q, 16, 0.2, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    dropped = torch.stack((first, other)) == 0
    assert abs(float(dropped.double().mean()) - 0.2) < 0.025  # 4,096 draws: four deviations
    apart = torch.corrcoef(dropped.double().flatten(2).flatten(0, 1)) - torch.eye(4)
    assert apart.abs().max() < 0.2  # every head of every row draws its own


def test_recomputed_activations_have_the_same_dropout() -> None:
    q = torch.randn(1, 16, 1, 16, requires_grad=True)
    found = []
    for run in (lambda: of_itself(q), lambda: checkpoint(of_itself, q, use_reentrant=False)):
        torch.manual_seed(3)
        found.append(torch.autograd.grad(run().sum(), q)[0])
    assert torch.equal(*found)


def of_itself(q: Tensor) -> Tensor:
    return kernel.attention(q, q, q, dropout=0.3)


@pytest.mark.parametrize("kind", ["t5", "umt5", "bart", "mbart", "pegasus", "m2m_100"])
def test_a_model_computes_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, calls = kernel.attention, []
    monkeypatch.setattr(
        kernel, "attention", lambda *args, **options: (calls.append(options), launch(*args, **options))[1]
    )
    if "t5" in kind:
        config = config_of(kind, num_heads=2, num_layers=2, num_decoder_layers=1, d_kv=16)
    else:
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        config = config_of("bart", **heads, encoder_layers=1, decoder_layers=1, model_type=kind)
    plain = from_config(config, seed=1).train()
    fused = copy.deepcopy(plain)
    use_fused_attention(fused)
    accelerate(fused)
    mask = torch.arange(19) < torch.tensor([19, 7])[:, None]
    ids = torch.randint(3, 384, (2, 19), generator=torch.Generator().manual_seed(1)).where(mask, 0)
    labels = ids[:, :9].where(mask[:, :9], -100)
    found: list[list[Tensor]] = []
    for model in (plain, fused):
        hidden = decode_teacher_forced(model, ids, mask[:, None, None], labels).hidden
        (hidden * torch.linspace(-1, 1, hidden.shape[-1])).sum().backward()
        found.append([hidden, *(part.grad for part in model.parameters() if part.grad is not None)])
    assert len(found[0]) == len(found[1])
    assert len(calls) == (4 if "t5" in kind else 3)  # every attention, also those of the decoder
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
