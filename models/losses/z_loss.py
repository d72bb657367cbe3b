"""A loss that keeps the normalizer of the softmax near 1, so that logits do not drift."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.losses.chunked import Criterion


@dataclass(frozen=True)
class WithZLoss:
    """A criterion and weight * log(Z)^2 for each token, Z = the sum of exp of its logits.

    Chowdhery et al. 2022, "PaLM", section 5; T5X trains T5 1.1 with it.

    Args:
        weight: above 0.
        token_weights: (target tokens,) factors; None = all 1.
    """

    criterion: Criterion
    weight: float
    token_weights: Tensor | None = None

    @property
    def passes(self) -> int:
        """Those of the criterion."""
        return self.criterion.passes

    def __call__(
        self, logits: Tensor, target: Tensor, vocabulary: int, places: slice, *, with_gradient: bool
    ) -> Tensor:
        """See `Criterion`."""
        own = logits[:, :vocabulary]
        log_z = own.logsumexp(-1, keepdim=True)
        factors = self.weight if self.token_weights is None else self.weight * self.token_weights[places].unsqueeze(1)
        slope = (own - log_z).exp_().mul_(2 * factors * log_z) if with_gradient else None  # softmax * d log(Z)^2
        loss = self.criterion(logits, target, vocabulary, places, with_gradient=with_gradient)
        if slope is not None:
            own.add_(slope)
        extra: Tensor = (factors * torch.square(log_z)).sum()
        return loss + extra
