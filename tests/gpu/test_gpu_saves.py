"""Copies of a GPU's tensors for a save: in pinned memory, of the values at that moment."""

from __future__ import annotations

import pytest
import torch

from checkpoints.background import HostCopies

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]


def test_copies_of_a_gpu_are_pinned_used_again_and_of_that_moment() -> None:
    copies = HostCopies()
    weights = torch.arange(1 << 20, dtype=torch.float32, device="cuda")
    state = {"weights": weights, "tied": weights, "step": torch.tensor(3.0)}
    first = copies.of(state)
    weights.zero_()
    torch.cuda.synchronize()
    assert torch.equal(first["weights"], torch.arange(1 << 20, dtype=torch.float32))
    assert first["weights"].is_pinned()
    assert first["tied"].data_ptr() == first["weights"].data_ptr()
    second = copies.of(state)
    assert second["weights"].data_ptr() == first["weights"].data_ptr()
    assert not second["weights"].any()
