"""DeepSpeed's engine in Lightning's loop: its passes, its steps, and the state of its optimizer by parameter."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from models.kernels.accelerate import blocks
from training.lightning_loop import OurDDP, ours, tcp_group
from utils.errors import RunError
from utils.libraries import require_package

BUCKET = 50_000_000  # numbers that are sent at once: 200 MB; DeepSpeed's own 500,000,000 are 2 GB of every GPU
STEP, MOMENTS = "step", ("exp_avg", "exp_avg_sq")  # what an AdamW keeps of a parameter


@dataclass(frozen=True)
class ZeroSettings:
    """What a value of -strategy asks DeepSpeed for."""

    name: str  # the value
    stage: int
    fused: bool = False  # DeepSpeed's AdamW of one kernel
    offload_state: bool = False  # the optimizer steps on the host, which has its state and the gradients
    offload_weights: bool = False

    @property
    def flag(self) -> str:
        """The flag as it was given."""
        return f"-strategy {self.name}"

    def config(self, accumulate: int, grad_clip: float, pinned: bool) -> dict[str, Any]:
        """DeepSpeed's own configuration; the arithmetic stays Lightning's, with fp32 weights."""
        host = {"device": "cpu", "pin_memory": pinned}
        zero: dict[str, Any] = {"stage": self.stage, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
        zero |= {"offload_optimizer": host} if self.offload_state else {}
        zero |= {"offload_param": host} if self.offload_weights else {}
        return {
            "train_micro_batch_size_per_gpu": 1,  # of no consequence: rows are counted by tokens
            "gradient_accumulation_steps": accumulate,
            "gradient_clipping": grad_clip,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's resumes with the same bits, and needs no compiler
            "steps_per_print": sys.maxsize,
        }


class ZeroEngine(OurDDP):
    """The processes of DDP, with DeepSpeed's engine in place of its wrapper."""

    def __init__(self, settings: ZeroSettings, **other: Any) -> None:
        super().__init__(**other)
        self.settings = settings
        self.engine: Any = None
        self.parameters: list[nn.Parameter] = []  # those that are trained, in the order of the optimizer
        self.group_sizes: list[int] = []
        self.save_group: Any = None

    # ---- setting up

    def setup_environment(self) -> None:
        if self.root_device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when it is imported
        deepspeed = _deepspeed(self.settings.flag)
        super().setup_environment()
        if self.root_device.type == "cpu":
            # A kernel for sums in shared memory, which a compiler builds; a lock that a kill leaves is waited for.
            sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
        warnings.filterwarnings(
            "ignore", message=".*is deprecated. Please use .torch.distributed", category=FutureWarning
        )
        deepspeed.init_distributed(torch.distributed.get_backend(), dist_init_required=False)

    def model_to_device(self) -> None:
        """In stage 3 leave the weights where they were built: parts go to the device when they are taken apart."""
        if self.settings.stage < 3:
            super().model_to_device()

    def configure_ddp(self) -> None:
        self.save_group = tcp_group() if self.world_size > 1 else None  # for the thread that saves

    def setup(self, trainer: pl.Trainer) -> None:
        super().setup(trainer)
        deepspeed, module = _deepspeed(self.settings.flag), ours(self.lightning_module)  # type: ignore[arg-type]
        optimizer: Any = self._own_optimizer(self.optimizers[0])
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.group_sizes = [len(group["params"]) for group in optimizer.param_groups]
        on_gpu = self.root_device.type == "cuda"
        config = self.settings.config(module.options.accumulate, module.optim.grad_clip, pinned=on_gpu)
        if self.settings.stage == 3:
            for buffer in module.buffers():
                buffer.data = buffer.data.to(self.root_device)
            kinds = {type(block) for block in blocks(module)}
            deepspeed.utils.set_z3_leaf_modules(module, list(kinds))  # a block is put together as a whole
            deepspeed.zero.Init(module=module, config_dict_or_path=config)
        self.engine, zero, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=config, dist_init_required=False
        )
        self.engine.set_gradient_accumulation_boundary(True)
        self.optimizers = [zero]
        self._begin_states()

    def _begin_states(self) -> None:
        """The state of an AdamW that has taken no step. (DeepSpeed's own first step would show that of one group.)"""
        zero = self.engine.optimizer
        for flat in self._flat():
            begun: Any = torch.zeros((), device=flat.device) if isinstance(zero.optimizer, torch.optim.AdamW) else 0
            zero.optimizer.state[flat] = {STEP: begun, **{key: torch.zeros_like(flat) for key in MOMENTS}}
        if self.settings.stage < 3:
            link = _deepspeed(self.settings.flag).utils.mixed_precision_linkage.lazy_init_hp_params_optimizer_state
            for parameters, flat in zip(zero.bit16_groups, self._flat(), strict=True):
                link(parameters, flat, zero.optimizer.state)

    def _own_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """DeepSpeed's AdamW in place of torch's where the strategy asks for it, with its groups and its schedule."""
        if not self.settings.fused:
            return optimizer
        own: Optimizer = _deepspeed(self.settings.flag).ops.adam.FusedAdam(optimizer.param_groups)
        for schedule in self.lr_scheduler_configs:
            if isinstance(schedule.scheduler, LambdaLR):
                schedule.scheduler = LambdaLR(own, schedule.scheduler.lr_lambdas)
        return own

    def teardown(self) -> None:
        super().teardown()
        if self.engine is not None:
            self.engine.destroy()

    # ---- steps

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._through_engine(self.lightning_module.training_step, args, kwargs)  # type: ignore[union-attr]

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._through_engine(self.lightning_module.validation_step, args, kwargs)  # type: ignore[union-attr]

    def _through_engine(self, step: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run a step as the forward pass of the module, so that the engine puts together what it needs.

        The engine leaves the autocast that it is called in.
        """
        module: Any = self.lightning_module

        def forward(*args: Any, **kwargs: Any) -> Any:
            with self.precision_plugin.forward_context():
                return step(*args, **kwargs)

        module.forward = forward
        try:
            return self.engine(*args, **kwargs)
        finally:
            del module.forward

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """While it lasts, gradients are added up, and no optimizer step follows."""
        self.engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self.engine.set_gradient_accumulation_boundary(True)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        del optimizer, args, kwargs
        self.engine.backward(closure_loss, scale_wrt_gas=False)  # the loss has its share of the step already
        return closure_loss.detach()

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        """Gradient, its norm, clipping and the step of the optimizer."""
        del args, kwargs
        result, module = closure(), ours(self.lightning_module)  # type: ignore[arg-type]
        module.on_before_optimizer_step(optimizer)
        self.engine.step()
        module.meter.gradient_norm = torch.as_tensor(self.engine.get_global_grad_norm(), device=self.root_device)
        return result

    # ---- weights and states

    @contextmanager
    def without_hooks(self) -> Iterator[None]:
        """While it lasts, no module puts weights together or takes them apart; every process goes its own way."""
        offload = getattr(self.engine.optimizer, "parameter_offload", None)
        if offload is None:
            yield
            return
        for hook in (offload.fwd_pre_hook, *offload.forward_hooks, *offload.backward_hooks):
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield
        finally:
            offload.setup_zero_stage3_hooks()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: the strategy takes the weights, one after the other."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Nothing: the strategy takes the state, parameter by parameter."""
        del optimizer
        return {}

    def numbered_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups as its state_dict would have them, with the numbers of the parameters."""
        groups, first = [], 0
        for group, size in zip(self.engine.optimizer.param_groups, self.group_sizes, strict=True):
            groups.append({**group, "params": list(range(first, first + size))})
            first += size
        return groups

    def states(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The state of each parameter, whole, by its number; every process goes through all of them."""
        utils = _deepspeed(self.settings.flag).utils
        steps = float(self.engine.optimizer.optimizer.state[self._flat()[0]][STEP])
        for number, parameter in enumerate(self.parameters):
            moments = {key: utils.safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            yield number, {STEP: torch.tensor(steps), **moments}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Nothing: the model was built with these weights."""

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each process its part of the state; all parameters took the same steps."""
        saved = checkpoint["optimizer_states"][0]["state"] if checkpoint["optimizer_states"] else {}
        if not saved:
            return
        steps = {float(kept[STEP]) for kept in saved.values()}
        if len(steps) > 1 or len(saved) != len(self.parameters):
            raise RunError(
                f"{self.settings.flag}: the optimizer of this checkpoint has taken other steps for some parameters than"
                " for others, and DeepSpeed counts them once for all; go on under -strategy ddp"
            )
        for state in (self.engine.optimizer.optimizer.state[flat] for flat in self._flat()):
            state[STEP] += int(*steps)
        for number, parameter in enumerate(self.parameters):
            for key in MOMENTS:
                self._set(parameter, saved[number][key], key)

    def _set(self, parameter: nn.Parameter, value: Tensor, key: str) -> None:
        utils, value = _deepspeed(self.settings.flag).utils, value.float()
        if self.settings.stage < 3:
            utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        part: Any = parameter.ds_tensor  # type: ignore[attr-defined]
        first = torch.distributed.get_rank() * part.ds_numel
        own = value.flatten()[first : first + part.ds_numel]
        utils.safe_set_local_optimizer_state(parameter, nn.functional.pad(own, (0, part.ds_numel - len(own))), key)

    def _flat(self) -> list[Tensor]:
        """What the optimizer of this process moves: its parts of the parameters, laid together."""
        zero = self.engine.optimizer
        flat = zero.fp32_partitioned_groups_flat if self.settings.stage == 3 else zero.single_partition_of_fp32_groups
        return list(flat)


def whole_of(parameter: Tensor) -> Tensor:
    """A weight put together, also in the middle of a pass; every process calls it."""
    part: Any = getattr(parameter, "ds_tensor", None)
    if part is None:
        return parameter.detach()
    own = part.detach().to(parameter.device)
    whole = own.new_empty(torch.distributed.get_world_size() * own.numel())
    torch.distributed.all_gather_into_tensor(whole, own)
    taken_apart: Any = parameter
    found: Tensor = whole[: taken_apart.ds_numel].view(taken_apart.ds_shape)
    return found


def gathered_parameters(parameters: Sequence[Tensor]) -> AbstractContextManager[None]:
    """While it lasts, every process holds these weights whole; not in a pass. Every process enters and leaves it."""
    found: AbstractContextManager[None] = sys.modules["deepspeed"].zero.GatheredParameters(list(parameters))
    return found


def _deepspeed(flag: str) -> Any:
    return require_package("deepspeed", flag)
