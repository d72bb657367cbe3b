"""AdaLoRA's ranks (Zhang et al. 2023): which singular values each layer keeps while their number falls.

An adapted layer adds B diag(E) A to its matrix. After every optimizer step the importance of each triplet is taken up,
a singular value of E with its row of A and its column of B, and the least important ones of all layers get 0 in E. The
choice is a function of the step and of running sums. They are the same on every process, as gradients are, and a
checkpoint holds them. `peft.tuners.adalora.RankAllocator` computes the same, but reads every mask on the host; nothing
here waits for a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.adapters.methods import Adapter
from models.adapters.tuning import NAME, adapted_layers, adapter_of

RANKS_KEY = "s2s_rank_sums"  # in a checkpoint
SUMS = ("sensitivity", "uncertainty")  # there: by names of parameters
MATRICES = ("lora_A", "lora_B", "lora_E")  # of a layer
DECAY = 0.85  # of both sums, as in the paper
ORTHOGONAL = 0.5  # weight of the regularisation, as in `peft`


def rank_matrix(name: str) -> bool:
    """Whether a weight of this name has sums."""
    return name.endswith(tuple(f".{part}.{NAME}" for part in MATRICES))


def budget(step: int, total_steps: int, layers: int, adapter: Adapter) -> int | None:
    """Triplets that are left after optimizer step `step`, counted from 1; None = all of them.

    The first tenth of the steps keeps all, the second half keeps the rank of the adapter on average, and between them
    the number falls with the third power (equation 12 of the paper).
    """
    first, last = total_steps // 10, total_steps - total_steps // 2
    if step <= first:
        return None
    left = 1 - (min(step, last) - first) / (last - first)
    return layers * adapter.r + int(layers * (adapter.first_r - adapter.r) * left**3)


class RankAllocation:
    """The running sums of a model that trains an AdaLoRA, and what they do to it.

    Args:
        total_steps: optimizer steps of the schedule.
        saved: the sums of a run that goes on, as `state` gave them.
    """

    def __init__(self, model: PreTrainedModel, total_steps: int, saved: Mapping[str, Mapping[str, Tensor]]) -> None:
        adapter = adapter_of(model)
        assert adapter is not None
        self.adapter, self.total_steps = adapter, total_steps
        self.layers = [
            {part: f"{name}.{part}.{NAME}" for part in MATRICES} for name, layer in adapted_layers(model).items()
        ]
        parameters = dict(model.named_parameters())
        self.parameters = {name: parameters[name] for layer in self.layers for name in layer.values()}
        self.sums = {
            kind: {
                name: saved[kind][name].to(value.device, copy=True) if saved else torch.zeros_like(value.detach())
                for name, value in self.parameters.items()
            }
            for kind in SUMS
        }

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The sums, for a checkpoint."""
        return {kind: dict(values) for kind, values in self.sums.items()}

    def regularise(self) -> None:
        """Add the gradient of the orthogonal regularisation to that of an optimizer step, once however it was summed.

        It is the mean over all A and B of the norm of A A^T - 1 and B^T B - 1. Their own gradients are taken, not those
        of `backward`, which would be summed over processes.
        """
        thin = [self.parameters[layer[part]] for layer in self.layers for part in MATRICES[:2]]
        with torch.enable_grad():
            norms = [_distance(value if index % 2 == 0 else value.t()) for index, value in enumerate(thin)]
            gradients = torch.autograd.grad(ORTHOGONAL * torch.stack(norms).mean(), thin)
        for parameter, gradient in zip(thin, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take up the gradients of optimizer step `step`, counted from 1, and zero the singular values that go."""
        if step < self.total_steps - self.total_steps // 2 or step == 1:
            for name, parameter in self.parameters.items():
                self._take_up(name, parameter)
        left = budget(step, self.total_steps, len(self.layers), self.adapter)
        if left is None:
            return
        scores = [self._scores(layer) for layer in self.layers]
        gone = torch.cat(scores).sort().values[-left - 1]  # kthvalue is none of CUDA's deterministic operations
        for layer, own in zip(self.layers, scores, strict=True):
            self.parameters[layer["lora_E"]].masked_fill_((own <= gone).unsqueeze(1), 0.0)

    def _take_up(self, name: str, parameter: nn.Parameter) -> None:
        sensitivity, uncertainty = (self.sums[kind] for kind in SUMS)
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found = (parameter * gradient.nan_to_num(0.0, 0.0, 0.0)).abs()  # fp16 skips a step that overflows
        sensitivity[name] = DECAY * sensitivity[name] + (1 - DECAY) * found
        change = (found - sensitivity[name]).abs()
        uncertainty[name] = DECAY * uncertainty[name] + (1 - DECAY) * change

    def _scores(self, layer: Mapping[str, str]) -> Tensor:
        """(rank,) importance of each triplet of a layer."""
        sensitivity, uncertainty = (self.sums[kind] for kind in SUMS)
        a, b, e = (sensitivity[layer[part]] * uncertainty[layer[part]] for part in MATRICES)
        return e.view(-1) + torch.stack((a.mean(1), b.mean(0)), 1).sum(1)


def _distance(matrix: Tensor) -> Tensor:
    square = matrix @ matrix.t()
    found: Tensor = torch.linalg.matrix_norm(square - torch.eye(len(square), device=square.device, dtype=square.dtype))
    return found


def rank_allocation(model: PreTrainedModel, total_steps: int, saved: Mapping[str, Any]) -> RankAllocation | None:
    """That of a model that trains an AdaLoRA; None of any other."""
    adapter = adapter_of(model)
    return RankAllocation(model, total_steps, saved) if adapter and adapter.method == "adalora" else None
