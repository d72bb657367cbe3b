"""The module and Lightning's trainer of a run, from its flags."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytorch_lightning as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.saved_run import SavedRun
from config.checks import highest_rate, schedule_of
from config.flags.optim import OptimFlags
from config.flags.train import TrainConfig
from datamodules.batching import BatchPlan
from generation.decoder import generation_config
from models.losses.contrastive import Contrastive
from models.losses.joint import Joint
from models.losses.objective import Objective, Teacher
from models.optimizers.settings import OptimSettings
from models.regularisation import add_embedding_noise
from models.seq2seq_module import ModuleOptions, Seq2SeqModule
from training.lightning_loop import DurableCheckpointIO, take_over_loop
from training.process_watch import ProcessWatch
from training.profiling import StepProfile
from training.strategies.base import Strategy
from training.strategies.cluster import cluster_environment
from utils.devices import Devices
from utils.errors import UserError


def build_module(
    config: TrainConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    total_steps: int,
    strategy: Strategy,
    validated: tuple[str, ...] = ("",),
    teacher: Teacher | None = None,
    of_vectors: bool = False,
    text_apart: bool = False,
) -> Seq2SeqModule:
    """The module around `model`; sets the generation config that exported folders carry.

    Args:
        total_steps: optimizer steps of the schedule.
        validated: the tasks that have validation rows, by name where there are several.
        of_vectors: the task is one of retrieval.
        text_apart: batches of a validation tell the tokens of the text from others.
    """
    model.generation_config = generation_config(model, tokenizer)
    options = ModuleOptions(
        seed=config.run.seed,
        total_steps=total_steps,
        accumulate=config.batch.grad_acc,
        log_every=config.run.log_every,
        validated=validated,
    )
    if config.optim.neftune_alpha:
        add_embedding_noise(model, config.optim.neftune_alpha, tokenizer.pad_token_id)
    contrastive = Contrastive(config.retrieval.pooling, config.retrieval.contrastive_temperature)
    optim = config.optim
    cross_entropy = Objective(
        optim.label_smoothing, optim.rdrop_alpha, teacher, optim.z_loss, text_apart, config.encoder_alone
    )
    objective: Objective | Contrastive | Joint = contrastive if of_vectors else cross_entropy
    if config.cloze_weight:
        objective = Joint(cross_entropy, contrastive, config.cloze_weight)
    return Seq2SeqModule(model, tokenizer, optim_settings(config.optim), options, strategy.grad_norm, objective)


def optim_settings(flags: OptimFlags) -> OptimSettings:
    """How the weights are moved, with the rate and the schedule that are in force."""
    values = {field.name: getattr(flags, field.name) for field in fields(OptimSettings)}
    return OptimSettings(
        **{**values, "learning_rate": highest_rate(flags), "lr_scheduler": schedule_of(flags) or flags.lr_scheduler}
    )


def build_trainer(
    config: TrainConfig,
    strategy: Strategy,
    devices: Devices,
    plan: BatchPlan,
    validates: bool,
    callbacks: list[pl.Callback],
    resumed: SavedRun | None,
    profile: StepProfile | None = None,
) -> pl.Trainer:
    """Lightning's trainer with its own logging, checkpoints and samplers switched off: ours take their place.

    Args:
        validates: whether there are validation rows.
        resumed: the run that is continued.

    Raises:
        UserError: the processes that were started are not those that the flags ask for.
    """
    accumulate = config.batch.grad_acc
    interval = max(1, round(plan.num_steps * config.run.valid_check_interval)) * accumulate
    settings: dict[str, Any] = {
        "accelerator": devices.accelerator,
        "devices": devices.count,
        "num_nodes": devices.num_nodes,
        "strategy": strategy.lightning(devices, config.device.gradient_compression == "bf16"),
        "precision": devices.precision,
        "max_epochs": config.epochs,
        "accumulate_grad_batches": accumulate,
        "val_check_interval": min(interval, plan.batches_per_rank),
        "limit_val_batches": 1.0 if validates else 0,
        "num_sanity_val_steps": 0,
        "inference_mode": not strategy.sharded,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": config.run.save_path,
        "plugins": [
            DurableCheckpointIO(resumed, devices.accelerator == "cpu", strategy.sharded),
            *filter(None, [cluster_environment(devices)]),
        ],
        "callbacks": callbacks,
        "profiler": profile,
    }
    trainer = pl.Trainer(**settings)
    if trainer.world_size != devices.world_size:
        raise UserError(
            f"{trainer.world_size} processes take part, and -gpus, -cpu_processes and -num_nodes make"
            f" {devices.world_size}: start as many as the flags say, or one, which starts the others itself"
        )
    take_over_loop(trainer)
    return trainer


def process_watch(trainer: pl.Trainer) -> ProcessWatch:
    """The watch over the processes that this one started; over none where it started none."""
    return getattr(trainer.strategy.launcher, "watch", None) or ProcessWatch([])
