"""The loss on a CUDA device: products that stay in fp32, an odd vocabulary, fp16's small gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.loss import token_loss_sum

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
