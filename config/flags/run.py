"""Flags of `train.py` of batches, the run and its devices. No torch import."""

from __future__ import annotations

import dataclasses

from config.flags.data import GPUS_HELP, NOT_TRIED, PRECISION_HELP, PRECISIONS
from config.parser import flag, free

DEEPSPEED_STRATEGIES = (
    "deepspeed_1",
    "deepspeed_2",
    "deepspeed_2_fusedadam",
    "deepspeed_2_optim_offload",
    "deepspeed_3",
    "deepspeed_3_full",
)
# A process holds a part of the weights, or of what the optimizer keeps of them.
SHARDED_STRATEGIES = ("fsdp", "fsdp_offload", *DEEPSPEED_STRATEGIES)
STRATEGIES = ("auto", "ddp", *SHARDED_STRATEGIES)
SHARDED = f"strategy={'|'.join(SHARDED_STRATEGIES)}"
DEEPSPEED = f"strategy={'|'.join(DEEPSPEED_STRATEGIES)}"
ATTENTIONS = ("plain", "fused")
LOGGERS = ("tensorboard", "wandb", "mlflow", "trackio", "csv")


@dataclasses.dataclass(frozen=True)
class BatchFlags:
    """Batches"""

    batch_size: int = flag(
        48,
        "Rows in a batch on each device; 0 = the most that fit into its memory, found by trying.",
        minimum=0,
        maximum=10**7,
        resume="batches",
    )
    max_tokens: int = flag(
        0,
        "Padded source and target tokens in a batch on each device, in place of -batch_size; 0 = off; -1 = the most"
        " that fit into its memory, found by trying.",
        minimum=-1,
        resume="batches",
    )
    grad_acc: int = flag(
        1, "Batches whose gradients are summed for one optimizer step.", minimum=1, maximum=10**5, resume="batches"
    )
    num_workers: int = free(0, "Processes that load batches, for each device; 0 = the training process.", minimum=0)


def automatic(batch: BatchFlags) -> str:
    """The name of the flag whose number is to be found; empty where both are given."""
    return "batch_size" if not batch.batch_size else "max_tokens" if batch.max_tokens < 0 else ""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Run, validation and checkpoints"""

    save_path: str = free(
        "",
        "Folder of this run: checkpoints, logs, config.json.",
        required=True,
        unless=("list_tasks", "show_examples"),
        metavar="FOLDER",
        path="written",
    )
    overwrite: bool = flag(
        False,
        "Delete the run that -save_path already holds.",
        resume="once",
        excludes={"resume_checkpoint": "delete the run, or continue it"},
    )
    resume_checkpoint: str = flag(
        "",
        "Continue a run: 'last' (-save_path's newest checkpoint), 'best', 'auto' (the newest if there is one, else a"
        " fresh start), a .ckpt file, or a run's folder; empty = start afresh.",
        resume="once",
        path="read",
    )
    resume_force: bool = flag(
        False,
        "Resume although data or flags differ from the saved run; says what is not exact.",
        resume="once",
        needs={"resume_checkpoint": "name a checkpoint, or leave it out"},
    )
    seed: int = flag(
        123456,
        "Seed of weights, dropout and row order; below 0 = drawn at random and printed.",
        maximum=2**31 - 1,
        resume="batches",
    )
    save_every: int = free(0, "Optimizer steps between step checkpoints; 0 = off.", minimum=0)
    save_every_hour: float = free(1.0, "Hours between timed checkpoints; 0 = off.", minimum=0.0)
    save_last_k: int = free(2, "Step and timed checkpoints that are kept, of each kind.", minimum=1)
    valid_check_interval: float = free(
        1.0,
        "Share of an epoch between validations, rounded to optimizer steps.",
        minimum=1e-6,
        maximum=1.0,
        change="validations come at other steps",
    )
    valid_generate_rows: int = flag(
        200,
        "Validation rows predicted by real generation for exact match and the task's metrics; 0 = none.",
        minimum=0,
        resume="generated rows",
        change="scores of generated rows are of other rows",
    )
    monitor: str = flag(
        "val_loss",
        "What 'best' means: val_loss, token_accuracy, or a metric of the generated rows, e.g. exact_match.",
        resume="measure",
    )
    early_stopping_patience: int = free(0, "Validations without a better score before stopping; 0 = off.", minimum=0)
    max_steps: int = free(
        0,
        "Optimizer steps of the whole run after which it is saved and stops; 0 = off. A schedule follows it with"
        " -scheduler_steps -1 only.",
        minimum=0,
    )
    max_hours: float = free(
        0.0, "Hours after which this process saves and stops; 0 = off.", minimum=0.0, resume="process"
    )
    requeue: bool = flag(
        False,
        "SLURM: on SIGUSR1 or after -max_hours, save, stop and requeue the job; goes with -resume_checkpoint auto.",
        resume="once",
        needs={"resume_checkpoint=auto": "the job runs this same command again"},
    )
    log_every: int = free(20, "Optimizer steps between log entries and printed lines.", minimum=1)
    logger: str = free(
        "tensorboard",
        "Where the curves are shown, by comma: tensorboard, wandb, mlflow, trackio, csv; empty = nowhere. Without a"
        " login or an address in the environment they stay on this machine.",
        metavar="NAME[,NAME]",
    )
    profile: int = free(
        0,
        "Optimizer steps, after the first five, that are traced into <save_path>/profile/; where their time went is"
        " printed; 0 = off.",
        minimum=0,
        maximum=100,
        resume="process",
    )
    report_images: bool = free(
        False, "Draw the charts of report.html as PNGs too, into <save_path>/report_images/; needs matplotlib."
    )


def logger_names(run: RunFlags) -> tuple[str, ...]:
    """The values of -logger, each once."""
    return tuple(dict.fromkeys(name.strip() for name in run.logger.split(",") if name.strip()))


@dataclasses.dataclass(frozen=True)
class TrainDeviceFlags:
    """Devices"""

    gpus: int = free(-1, GPUS_HELP, minimum=-1)
    cpu_processes: int = free(0, "Processes of data-parallel training on the CPU; 0 = off.", minimum=0)
    memory_limit: float = free(
        0.0,
        "GiB of each GPU that the run may take, where others use it too; on the CPU, GiB that -batch_size 0 and"
        " -max_tokens -1 may fill; 0 = all.",
        minimum=0.0,
    )
    num_nodes: int = free(1, "Machines of the cluster.", minimum=1)
    strategy: str = free(
        "auto",
        "How devices share the work: ddp = each has the whole model; fsdp = each has a part of weights, gradients and"
        " optimizer state (FSDP2), and a checkpoint is a folder; fsdp_offload = the same with the parts in the memory"
        " of the host (GPUs only); deepspeed_1, _2, _3 = DeepSpeed's ZeRO: each has a part of the optimizer state, from"
        " 2 on of the gradients, in 3 of the weights; _optim_offload = the optimizer steps on the host; 3_full = the"
        " weights lie there too; _fusedadam = the optimizer is DeepSpeed's own (GPUs only); auto = ddp on several,"
        " plain on one. No GPU has run fsdp or deepspeed yet; they were tested with CPU processes.",
        choices=STRATEGIES,
        change="sums are rounded differently from here",
    )
    gradient_compression: str = flag(
        "none",
        "Type in which DDP sends gradients between processes: bf16 = half the bytes, but rounded to 8 bits of mantissa,"
        " so that more processes no longer give exactly the gradient of one big batch; none = fp32.",
        choices=("none", "bf16"),
        excludes={SHARDED: "its parts of gradients are sent as they are"},
    )
    float_precision: str = flag(
        "auto",
        PRECISION_HELP,
        choices=PRECISIONS,
        resume="arithmetic",  # what it comes to on the device is compared as well
    )
    attention: str = free(
        "plain",
        "Attention in training: plain = PyTorch's; fused = one Triton kernel, on NVIDIA GPUs only: none has run it yet,"
        " and its speed was not measured.",
        choices=ATTENTIONS,
        change="dropout in the attention draws other numbers from here",
        excludes={SHARDED: NOT_TRIED},
    )
    deterministic: bool = free(
        False,
        "Add in the same order in every run, so that one on the same GPUs, resumed or not, ends with the same bits;"
        " what it costs was not measured. The CPU does so anyway.",
    )
    compile: bool = flag(
        False,
        "Compile the layers with torch.compile for the training steps, in minutes; lengths are padded to multiples of"
        " 64. Needs a C++ compiler, and Triton on a GPU; not measured on one.",
        excludes={"attention=fused": "its kernel does not go through torch.compile", SHARDED: NOT_TRIED},
    )
