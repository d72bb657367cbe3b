"""Every process holds a part of the optimizer's state, from stage 2 on of the gradient, in stage 3 of each weight:
ZeRO (Rajbhandari et al. 2020) by DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from checkpoints.format import CONTENT_KEY
from checkpoints.saved_run import SavedRun
from checkpoints.sharded import RANK, STATES, WEIGHTS, write_sharded
from models.architectures import architecture
from training.lightning_loop import checkpoint_of, ours, tcp_gather
from training.strategies.replicated import load_run
from training.strategies.sharding import check_model, rows_of, true_everywhere, whole_state
from training.strategies.zero_engine import ZeroEngine, ZeroSettings, gathered_parameters, whole_of
from utils.devices import Devices, all_finite
from utils.errors import UserError


@dataclass(frozen=True)
class Zero:
    """ZeRO: what a process holds of a tensor is put together when it is needed, and for a checkpoint.

    A checkpoint is the folder that FSDP writes: each process has rows of every tensor, whatever DeepSpeed's own
    partition is. So it goes on with any number of processes and under any strategy, and is read without DeepSpeed.
    """

    settings: ZeroSettings

    sharded = True
    gives_weights = False
    largest_batch_first = False  # its hooks take up the gradient of every backward pass
    grad_norm = None  # DeepSpeed measures and clips the gradient in its own step: `ZeroEngine.optimizer_step`

    def check(self, config: PreTrainedConfig, devices: Devices) -> None:
        """Refuse what DeepSpeed has on GPUs alone, and what was not tried.

        Raises:
            UserError: names the flag.
        """
        flag, settings = self.settings.flag, self.settings
        if settings.fused and devices.accelerator == "cpu":
            raise UserError(f"{flag}: only on GPUs, for which its optimizer is built; give -strategy deepspeed_2")
        if devices.precision == "16-mixed":
            raise UserError(f"{flag}: not in fp16, which was not tried with it; give -float_precision bf16")
        if architecture(config.model_type).experts:
            raise UserError(
                f"{flag}: not with a {config.model_type} model: it was not tried; give -strategy fsdp or ddp"
            )
        check_model(flag, config)

    def lightning(self, devices: Devices, compressed: bool) -> Any:
        """What Lightning is given as its strategy."""
        del compressed  # -gradient_compression is of DDP alone
        backend = "gloo" if devices.accelerator == "cpu" else "cpu:gloo,cuda:nccl"
        return ZeroEngine(self.settings, process_group_backend=backend)

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[None]:
        """While it lasts, every process holds the whole weights; every process enters and leaves it."""
        engine: ZeroEngine = ours(module).trainer.strategy  # type: ignore[arg-type, assignment]
        with engine.without_hooks(), gathered_parameters(list(module.parameters())):
            yield

    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The whole weights on the CPU of the first process, nothing on the others; every process calls it."""
        return whole_state(model, whole_of)

    def all_finite(self, parameters: Iterable[Tensor]) -> bool:
        """Whether no weight is NaN or infinite, the same on every process; waits for the device."""
        wholes = list(parameters)
        good = all(all_finite([part]) for part in map(held, wholes))  # parts and wholes may lie on two devices
        return true_everywhere(good, wholes[0].device)

    def state(self, trainer: pl.Trainer) -> Any:
        """What this process writes of a checkpoint, in the memory of the host; every process calls it."""
        engine: ZeroEngine = trainer.strategy  # type: ignore[assignment]
        index, shard = shared_out(checkpoint_of(trainer), engine)
        return index if trainer.is_global_zero else None, shard, tcp_gather(trainer)

    def write(self, state: Any, path: Path) -> None:
        """Write a checkpoint, a folder here, of a copy of `state`; every process calls it, beside the training."""
        index, shard, gather = state
        write_sharded(path, index, shard, CONTENT_KEY, gather)

    def load(self, path: Path) -> SavedRun:
        """The run of a checkpoint; raises as `read_run` does."""
        return load_run(path)


def held(parameter: Tensor) -> Tensor:
    """What this process holds of a weight, without what fills the last part up."""
    whole: Any = parameter
    part = getattr(whole, "ds_tensor", None)
    if part is None:
        return parameter.detach()
    own: Tensor = part.detach()[: max(whole.ds_numel - torch.distributed.get_rank() * part.ds_numel, 0)]
    return own


def shared_out(checkpoint: dict[str, Any], engine: ZeroEngine) -> tuple[dict[str, Any], dict[str, Any]]:
    """The index and this process's shard of a checkpoint; see `checkpoints.sharded`. Every process calls it."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def own(whole: Tensor) -> Tensor:
        start, stop = rows_of(len(whole), rank, world)
        return whole[start:stop].to("cpu", copy=True)

    found: dict[int, tuple[Tensor, list[int]]] = {}  # shared weights are put together once, and stay one tensor
    weights, shapes, buffers = {}, {}, {}
    module: Any = engine.lightning_module
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, nn.Parameter):  # a buffer, of which every process has the whole
            buffers[name] = value
            continue
        if id(value) not in found:
            whole = whole_of(value)
            found[id(value)] = own(whole), list(whole.shape)
        weights[name], shapes[name] = found[id(value)]
    kept, moments = {}, {}
    for number, state in engine.states():
        kept[number] = {key: list(one.shape) if one.ndim else one for key, one in state.items()}
        moments[number] = {key: own(one) for key, one in state.items() if one.ndim}
    index = {
        **checkpoint,
        WEIGHTS: {**shapes, **buffers},
        STATES: [{"state": kept, "param_groups": engine.numbered_groups()}],
    }
    return index, {RANK: rank, WEIGHTS: weights, STATES: [moments]}
