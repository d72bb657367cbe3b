"""The module and Lightning's trainer of a run, from its flags."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from datamodules.batching import BatchPlan
from flags import TrainConfig
from models.checkpointing import take_over_loop
from models.durable import DurableCheckpointIO
from models.generation import DecodingOptions, generation_config
from models.seq2seq_module import ModuleOptions, Seq2SeqModule
from models.strategies import Devices, lightning_strategy
from task_utils import LabelMap, Task


def build_module(
    config: TrainConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    labels: LabelMap | None,
    plan: BatchPlan,
) -> Seq2SeqModule:
    """The module around `model`; sets the generation config that exported folders carry."""
    model.generation_config = generation_config(model, tokenizer, DecodingOptions())
    options = ModuleOptions(
        seed=config.run.seed,
        total_steps=plan.num_steps * config.optim.max_epoch,
        accumulate=config.batch.grad_acc,
        log_every=config.run.log_every,
        generate_rows=config.run.valid_generate_rows,
        metric_names=task.metrics,
    )
    return Seq2SeqModule(model, tokenizer, config.optim, options, labels)


def build_trainer(
    config: TrainConfig, devices: Devices, plan: BatchPlan, validates: bool, callbacks: list[pl.Callback]
) -> pl.Trainer:
    """Lightning's trainer with its own logging, checkpoints and samplers switched off: ours take their place."""
    accumulate = config.batch.grad_acc
    interval = max(1, round(plan.num_steps * config.run.valid_check_interval)) * accumulate
    settings: dict[str, Any] = {
        "accelerator": devices.accelerator,
        "devices": devices.count,
        "num_nodes": devices.num_nodes,
        "strategy": lightning_strategy(devices, config.device.strategy),
        "precision": devices.precision,
        "max_epochs": config.optim.max_epoch,
        "accumulate_grad_batches": accumulate,
        "val_check_interval": min(interval, plan.batches_per_rank),
        "limit_val_batches": 1.0 if validates else 0,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": config.run.save_path,
        "plugins": [DurableCheckpointIO()],
        "callbacks": callbacks,
    }
    trainer = pl.Trainer(**settings)
    take_over_loop(trainer)
    return trainer
