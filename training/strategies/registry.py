"""The strategies by the value of -strategy: one class each, in a file of its own beside this one."""

from __future__ import annotations

from training.strategies.base import Strategy
from training.strategies.fsdp import Sharded
from training.strategies.replicated import Replicated

STRATEGIES: dict[str, Strategy] = {
    "auto": Replicated(plain_on_one=True),
    "ddp": Replicated(plain_on_one=False),
    "fsdp": Sharded(offload=False),
    "fsdp_offload": Sharded(offload=True),
}
