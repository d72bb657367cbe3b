"""The strategies by the value of -strategy: one class each, in a file of its own beside this one."""

from __future__ import annotations

from training.strategies.replicated import Replicated

STRATEGIES = {
    "auto": Replicated(plain_on_one=True),
    "ddp": Replicated(plain_on_one=False),
}
