"""Flags of `train.py` of the optimizer, the learning rate and the loss. No torch import."""

from __future__ import annotations

import dataclasses

from config.parser import flag, free

OPTIMIZERS = ("adam", "adafactor")
SCHEDULES = ("cosanneal", "linear", "cyclic", "constant", "inverse_sqrt")
ADAM_RATE = 1e-4  # the learning rate of adam unless told otherwise


NO_TEACHER = {"teacher": "there is nobody to learn from"}


@dataclasses.dataclass(frozen=True)
class OptimFlags:
    """Optimization"""

    max_epoch: int = flag(
        4,
        "Epochs to train.",
        minimum=1,
        maximum=10**6,
        resume="free",
        change="the learning rate follows the longer or shorter course from here",
    )
    optim: str = flag(
        "adam", "Optimizer; adam is AdamW.", choices=OPTIMIZERS, aliases=("optimizer",), resume="optimizer"
    )
    learning_rate: float | None = flag(
        None, "Highest learning rate; automatic = 1e-4 for adam, adafactor's own relative step.", minimum=0.0
    )
    lr_scheduler: str = flag("cosanneal", "Course of the learning rate.", choices=SCHEDULES)
    warmup_steps: float = flag(
        0.0, "Optimizer steps of linear warm-up; below 1, a share of all steps; 0 = none.", minimum=0.0
    )
    optim_cosanneal_gamma: float = flag(
        0.75, "Factor on the peak rate from one cycle to the next (cosanneal, cyclic).", minimum=0.0, maximum=1.0
    )
    optim_cosanneal_restarts: int = flag(4, "Cycles in the whole run (cosanneal, cyclic).", minimum=1)
    optim_cosanneal_min_lr: float = flag(1e-7, "Lowest rate of a cycle (cosanneal, cyclic).", minimum=0.0)
    weight_decay: float = flag(0.0, "Decoupled weight decay; biases and norms are left out; 0 = off.", minimum=0.0)
    grad_clip: float = flag(
        1.0, "Largest gradient norm; adafactor clips by itself and ignores it; 0 = off.", minimum=0.0
    )
    label_smoothing: float = flag(0.0, "Share of the target probability spread evenly.", minimum=0.0, maximum=0.9)
    rdrop_alpha: float = flag(
        0.0,
        "Weight of R-Drop: every row goes through the model twice, and the divergence of the two outputs joins the"
        " loss; about twice the time and memory; 0 = off.",
        minimum=0.0,
        excludes={"teacher": "the two were not tried together"},
    )


@dataclasses.dataclass(frozen=True)
class DistillationFlags:
    """Distillation"""

    teacher: str = free(
        "",
        "Model whose output distributions this one learns to imitate: a run's folder, a folder, a .ckpt or a hub name,"
        " with the same tokenizer and vocabulary; empty = none.",
        metavar="MODEL",
    )
    distill_temperature: float = flag(
        1.0, "Softens both distributions before they are compared; 1 = as they are.", minimum=0.1, needs=NO_TEACHER
    )
    distill_weight: float = flag(
        0.5,
        "Share of the divergence from the teacher in the loss; the rest is the cross-entropy.",
        minimum=0.0,
        maximum=1.0,
        needs=NO_TEACHER,
    )
