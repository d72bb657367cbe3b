"""Optimizers: one row a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.optimizers.groups import parameter_groups
from models.optimizers.muon import MATRICES, MuonAndAdamW
from models.optimizers.settings import OptimSettings
from utils.libraries import require_package

FUSED_DEVICES = frozenset(("cuda", "cpu", "mps", "xpu"))
EIGHT_BITS = "__bnb_optimizer_quant_state__"  # what bitsandbytes keeps, in its state_dict
EIGHT_BIT_SIZE, EIGHT_BIT_BLOCK = 4096, 256  # its elements of a parameter at least, and with one scale
Groups: TypeAlias = list[dict[str, Any]]


class Part(NamedTuple):
    """A tensor that an optimizer keeps of a parameter."""

    shape: tuple[int, ...]  # () = a number or a tensor of one
    dtype: torch.dtype = torch.float32


Kept: TypeAlias = Mapping[str, "Part | Kept"]
STEP: Kept = {"step": Part(())}


@dataclass(frozen=True)
class OptimizerRow:
    """What there is to know of an optimizer."""

    build: Callable[[Groups, OptimSettings, bool], Optimizer]  # groups, settings, whether it may be fused
    kept: Callable[[tuple[int, ...], bool], Kept]  # of a parameter's shape; whether it is a matrix of a layer
    clips: bool = False  # by itself
    counts: Mapping[str, type] = field(default_factory=dict)  # what steps change in a group, besides the rate


def build_optimizer(model: nn.Module, settings: OptimSettings, fused: bool = True) -> Optimizer:
    """Give the optimizer of the model's trainable parameters, in the groups of `parameter_groups`.

    AdamW is fused where the device can (`fused=False` for fp16 with a gradient scaler, which Lightning cannot clip when
    fused). `adafactor` takes its own relative steps with warm-up without a learning rate, and then has no schedule.

    Raises:
        ValueError: an unknown name, and a model without trainable parameters.
        UserError: a package is missing.
    """
    if settings.optim not in OPTIMIZER_ROWS:
        raise ValueError(f"unknown optimizer {settings.optim!r}; choose one of {', '.join(OPTIMIZER_ROWS)}")
    groups: Groups = []
    for group in parameter_groups(model, settings):
        rate = {} if settings.learning_rate is None else {"lr": settings.learning_rate * group.rate}
        decay = settings.weight_decay if group.decays else 0.0
        own = {MATRICES: group.matrices} if settings.optim == "muon" else {}
        groups.append({"params": group.parameters, "weight_decay": decay, **rate, **own})
    parameters = [parameter for group in groups for parameter in group["params"]]
    can_fuse = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
    return OPTIMIZER_ROWS[settings.optim].build(groups, settings, fused and can_fuse)


def state_memory(model: nn.Module, settings: OptimSettings) -> list[Tensor]:
    """Give tensors, empty, that take as much memory as the state that the optimizer will have."""
    row = OPTIMIZER_ROWS[settings.optim]

    def tensors(kept: Kept, device: torch.device) -> list[Tensor]:
        own = [part for part in kept.values() if isinstance(part, Part) and part.shape]
        inner = [one for part in kept.values() if not isinstance(part, Part) for one in tensors(part, device)]
        return [torch.empty(part.shape, dtype=part.dtype, device=device) for part in own] + inner

    return [
        one
        for group in parameter_groups(model, settings)
        for parameter in group.parameters
        for one in tensors(row.kept(tuple(parameter.shape), group.matrices), parameter.device)
    ]


def current_rate(optimizer: Optimizer) -> float:
    """Give the learning rate of the latest step, for display; for adafactor's own rate the relative step size.

    The latter is min(1e-6 * step, step**-0.5), which is then multiplied by the scale of each parameter.
    """
    group = optimizer.param_groups[0]
    if group["lr"] is not None:
        return float(group["lr"])
    step = max((int(state.get("step", 0)) for state in optimizer.state.values()), default=0)
    return min(1e-6 * step, step**-0.5) if step else 0.0


def _betas(settings: OptimSettings, beta2: float = 0.999) -> tuple[float, float]:
    first, second = settings.adam_beta1, settings.adam_beta2
    return (0.9 if first is None else first, beta2 if second is None else second)


def _adam_options(settings: OptimSettings, epsilon: float = 1e-8) -> dict[str, Any]:
    own = settings.adam_epsilon
    return {"lr": settings.learning_rate, "betas": _betas(settings), "eps": epsilon if own is None else own}


def _adam(groups: Groups, settings: OptimSettings, fused: bool) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019)."""
    # None and not False, with which torch takes parameter by parameter where it would take all at once.
    return torch.optim.AdamW(groups, **_adam_options(settings), fused=fused or None)


def _adafactor(groups: Groups, settings: OptimSettings, fused: bool) -> Optimizer:
    """Adafactor (Shazeer & Stern 2018)."""
    from models.optimizers.adafactor import Adafactor

    del fused
    rate, automatic = settings.learning_rate, settings.learning_rate is None
    scaled = automatic or settings.scale_parameter
    optimizer: Optimizer = Adafactor(
        groups, lr=rate, scale_parameter=scaled, relative_step=automatic, warmup_init=automatic
    )
    return optimizer


def _adam8(groups: Groups, settings: OptimSettings, fused: bool) -> Optimizer:
    """AdamW with moments of 8 bits in blocks (Dettmers et al. 2022); small parameters keep theirs in fp32."""
    del fused
    package = require_package("bitsandbytes", "-optim adam8")
    optimizer: Optimizer = package.optim.AdamW8bit(groups, **_adam_options(settings))
    return optimizer


def _lion(groups: Groups, settings: OptimSettings, fused: bool) -> Optimizer:
    """Lion (Chen et al. 2023): the sign of a running mean."""
    del fused
    package = require_package("lion_pytorch", "-optim lion")
    optimizer: Optimizer = package.Lion(groups, lr=settings.learning_rate, betas=_betas(settings, 0.99))
    return optimizer


def _muon(groups: Groups, settings: OptimSettings, fused: bool) -> Optimizer:
    return MuonAndAdamW(groups, **_adam_options(settings), fused=fused or None)


def _schedulefree(groups: Groups, settings: OptimSettings, fused: bool) -> Optimizer:
    """Schedule-free AdamW (Defazio et al. 2024), always in training mode: `averages.ScheduleFree` has the mean."""
    del fused
    package = require_package("schedulefree", "-optim schedulefree")
    optimizer: Any = package.AdamWScheduleFree(groups, **_adam_options(settings))
    optimizer.train()
    found: Optimizer = optimizer
    return found


def _adamwscale(groups: Groups, settings: OptimSettings, fused: bool) -> Optimizer:
    from models.optimizers.adamw_scale import AdamWScale

    del fused
    return AdamWScale(groups, **_adam_options(settings, 1e-6))


def _two_moments(shape: tuple[int, ...], matrix: bool = False) -> Kept:
    del matrix
    return {**STEP, "exp_avg": Part(shape), "exp_avg_sq": Part(shape)}


def _factored(shape: tuple[int, ...], matrix: bool) -> Kept:
    del matrix
    if len(shape) < 2:
        return {**STEP, "RMS": Part(()), "exp_avg_sq": Part(shape)}
    rows, columns = Part(shape[:-1]), Part(shape[:-2] + shape[-1:])
    return {**STEP, "RMS": Part(()), "exp_avg_sq_row": rows, "exp_avg_sq_col": columns}


def _in_8_bits(shape: tuple[int, ...], matrix: bool) -> Kept:
    del matrix
    size = torch.Size(shape).numel()
    if size < EIGHT_BIT_SIZE:
        return {**STEP, EIGHT_BITS: {"state1": Part(shape), "state2": Part(shape)}}
    scales, moment = Part((ceil(size / EIGHT_BIT_BLOCK),)), Part(shape, torch.uint8)
    values = {name: Part((256,)) for name in ("qmap1", "qmap2")}
    return {**STEP, EIGHT_BITS: {"state1": moment, "state2": moment, **values, "absmax1": scales, "absmax2": scales}}


def _sign(shape: tuple[int, ...], matrix: bool) -> Kept:
    del matrix
    return {"exp_avg": Part(shape)}


def _momentum(shape: tuple[int, ...], matrix: bool) -> Kept:
    return {"momentum_buffer": Part(shape)} if matrix else _two_moments(shape)


def _free(shape: tuple[int, ...], matrix: bool) -> Kept:
    del matrix
    return {"z": Part(shape), "exp_avg_sq": Part(shape)}


OPTIMIZER_ROWS = {
    "adam": OptimizerRow(_adam, _two_moments),
    "adafactor": OptimizerRow(_adafactor, _factored, clips=True),
    "adam8": OptimizerRow(_adam8, _in_8_bits),
    "lion": OptimizerRow(_lion, _sign),
    "muon": OptimizerRow(_muon, _momentum),
    "schedulefree": OptimizerRow(
        _schedulefree,
        _free,
        counts={"k": int, "weight_sum": float, "lr_max": float, "scheduled_lr": float},
    ),
    "adamwscale": OptimizerRow(_adamwscale, _two_moments),
}
