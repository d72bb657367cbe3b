"""Muon for the matrices of the layers and AdamW for all else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

MATRICES = "matrices"  # in a group: whether muon moves it


class MuonAndAdamW(Optimizer):
    """torch's Muon (Jordan et al. 2024) and AdamW over groups and states that both share.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2),
    so that one learning rate serves both. Its momentum is 0.95.

    Args:
        groups: as torch has them, and in each the entry `MATRICES`.
        adam: settings of AdamW.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, **adam: Any) -> None:
        by_muon = [group for group in groups if group[MATRICES]]
        others = [group for group in groups if not group[MATRICES]]
        self._muon = torch.optim.Muon(by_muon, lr=lr, adjust_lr_fn="match_rms_adamw")
        self._adam = torch.optim.AdamW(others, lr=lr, **adam)
        super().__init__([*self._muon.param_groups, *self._adam.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure` gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, by_muon in ((self._muon, True), (self._adam, False)):
            # Here, since a loaded state comes with other groups and another mapping.
            part.param_groups = [group for group in self.param_groups if group[MATRICES] is by_muon]
            part.state = self.state
            part.step()  # type: ignore[no-untyped-call]
        return loss
