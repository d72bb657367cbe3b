"""What only a CUDA device shows of adafactor, whose steps never wait, and of the model of a resumed run."""

from __future__ import annotations

import pytest
import torch

from models.loading import describe, from_checkpoint, from_config
from models.optimizers.build import build_optimizer
from models.optimizers.settings import OptimSettings
from tests.small_configs import with_dropout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]


@pytest.mark.parametrize("rate", [None, 1e-3])
def test_adafactor_steps_as_on_the_cpu_and_never_waits(rate: float | None) -> None:
    models = [from_config(with_dropout("t5"), seed=1).to(device) for device in ("cpu", "cuda")]
    settings = OptimSettings("adafactor", rate, "constant", weight_decay=0.01)
    optimizers = [build_optimizer(model, settings) for model in models]
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


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_a_model_of_a_checkpoint_is_built_on_the_device(architecture: str) -> None:
    model = from_config(with_dropout(architecture), seed=1)
    with torch.device("cuda"):
        built = from_checkpoint(describe(model), model.state_dict())
    for name, value in built.state_dict().items():
        assert value.is_cuda
        assert torch.equal(value.cpu(), model.state_dict()[name]), name
