"""Two losses of the same rows: the cross-entropy of target tokens, and the contrastive loss of a query and a passage.

    L = sum over target tokens of -log p / target tokens + weight * sum over rows of the contrastive loss / rows

Tokens and rows are those of the optimizer step on all ranks, so that either part is what it would be alone, and its
gradient that of one big batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.losses.contrastive import Contrastive
from models.losses.objective import Objective
from models.meter import StepMeter
from models.retrieval.ranking import RankingMeter

SUMS = 1  # of `PairLoss.figures`


@dataclass(frozen=True)
class PairLoss:
    """The contrastive loss of a micro-batch, summed over its rows."""

    summed: Tensor
    weight: float

    def loss(self) -> Tensor:
        """Its part in the loss, summed over the rows."""
        return self.weight * self.summed

    def figures(self) -> Tensor:
        """(SUMS,) what the log adds up."""
        return self.summed.detach().float().reshape(1)


@dataclass(frozen=True)
class Joint:
    """What a training step minimizes and a validation measures, where a batch holds pairs as `cloze`.

    Args:
        weight: of the contrastive loss, above 0.
    """

    cross_entropy: Objective
    contrastive: Contrastive
    weight: float
    teacher = None

    @property
    def encoder_alone(self) -> bool:
        """See `Objective`."""
        return self.cross_entropy.encoder_alone

    def begin_step(self, model: PreTrainedModel, batch: Mapping[str, Any], seed_of: Callable[[int], int]) -> None:
        """See `Contrastive`."""
        self.contrastive.begin_step(model, batch["cloze"], seed_of)

    def of_pairs(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> PairLoss:
        """The contrastive loss of a micro-batch; it comes before any other pass, as `begin_step` drew its dropout from
        the seed of the micro-batch."""
        return PairLoss(self.contrastive(model, batch["cloze"]), self.weight)

    def __call__(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor:
        """The cross-entropy, summed over the target tokens."""
        return self.cross_entropy(model, batch)

    def validate(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """What `JointMeter` takes of a batch."""
        return *self.contrastive.validate(model, batch["cloze"]), *self.cross_entropy.validate(model, batch)

    def validation_meter(self) -> JointMeter:
        """What adds up the batches of a validation."""
        return JointMeter(self.cross_entropy.validation_meter(), self.contrastive.validation_meter())


@dataclass(frozen=True)
class JointMeter:
    """Both parts of a validation, each as it is measured alone."""

    cross_entropy: StepMeter
    ranking: RankingMeter

    def add_batch(self, batch: Mapping[str, Any], queries: Tensor, passages: Tensor, *of_text: Tensor) -> None:
        """Take the vectors of a batch, and what `Objective.validate` gives."""
        self.ranking.add_batch(batch["cloze"], queries, passages)
        self.cross_entropy.add_batch(batch, *of_text)

    def figures(self, device: torch.device, world_size: int) -> dict[str, float]:
        """The figures of a validation; every rank must call it, and waits for the device."""
        ranked = self.ranking.figures(device, world_size)
        of_pairs = {"val_contrastive_loss": ranked.pop("val_loss"), **ranked}
        return {**self.cross_entropy.figures(device, world_size), **of_pairs}


def pair_figures(sums: Sequence[float], rows: int) -> dict[str, float]:
    """Figures by name, from `PairLoss.figures` summed over micro-batches and processes."""
    return {"contrastive_loss": sums[0] / max(rows, 1)}
