"""What a pass costs is what torch counts in it; MFU is the share of a card's peak."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.flops import Utilization, matmul_peak, model_flops
from models.forward import decode_teacher_forced
from models.loading import from_config
from models.meter import Totals
from tests.small_configs import CONFIGS, config_of

ROWS, SOURCE, TARGET = 3, 16, 8


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_pass_costs_what_torch_counts(name: str) -> None:
    model = from_config(config_of(name), seed=1)
    ids, labels = torch.full((ROWS, SOURCE), 5), torch.full((ROWS, TARGET), 5)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it does not know all the others
        output = decode_teacher_forced(model, ids, torch.ones_like(ids), labels)
        torch.matmul(output.hidden, output.weight.T)
    counted = model_flops(model)
    assert counted is not None
    assert counted.training(ROWS, ROWS * SOURCE, ROWS * TARGET) == 3 * counter.get_total_flops()


def test_mfu_is_a_share_of_the_peak_of_all_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    model = from_config(config_of("t5"), seed=1)
    totals = Totals(target_tokens=ROWS * TARGET, tokens=ROWS * (SOURCE + TARGET), rows=ROWS, seconds=0.5)
    assert Utilization(model, "bf16", 2).share(totals) is None  # on a CPU
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    on_card: Any = SimpleNamespace(
        device=torch.device("cuda", 0),
        config=model.config,
        parameters=model.parameters,
        named_modules=model.named_modules,
    )
    counted = model_flops(model)
    assert counted is not None
    flops = counted.training(ROWS, ROWS * SOURCE, ROWS * TARGET)
    assert Utilization(on_card, "bf16", 2).share(totals) == flops / 0.5 / (2 * 989.4e12)
    assert Utilization(on_card, "tf32", 1).share(totals) == flops / 0.5 / 494.7e12
    assert Utilization(on_card, "32", 1).share(totals) is None
    next(model.parameters()).requires_grad = False
    assert Utilization(on_card, "bf16", 1).share(totals) is None
    assert matmul_peak("A card of tomorrow", "bf16") is None
