"""Every process holds a part of each weight, of its gradient and of its optimizer state: PyTorch's FSDP2."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import PreTrainedConfig

from checkpoints.format import CONTENT_KEY
from checkpoints.saved_run import SavedRun
from checkpoints.sharded import RANK, STATES, WEIGHTS, Rows, write_sharded
from models.kernels.accelerate import blocks
from training.lightning_loop import OurDDP, checkpoint_of, ours, tcp_gather, tcp_group
from training.strategies.replicated import load_run
from training.strategies.sharding import check_model, rows_of, true_everywhere, whole_state
from utils.devices import Devices, all_finite
from utils.errors import UserError


class Sharded:
    """FSDP2: a block's weights are put together for its forward and backward pass, and taken apart again.

    Args:
        offload: parts, gradients and optimizer states lie in the memory of the host.
    """

    sharded = True
    gives_weights = True
    largest_batch_first = True

    def __init__(self, offload: bool) -> None:
        self.offload = offload

    def check(self, config: PreTrainedConfig, devices: Devices) -> None:
        """Refuse what was not tried, or would let the processes wait for each other for ever.

        Raises:
            UserError: names the flag.
        """
        flag = f"-strategy {'fsdp_offload' if self.offload else 'fsdp'}"
        if self.offload and devices.accelerator == "cpu":
            raise UserError(f"{flag}: only on GPUs; on the CPU -strategy fsdp has its parts in the memory of the host")
        if devices.precision == "16-mixed":
            raise UserError(f"{flag}: not in fp16, whose scale the processes do not share; give -float_precision bf16")
        check_model(flag, config)

    def lightning(self, devices: Devices, compressed: bool) -> Any:
        """What Lightning is given as its strategy."""
        del compressed  # -gradient_compression is of DDP alone
        backend = "gloo" if devices.accelerator == "cpu" else "cpu:gloo,cuda:nccl" if self.offload else "nccl"
        return ShardedStrategy(self.offload, process_group_backend=backend)

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[None]:
        """While it lasts, every process holds the whole weights; every process enters and leaves it."""
        parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.reshard()
                part.set_reshard_after_forward(part is not module, recurse=False)

    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The whole weights on the CPU of the first process, nothing on the others; every process calls it."""
        return whole_state(model, whole_of)

    def grad_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm of the whole gradient, the same on every process."""
        square = torch.nn.utils.get_total_norm([local(gradient) for gradient in gradients]).square()
        torch.distributed.all_reduce(square)
        return square.sqrt()

    def all_finite(self, parameters: Iterable[Tensor]) -> bool:
        """Whether no weight is NaN or infinite, the same on every process; waits for the device."""
        parts = [local(part) for part in parameters]
        return true_everywhere(all_finite(parts), parts[0].device)

    def state(self, trainer: pl.Trainer) -> Any:
        """What this process writes of a checkpoint, in the memory that training uses; every process calls it."""
        index, shard = taken_apart(checkpoint_of(trainer))
        return index if trainer.is_global_zero else None, shard, tcp_gather(trainer)

    def write(self, state: Any, path: Path) -> None:
        """Write a checkpoint, a folder here, of a copy of `state`; every process calls it, beside the training."""
        index, shard, gather = state
        write_sharded(path, index, shard, CONTENT_KEY, gather)

    def load(self, path: Path) -> SavedRun:
        """The run of a checkpoint; raises as `read_run` does."""
        return load_run(path)


class ShardedStrategy(OurDDP):
    """The processes of DDP, which hold a part of the model each in place of a copy."""

    def __init__(self, offload: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self.offload = offload
        self.mesh: DeviceMesh | None = None
        self.save_group: Any = None
        self.saved: Mapping[str, Any] = {}  # the weights of a run that goes on, until the parts have them

    def model_to_device(self) -> None:
        """Leave the model where it was built: a part goes to the device when it is taken apart."""

    def configure_ddp(self) -> None:
        assert self.lightning_module is not None
        module = ours(self.lightning_module)
        self.save_group = tcp_group() if self.world_size > 1 else None  # for the thread that saves
        self.mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        shard(module, self.mesh, self.offload, self.saved)
        self.saved = {}

    def teardown(self) -> None:
        if isinstance(self.lightning_module, FSDPModule):
            self.lightning_module.reset_iter_state()  # an error may have come in the middle of a pass
        super().teardown()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Keep them for when the model is taken apart, which comes next."""
        del strict
        self.saved = checkpoint["state_dict"]

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each process its part of the state."""
        assert self.mesh is not None
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [part for group in optimizer.param_groups for part in group["params"]]
            states = {
                number: {name: like(parameters[number], state, name) for name in state}
                for number, state in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": states})


def shard(module: Any, mesh: DeviceMesh, offload: bool, saved: Mapping[str, Any]) -> None:
    """Take the module apart: each block of encoder and decoder by itself, and what is left, embeddings for example.

    `_loss_sum` is its forward pass. No process but the first ever holds more of the whole than a block.

    Args:
        saved: the weights by name; none = those of the first process.
    """
    # T5's first blocks return the position bias, a view, which nothing of T5 or of ours changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    policy = CPUOffloadPolicy() if offload else OffloadPolicy()
    names = {id(parameter): name for name, parameter in module.named_parameters()}

    def take_apart(part: Any, **options: Any) -> None:
        own = [(name, value) for name, value in part.named_parameters() if not isinstance(value, DTensor)]
        fully_shard(part, mesh=mesh, offload_policy=policy, **options)
        for name, whole in own:
            parameter = part.get_parameter(name)
            values = like(parameter, saved, names[id(whole)]) if saved else scattered(whole.data, mesh)
            local(parameter).copy_(local(values))

    for block in blocks(module):
        for embedding in (part for part in block.modules() if isinstance(part, nn.Embedding)):
            # Of positions: our blocks ask for it before their own forward pass begins.
            take_apart(embedding)
        take_apart(block)
    take_apart(module, reshard_after_forward=False)
    for name, buffer in module.named_buffers():
        if name in saved:
            buffer.copy_(saved[name])
        elif not saved:
            torch.distributed.broadcast(buffer, 0)
    register_fsdp_forward_method(module, "_loss_sum")


def scattered(whole: Tensor, mesh: DeviceMesh) -> DTensor:
    """This process's part of a tensor of the first process; on the others its shape alone counts."""
    return distribute_tensor(whole.to(mesh.device_type), mesh, [Shard(0)])


def taken_apart(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The index and this process's shard of a checkpoint of Lightning's; see `checkpoints.sharded`."""
    states = checkpoint[STATES]
    index = {
        **checkpoint,
        WEIGHTS: _shapes(checkpoint[WEIGHTS]),
        STATES: [
            {**saved, "state": {number: _shapes(kept) for number, kept in saved["state"].items()}} for saved in states
        ],
    }
    parts = [{number: _parts(kept) for number, kept in saved["state"].items()} for saved in states]
    return index, {RANK: torch.distributed.get_rank(), WEIGHTS: _parts(checkpoint[WEIGHTS]), STATES: parts}


def _shapes(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value.shape) if isinstance(value, DTensor) else value for name, value in tensors.items()}


def _parts(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: local(value) for name, value in tensors.items() if isinstance(value, DTensor)}


def whole_of(value: Tensor) -> Tensor:
    """A weight put together; every process calls it."""
    return value.full_tensor().detach() if isinstance(value, DTensor) else value.detach()


def local(value: Tensor) -> Tensor:
    """The part of this process of a tensor that is taken apart; another tensor itself."""
    return value.to_local().detach() if isinstance(value, DTensor) else value.detach()


def like(parameter: Tensor, tensors: Mapping[str, Any], name: str) -> Any:
    """A tensor of a checkpoint taken apart as `parameter` is; as it is where that is whole, or has another shape."""
    shape = tensors.shapes.get(name) if isinstance(tensors, Rows) else getattr(tensors[name], "shape", None)
    if not isinstance(parameter, DTensor) or shape is None or list(shape) != list(parameter.shape):
        return tensors[name]
    mesh = parameter.device_mesh
    start, stop = rows_of(len(parameter), mesh.get_local_rank(), mesh.size())
    part = tensors.rows(name, start, stop) if isinstance(tensors, Rows) else tensors[name][start:stop]
    return DTensor.from_local(
        part.to(parameter.device, copy=True),
        mesh,
        [Shard(0)],
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
