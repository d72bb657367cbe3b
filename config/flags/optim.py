"""Flags of `train.py` of the optimizer, the learning rate and the loss. No torch import."""

from __future__ import annotations

import dataclasses

from config.flags.data import NOT_TRIED
from config.flags.run import DEEPSPEED, SHARDED
from config.parser import flag, free


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What the command line knows of an optimizer; `models/optimizers/build.py` has the rest under the same name."""

    rate: float | None  # the learning rate unless told otherwise; None = its own
    package: str = ""  # of `utils.libraries.OPTIONAL`
    scheduled: bool = True  # takes a schedule of the rate
    fp16: bool = False  # was tried with gradients in fp16
    sharded: bool = False  # needs no whole matrix, and was tried where processes have parts of one


OPTIMIZERS = {
    "adam": Optimizer(1e-4, fp16=True, sharded=True),
    "adafactor": Optimizer(None, fp16=True),
    "adam8": Optimizer(1e-4, "bitsandbytes"),
    "lion": Optimizer(2e-5, "lion_pytorch", sharded=True),
    "muon": Optimizer(1e-4),
    "schedulefree": Optimizer(3e-4, "schedulefree", scheduled=False),
    "adamwscale": Optimizer(1e-3, sharded=True),
}
SCHEDULES = (
    "cosanneal",
    "linear",
    "cyclic",
    "constant",
    "inverse_sqrt",
    "flat_inverse_sqrt",
    "cosine",
    "polynomial",
    "wsd",
    "plateau",
)
NO_BETAS = {"optim=adafactor": "it has no such moments"}


NO_TEACHER = {"teacher": "there is nobody to learn from"}


DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")


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
        "adam",
        "Optimizer; adam is AdamW, adam8 the same with its state in 8 bits, adamwscale AdamW with steps in proportion"
        " to the weights; muon serves the matrices of the layers, and AdamW the rest.",
        choices=tuple(OPTIMIZERS),
        aliases=("optimizer",),
        resume="optimizer",
    )
    learning_rate: float | None = flag(
        None,
        "Highest learning rate; automatic = 1e-4 for adam, adam8 and muon, 2e-5 for lion, 3e-4 for schedulefree, 1e-3"
        " for adamwscale, adafactor's own relative step.",
        minimum=0.0,
    )
    embedding_learning_rate: float | None = flag(
        None,
        "Highest learning rate of the embeddings, and of an output layer that is tied to them; automatic = that of the"
        " other weights.",
        minimum=0.0,
        resume="optimizer",
    )
    layerwise_lr_decay: float = flag(
        1.0,
        "Factor on the learning rate from one layer to the one below, in encoder and decoder alike; the embeddings lie"
        " below the lowest; 1 = off.",
        minimum=0.0,
        maximum=1.0,
        resume="optimizer",
    )
    adam_beta1: float | None = flag(
        None,
        "Decay of the running mean of the gradient, for all but adafactor and muon's matrices; automatic = 0.9.",
        minimum=0.0,
        maximum=0.9999,
        excludes=NO_BETAS,
    )
    adam_beta2: float | None = flag(
        None,
        "Decay of the running mean of the squared gradient (lion: of the gradient); automatic = 0.999, lion 0.99.",
        minimum=0.0,
        maximum=0.999999,
        excludes=NO_BETAS,
    )
    adam_epsilon: float | None = flag(
        None,
        "Added to the root of the mean square; automatic = 1e-8, adamwscale 1e-6.",
        minimum=0.0,
        maximum=1.0,
        excludes={**NO_BETAS, "optim=lion": "it takes the sign alone"},
    )
    scale_parameter: bool = flag(
        False,
        "Let adafactor take steps in proportion to the weights at a given -learning_rate too, as T5 was trained (1e-2);"
        " at its own rate it always does.",
        needs={"optim=adafactor": "no other has this choice", "learning_rate": "at its own rate it does so anyway"},
    )
    lr_scheduler: str = flag(
        "cosanneal",
        "Course of the learning rate: cosanneal = cosine cycles, linear = a straight line to 0, cyclic = triangles,"
        " constant, inverse_sqrt = 1/sqrt(step), flat_inverse_sqrt = the same but constant for the -warmup_steps (T5),"
        " cosine = half a cosine, polynomial, wsd = constant until -wsd_decay_steps before its end, plateau = lowered"
        " whenever -monitor stops gaining.",
        choices=SCHEDULES,
    )
    warmup_steps: float = flag(
        0.0, "Optimizer steps of linear warm-up; below 1, a share of all steps; 0 = none.", minimum=0.0
    )
    scheduler_steps: int = flag(
        0,
        "Optimizer steps of the schedule, which then keeps its last rate (linear: 0); 0 = those of -max_epoch, -1 ="
        " -max_steps.",
        minimum=-1,
    )
    optim_cosanneal_gamma: float = flag(
        0.75, "Factor on the peak rate from one cycle to the next (cosanneal, cyclic).", minimum=0.0, maximum=1.0
    )
    optim_cosanneal_restarts: int = flag(4, "Cycles in the whole run (cosanneal, cyclic).", minimum=1)
    optim_cosanneal_min_lr: float = flag(
        1e-7,
        "Lowest rate (cosanneal, cyclic, cosine, polynomial, wsd, plateau).",
        minimum=0.0,
        aliases=("min_learning_rate",),
    )
    polynomial_power: float = flag(
        1.0,
        "Power of the polynomial; 1 = a straight line.",
        minimum=0.01,
        maximum=100.0,
        needs={"lr_scheduler=polynomial": "it has a power"},
    )
    wsd_decay_steps: float = flag(
        0.1,
        "Optimizer steps of the straight fall at the end of wsd; below 1, a share of all steps.",
        minimum=0.0,
        needs={"lr_scheduler=wsd": "it falls at the end"},
    )
    plateau_factor: float = flag(
        0.5,
        "What plateau multiplies the rate by.",
        minimum=0.001,
        maximum=0.999,
        needs={"lr_scheduler=plateau": "it lowers the rate"},
    )
    plateau_patience: int = flag(
        2,
        "Validations without a better -monitor before plateau lowers the rate.",
        minimum=1,
        needs={"lr_scheduler=plateau": "it counts validations"},
    )
    weight_decay: float = flag(0.0, "Decoupled weight decay; biases and norms are left out; 0 = off.", minimum=0.0)
    grad_clip: float = flag(
        1.0, "Largest gradient norm; adafactor clips by itself and ignores it; 0 = off.", minimum=0.0
    )
    ema_decay: float = flag(
        0.0,
        "Decay of a moving average of the weights, e.g. 0.999: the average is validated, exported and predicted with,"
        " and checkpoints hold both; 0 = off.",
        minimum=0.0,
        maximum=0.999999,
        excludes={"optim=schedulefree": "it has a mean of the weights itself", SHARDED: NOT_TRIED},
    )
    dropout: float | None = flag(
        None,
        "Dropout of the layers, the only one that T5's family has; automatic = the model's.",
        minimum=0.0,
        maximum=0.9,
    )
    attention_dropout: float | None = flag(
        None,
        "Dropout of attention weights, where the model has a rate for them alone; automatic = the model's.",
        minimum=0.0,
        maximum=0.9,
    )
    activation_dropout: float | None = flag(
        None,
        "Dropout inside feed-forward layers, where the model has a rate for them alone; automatic = the model's.",
        minimum=0.0,
        maximum=0.9,
    )
    neftune_alpha: float = flag(
        0.0,
        "Size of the noise on the source embeddings in training (NEFTune), e.g. 5; 0 = off.",
        minimum=0.0,
        excludes={DEEPSPEED: NOT_TRIED},
    )
    label_smoothing: float = flag(0.0, "Share of the target probability spread evenly.", minimum=0.0, maximum=0.9)
    z_loss: float = flag(
        0.0,
        "Weight of the squared logarithm of the softmax's normalizer, which keeps logits from drifting (T5 1.1: 1e-4);"
        " 0 = off.",
        minimum=0.0,
        maximum=1.0,
        excludes={"teacher": NOT_TRIED, "rdrop_alpha": NOT_TRIED},
    )
    rdrop_alpha: float = flag(
        0.0,
        "Weight of R-Drop: every row goes through the model twice, and the divergence of the two outputs joins the"
        " loss; about twice the time and memory; 0 = off.",
        minimum=0.0,
        excludes={"teacher": NOT_TRIED, DEEPSPEED: NOT_TRIED},
    )


@dataclasses.dataclass(frozen=True)
class DistillationFlags:
    """Distillation"""

    teacher: str = free(
        "",
        "Model whose output distributions this one learns to imitate: a run's folder, a folder, a .ckpt or a hub name,"
        " with the same tokenizer and vocabulary; empty = none.",
        metavar="MODEL",
        excludes={DEEPSPEED: NOT_TRIED},
        path="read",
    )
    distill_temperature: float = flag(
        1.0,
        "Softens both distributions before they are compared; 1 = as they are.",
        minimum=0.1,
        maximum=1000.0,
        needs=NO_TEACHER,
    )
    distill_weight: float = flag(
        0.5,
        "Share of the divergence from the teacher in the loss; the rest is the cross-entropy.",
        minimum=0.0,
        maximum=1.0,
        needs=NO_TEACHER,
    )


def dropout_rates(optim: OptimFlags) -> dict[str, float | None]:
    """The rates that replace those of the model config, by flag."""
    return {name: getattr(optim, name) for name in DROPOUTS}
