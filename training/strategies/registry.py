"""The strategies by the value of -strategy: one class each, in a file of its own beside this one."""

from __future__ import annotations

from training.strategies.base import Strategy
from training.strategies.deepspeed import Zero
from training.strategies.fsdp import Sharded
from training.strategies.replicated import Replicated
from training.strategies.zero_engine import ZeroSettings

STRATEGIES: dict[str, Strategy] = {
    "auto": Replicated(plain_on_one=True),
    "ddp": Replicated(plain_on_one=False),
    "fsdp": Sharded(offload=False),
    "fsdp_offload": Sharded(offload=True),
    **{
        settings.name: Zero(settings)
        for settings in (
            ZeroSettings("deepspeed_1", 1),
            ZeroSettings("deepspeed_2", 2),
            ZeroSettings("deepspeed_2_fusedadam", 2, fused=True),
            ZeroSettings("deepspeed_2_optim_offload", 2, offload_state=True),
            ZeroSettings("deepspeed_3", 3),
            ZeroSettings("deepspeed_3_full", 3, offload_state=True, offload_weights=True),
        )
    },
}
