"""On a CUDA device: fewer casts and `-compile` give the gradients of the CPU in fp32, up to the rounding."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from datamodules.collate import collate
from models.kernels.accelerate import accelerate
from models.kernels.compiled import CompiledBlocks
from models.loading import from_config
from models.losses.objective import batch_loss
from tests.small_configs import config_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]


def gradients(model: PreTrainedModel, rows: int, length: int, precision: torch.dtype) -> Tensor:
    """All gradients of a batch of `rows` rows, of which the longest has `length` tokens; on the CPU."""
    random = np.random.default_rng(rows)
    lengths = [length, *random.integers(1, length, rows - 1)]
    batch = collate([(random.integers(3, 384, n), random.integers(3, 384, 5)) for n in lengths], 0, 64)
    there = {name: value.to(model.device) for name, value in batch.items() if isinstance(value, Tensor)}
    model.zero_grad()
    with torch.autocast("cuda", precision, enabled=precision != torch.float32):
        loss, _ = batch_loss(model, there)
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.cat([part.grad.flatten().cpu() for part in model.parameters() if part.grad is not None])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["t5", "umt5", "bart"])
def test_gradients_of_a_step(kind: str, compiled: bool) -> None:
    plain = from_config(config_of(kind), seed=1).train()
    model = copy.deepcopy(plain).cuda()
    accelerate(model)
    if compiled:
        blocks = CompiledBlocks(model, "cuda")
        blocks.on = True
    for rows, length in ((3, 100), (5, 40), (9, 120)):
        wanted = gradients(plain, rows, length, torch.float32)
        for precision, bound in ((torch.float32, 1e-4), (torch.bfloat16, 0.06)):
            assert (gradients(model, rows, length, precision) - wanted).norm() <= bound * wanted.norm()
    if compiled:
        assert 0 < blocks.compilations <= 12
