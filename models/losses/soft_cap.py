"""Logits that are bounded before the loss, as Gemma's are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.losses.chunked import Criterion


@dataclass(frozen=True)
class SoftCapped:
    """A criterion of softcap * tanh(logits / softcap).

    Gemma Team 2024, "Gemma 2: Improving Open Language Models at a Practical Size", section 2.

    Args:
        softcap: above 0; no logit is larger.
    """

    criterion: Criterion
    softcap: float

    @property
    def passes(self) -> int:
        """Those of the criterion."""
        return self.criterion.passes

    def __call__(
        self, logits: Tensor, target: Tensor, vocabulary: int, places: slice, *, with_gradient: bool
    ) -> Tensor:
        """See `Criterion`."""
        capped = logits[:, :vocabulary]
        capped.div_(self.softcap).tanh_()
        slope = 1.0 - capped.square() if with_gradient else None  # d tanh(x) / dx
        capped.mul_(self.softcap)
        loss = self.criterion(logits, target, vocabulary, places, with_gradient=with_gradient)
        if slope is not None:
            capped.mul_(slope)
        return loss
