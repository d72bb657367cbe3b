"""AdaLoRA: the ranks that are left, bit for bit as `peft` chooses them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.adapters.methods import chosen_adapter
from models.adapters.rank_allocation import RankAllocation, budget
from models.adapters.tuning import apply, state
from models.loading import from_config
from tests.small_configs import config_of

pytestmark = pytest.mark.filterwarnings("ignore")
IDS, LABELS = torch.arange(3, 30).view(3, 9), torch.arange(40, 55).view(3, 5)
STEPS = 10


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    for module in model.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01)


def singular_values(model: nn.Module) -> Tensor:
    return torch.cat([value for name, value in model.state_dict().items() if "lora_E" in name])


def test_ranks_and_weights_are_those_of_peft_also_after_a_resume() -> None:
    peft = pytest.importorskip("peft")
    ours, theirs = (from_config(config_of("t5"), seed=4) for _ in range(2))
    adapter = chosen_adapter(ours, "adalora", (), (), 4, 8, 0.0)
    apply(ours, adapter)
    config = peft.AdaLoraConfig(
        init_r=6,
        target_r=4,
        lora_alpha=8,
        target_modules=["q", "v"],
        task_type="SEQ_2_SEQ_LM",
        total_step=STEPS,
        tinit=STEPS // 10,
        tfinal=STEPS // 2,
    )
    library = peft.get_peft_model(theirs, config)
    theirs.load_state_dict(state(ours), strict=False)
    optimizers = [optimizer_of(ours), optimizer_of(library)]
    ranks = RankAllocation(ours, STEPS, {})
    left = []
    for step in range(1, STEPS + 1):
        for part in (slice(0, 1), slice(1, 3)) if step == 2 else (slice(0, 3),):  # in two parts: the same sum
            (ours(input_ids=IDS[part], labels=LABELS[part]).loss * len(IDS[part]) / len(IDS)).backward()
        ranks.regularise()
        library(input_ids=IDS, labels=LABELS).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if step in (3, 7):
            ranks = RankAllocation(ours, STEPS, ranks.state())
        ranks.update(step)
        library.base_model.update_and_allocate(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        kept = [singular_values(model) != 0 for model in (ours, theirs)]
        assert torch.equal(*kept)
        left.append(int(kept[0].sum()))
    assert left == [12 * 6, *(budget(step, STEPS, 12, adapter) for step in range(2, STEPS + 1))]
    assert left[4:] == [12 * 4] * 6
    for name, value in state(ours).items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=0, atol=1e-5)


def test_a_run_of_one_step_keeps_the_ranks_that_it_is_to_have() -> None:
    model = from_config(config_of("t5"), seed=4)
    apply(model, chosen_adapter(model, "adalora", (), (), 1, 2, 0.0))
    optimizer, ranks = optimizer_of(model), RankAllocation(model, 1, {})
    model(input_ids=IDS, labels=LABELS).loss.backward()
    optimizer.step()
    ranks.update(1)
    assert int((singular_values(model) != 0).sum()) == 12
