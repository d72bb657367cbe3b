"""Several models that decode together: the logits are the mean of their log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.decoder_step import StepModel, StepState


class EnsembleState:
    """`StepState` for several models. The search normalises the mean again, so that it is a distribution."""

    def __init__(self, states: Sequence[StepState]) -> None:
        self.states = states
        self.dtype = states[0].dtype

    def logits(self, tokens: Tensor, step: int) -> Tensor:
        return torch.stack([state.logits(tokens, step).log_softmax(2) for state in self.states]).mean(0)

    def follow(self, parents: Tensor) -> None:
        for state in self.states:
            state.follow(parents)

    def keep(self, rows: Tensor) -> None:
        for state in self.states:
            state.keep(rows)


def start(
    models: Sequence[StepModel], input_ids: Tensor, attention_mask: Tensor, beams: int
) -> StepState | EnsembleState:
    """`beams` outputs of every row of (batch, source_length) ids under one model or several."""
    states = [model.start(input_ids, attention_mask, beams) for model in models]
    return states[0] if len(states) == 1 else EnsembleState(states)
