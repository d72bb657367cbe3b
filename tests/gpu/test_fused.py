"""On a CUDA device: the loss, whose products stay in fp32, and `-attention fused`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.losses.cross_entropy import token_loss_sum
from tests.cli.command import train_ok
from tests.gpu.test_gpu import write_copy_task
from tests.plain_attention import kept_by_dropout, plain_attention
from tests.small_configs import with_dropout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_the_loss_and_its_gradients_are_rounded_once(dtype: torch.dtype, error: float) -> None:
    torch.manual_seed(1)
    labels = torch.randint(50_265, (8, 40))
    hidden = torch.randn(8, 40, 64).bfloat16().double().requires_grad_()
    weight = torch.randn(50_265, 64).bfloat16().double().requires_grad_()

    def gradients(hidden: Tensor, weight: Tensor, labels: Tensor) -> list[Tensor]:
        loss = token_loss_sum(hidden, weight, labels, max_logits=50_265 * 200)
        return [loss.detach(), *torch.autograd.grad(loss, (hidden, weight))]

    wanted = gradients(hidden, weight, labels)
    with torch.autocast("cuda", dtype):
        found = gradients(
            hidden.detach().float().cuda().requires_grad_(),
            weight.detach().float().cuda().requires_grad_(),
            labels.cuda(),
        )
    for bound, one, other in zip((1e-6, error, error), found, wanted, strict=True):
        assert (one.cpu() - other).norm() < bound * other.norm()


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    ("queries", "keys", "causal", "width"), [(200, 200, False, 64), (77, 77, True, 128), (9, 130, False, 16)]
)
def test_the_attention_kernel(
    dtype: torch.dtype, error: float, queries: int, keys: int, causal: bool, width: int
) -> None:
    from models.kernels.attention import attention

    torch.manual_seed(1)
    q, k, v = (torch.randn(2, n, 3, width, device="cuda").to(dtype).requires_grad_() for n in (queries, keys, keys))
    table = torch.randn(3, queries + keys - 1, device="cuda", requires_grad=True) if queries == keys else None
    lengths = None if causal else torch.tensor([keys, 50], dtype=torch.int32, device="cuda")
    options = {"table": table, "lengths": lengths, "causal": causal, "scale": width**-0.5}
    inputs = [part for part in (q, k, v, table) if part is not None]
    kept = kept_by_dropout(attention, q.detach(), keys, 0.1, 5)
    assert abs(float((kept == 0).double().mean()) - 0.1) < 0.02
    grad = torch.randn_like(q)

    def outputs() -> list[Tensor]:
        torch.manual_seed(5)
        found = attention(q, k, v, dropout=0.1, **options)
        return [found.detach(), *torch.autograd.grad(found, inputs, grad)]

    found = outputs()
    wanted = plain_attention(q, k, v, kept=kept, **options)
    expected = [wanted, *torch.autograd.grad(wanted, inputs, grad.double())]
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other.double()).norm() < error * other.double().norm()
    assert all(torch.equal(one, again) for one, again in zip(found, outputs(), strict=True))


@pytest.mark.parametrize("architecture", ["t5-untied", "umt5", "bart"])
def test_training_with_fused_attention_learns(architecture: str, tmp_path: Path) -> None:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2} if architecture == "bart" else {"d_kv": 16}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**with_dropout(architecture), **heads}))
    data = write_copy_task(tmp_path / "data.tsv", 512)
    run = tmp_path / "run"
    train_ok(
        "-train_data", data, "-valid_data", f"{data}:4", "-config_path", config, "-save_path", run, "-gpus", "1",
        "-attention", "fused", "-max_epoch", "12", "-batch_size", "32", "-learning_rate", "3e-3",
    )  # fmt: skip
    assert json.loads((run / "log.json").read_text())[-1]["exact_match"] > 0.95
