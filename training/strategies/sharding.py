"""What strategies share whose processes hold parts of a model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from models.architectures import architecture
from training.lightning_loop import leaves_out_parameters
from utils.errors import UserError


def check_model(flag: str, config: PreTrainedConfig) -> None:
    """Refuse a model that was not tried in parts, or whose processes would not go through the same layers.

    Raises:
        UserError: names the flag.
    """
    if not architecture(config.model_type).own_search:
        raise UserError(f"{flag}: not with a {config.model_type} model: it was not tried; give -strategy ddp")
    if leaves_out_parameters(config):
        raise UserError(
            f"{flag}: not with layers that are dropped at random (encoder_layerdrop or decoder_layerdrop above 0),"
            " since every process must go through the same ones; give -strategy ddp"
        )


def rows_of(count: int, rank: int, world: int) -> tuple[int, int]:
    """The rows that FSDP2 gives a process: as many for each, fewer or none for the last."""
    each = -(-count // world)
    return min(rank * each, count), min((rank + 1) * each, count)


def whole_state(model: nn.Module, whole_of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The whole weights on the CPU of the first process, nothing on the others; every process calls it.

    Args:
        whole_of: puts one weight together, of which each process has a part.
    """
    first = torch.distributed.get_rank() == 0
    found: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in found:  # shared weights are put together once, and stay one tensor
            whole = whole_of(value)
            found[id(value)] = whole.to("cpu", copy=True) if first else torch.empty(0)
        state[name] = found[id(value)]
    return state if first else {}


def true_everywhere(here: bool, device: torch.device) -> bool:
    """Whether something is so on every process, each of which calls it.

    Args:
        device: where the processes exchange their words.
    """
    word = torch.tensor(here, dtype=torch.uint8, device=device)
    torch.distributed.all_reduce(word, torch.distributed.ReduceOp.MIN)
    return bool(word)
