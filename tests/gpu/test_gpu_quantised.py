"""A base in 8 or 4 bits on a CUDA device: the same bits, trained as on the CPU."""

from __future__ import annotations

import pytest
import torch

from models.adapters.methods import chosen_adapter
from models.adapters.quantised import quantise, quantised_layers
from models.adapters.tuning import MergedWeights, apply, own_names
from models.kernels.accelerate import accelerate
from models.loading import from_config
from tests.small_configs import config_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_rounded_base_trains_as_on_the_cpu(name: str, load_in: str) -> None:
    pytest.importorskip("bitsandbytes")
    ids, labels = torch.arange(3, 30).view(3, 9), torch.arange(40, 55).view(3, 5)
    found = []
    for device in ("cpu", "cuda"):
        model = from_config(config_of(name), seed=4).eval()
        torch.manual_seed(2)
        apply(model, chosen_adapter(model, "lora", (), (), 4, 8, 0.0))
        quantise(model, load_in)
        accelerate(model)
        model.to(device)
        model(input_ids=ids.to(device), labels=labels.to(device)).loss.backward()
        gradients = {path: dict(model.named_parameters())[path].grad.cpu() for path in own_names(model)}
        with torch.no_grad(), MergedWeights(model):
            assert not quantised_layers(model)
            logits = model(input_ids=ids.to(device), decoder_input_ids=labels.to(device)).logits.cpu()
        found.append((logits, gradients))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)
