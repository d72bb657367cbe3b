"""What a training tells when the memory is too small."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from config.flags.model import TrainModelFlags
from config.flags.run import BatchFlags
from config.flags.train import TrainConfig
from training.fit import memory_errors
from training.lightning_loop import take_over_loop
from utils.errors import RunError

MODULE: Any = SimpleNamespace(device=torch.device("cuda", 0), batch_shape="48 rows x 512 source and 64 target tokens")
NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
]
BEGINNING = "the memory of cuda:0 is too small for a batch of 48 rows x 512 source and 64 target tokens: give "
END = "; the checkpoints that are there are whole"


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_told_with_what_helps(error: Exception) -> None:
    with pytest.raises(RunError) as caught, memory_errors(MODULE, TrainConfig()):
        raise error
    ways = "-max_tokens in place of -batch_size, or -batch_size 24 with -grad_acc 2 (the same training)"
    assert str(caught.value) == f"{BEGINNING}{ways}, or -gradient_checkpointing{END}"


def test_a_model_that_does_not_fit_is_told_before_any_batch() -> None:
    module: Any = SimpleNamespace(device=torch.device("cuda", 0), batch_shape="")
    with pytest.raises(RunError) as caught, memory_errors(module, TrainConfig()):
        raise NO_MEMORY[0]
    assert str(caught.value) == "the model does not fit into the memory of cuda:0"


def test_only_what_is_not_in_use_is_advised() -> None:
    config = replace(
        TrainConfig(), batch=BatchFlags(max_tokens=4096), model=TrainModelFlags(gradient_checkpointing=True)
    )
    with pytest.raises(RunError) as caught, memory_errors(MODULE, config):
        raise NO_MEMORY[0]
    assert str(caught.value) == f"{BEGINNING}a smaller -max_tokens{END}"
    with pytest.raises(RuntimeError, match="shape"), memory_errors(MODULE, config):
        raise RuntimeError("shape '[2, 3]' is invalid")


def test_nothing_but_the_weights_is_moved_to_the_memory_of_the_host_at_the_end() -> None:
    """Lightning moves what the optimizer holds, on every process."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    moved: list[Any] = []
    strategy = SimpleNamespace(optimizers=[optimizer])
    strategy.teardown = lambda: moved.append((dict(optimizer.state), weight.grad))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(advance=None))
    trainer: Any = SimpleNamespace(fit_loop=loop, strategy=strategy, _signal_connector=SimpleNamespace())
    take_over_loop(trainer)
    strategy.teardown()
    assert moved == [({}, None)]
