"""What the routers of a model did in a training pass: their losses, and figures for the log."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from models.switch.modeling_switch_t5 import Routed, SwitchFeedForward

SUMS = 3  # of a layer, behind the load of its experts: choices beyond the capacity, balance losses, z-losses


def switch_layers(model: nn.Module) -> dict[str, SwitchFeedForward]:
    """The switch layers by side and number of the block from 0, as `encoder_1`; none of another model."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, SwitchFeedForward):
            stack, _, block = name.partition(".block.")
            found[f"{stack.rpartition('.')[2]}_{block.partition('.')[0]}"] = module
    return found


def sums_of(layers: Mapping[str, SwitchFeedForward]) -> int:
    """How many numbers `RouterPass.figures` has for these layers."""
    return sum(layer.num_experts + SUMS for layer in layers.values())


class RouterPass:
    """What the switch layers collected in a pass of a micro-batch.

    Args:
        batch: rows that the tensors of the micro-batch have.
        rows: those of them that are rows of the data, the first ones. (A process without rows has a dummy row.)
    """

    def __init__(self, config: PreTrainedConfig, batch: int, rows: int) -> None:
        self.config, self.batch, self.rows = config, batch, rows
        self.layers: list[Routed] = []

    def loss(self) -> Tensor:
        """Balance and z-loss, each times its coefficient: the mean over the layers, summed over the rows."""
        balance, z = self._sums()
        total: Tensor = self.config.router_aux_loss_coef * balance + self.config.router_z_loss_coef * z
        return total.mean()

    @torch.no_grad()
    def figures(self) -> Tensor:
        """(layers * (experts + SUMS),) the load of each expert of a layer, then its sums; what `figures_of` takes."""
        load = torch.stack([layer.load for layer in self.layers]).float()
        dropped = torch.stack([layer.dropped for layer in self.layers]).float()
        return torch.cat((load, torch.stack((dropped, *self._sums()), 1)), 1).flatten()

    def _sums(self) -> tuple[Tensor, Tensor]:
        """(layers,) sums over the rows of balance and z-loss; of a row that stands there twice (R-Drop), the mean."""
        parts = [
            torch.stack(values) for values in zip(*((layer.balance, layer.z) for layer in self.layers), strict=True)
        ]
        balance, z = (part.view(len(part), -1, self.batch)[:, :, : self.rows].mean(1).sum(1) for part in parts)
        return balance, z


@contextmanager
def collected(layers: Sequence[SwitchFeedForward], into: RouterPass) -> Iterator[None]:
    """Within it a pass leaves what its routers do. What checkpointing computes again in the backward pass does not."""
    for layer in layers:
        layer.collected = into.layers
    try:
        yield
    finally:
        for layer in layers:
            layer.collected = None


def figures_of(sums: Sequence[float], names: Sequence[str], rows: int) -> dict[str, float]:
    """Figures by name, from `RouterPass.figures` summed over micro-batches and processes.

    Of each layer the load of its least and most chosen expert (1 = that of all if they were chosen alike), the entropy
    of the load (1 = alike, 0 = one alone is chosen) and the share of choices beyond the capacity. Over the layers the
    means of the balance loss and of the z-loss of a row.
    """
    figures: dict[str, float] = {}
    of_layer = len(sums) // len(names)
    experts = of_layer - SUMS
    parts = [sums[start : start + of_layer] for start in range(0, len(sums), of_layer)]
    for name, part in zip(names, parts, strict=True):
        chosen = sum(part[:experts]) or 1.0
        shares = [load / chosen for load in part[:experts]]
        figures[f"{name}_load_min"] = min(shares) * experts
        figures[f"{name}_load_max"] = max(shares) * experts
        figures[f"{name}_load_entropy"] = -sum(p * math.log(p) for p in shares if p) / math.log(experts)
        figures[f"{name}_dropped"] = part[experts] / chosen
    for place, title in ((1, "router_balance_loss"), (2, "router_z_loss")):
        figures[title] = sum(part[experts + place] for part in parts) / len(names) / max(rows, 1)
    return figures
