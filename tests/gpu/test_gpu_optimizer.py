"""What only a CUDA device shows of adafactor: its steps are those of the CPU, and the host does not wait."""

from __future__ import annotations

import pytest
import torch

from models.loading import from_config
from models.optim import build_optimizer
from tests.small_configs import with_dropout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]


@pytest.mark.parametrize("rate", [None, 1e-3])
def test_adafactor_steps_as_on_the_cpu_and_never_waits(rate: float | None) -> None:
    models = [from_config(with_dropout("t5"), seed=1).to(device) for device in ("cpu", "cuda")]
    optimizers = [build_optimizer(model, "adafactor", rate, 0.01) for model in models]
    for step in range(5):
        for on_cpu, on_gpu in zip(models[0].parameters(), models[1].parameters(), strict=True):
            on_cpu.grad = torch.randn(on_cpu.shape, generator=torch.Generator().manual_seed(step))
            on_gpu.grad = on_cpu.grad.cuda()
        optimizers[0].step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizers[1].step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for on_cpu, on_gpu in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-6)
