"""Fine-tune an encoder-decoder: flags -> validate -> encode -> build -> fit -> tell.

Supports BART, mBART, T5, mT5, UMT5, ByT5 and what `AutoModelForSeq2SeqLM` loads; one or several GPUs or CPU processes
(DDP); resuming from a .ckpt. `python train.py -h` lists the flags.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from errors import UserError, raise_if_any, run_command
from flag_parsing import help_text, parse_flags, to_dict, wants_help
from flags import TrainConfig
from task_utils import LabelMap, Task, Template, evaluation_labels
from validation import check_train, is_first_process

USAGE = "usage: python train.py -train_data FILE (-init_model MODEL | -config_path PRESET) -save_path FOLDER [flags]"
SEED_VARIABLE = "S2S_SEED"  # the seed drawn for -seed -1, for the processes that Lightning starts


def main(argv: list[str]) -> int:
    if wants_help(argv):
        print(help_text(TrainConfig, USAGE))
        return 0
    config, given, problems = parse_flags(TrainConfig, argv)
    task = check_train(config, given, problems)
    raise_if_any(problems)
    if task is None:
        raise UserError("-task could not be resolved")
    return run(with_seed(config), task, argv)


def with_seed(config: TrainConfig) -> TrainConfig:
    """The config with a seed drawn at random in place of one below 0, the same in every process."""
    if config.run.seed >= 0:
        return config
    if SEED_VARIABLE not in os.environ:
        if not is_first_process() or "RANK" in os.environ:
            raise UserError("-seed below 0 cannot be shared between processes that were started from outside; give one")
        os.environ[SEED_VARIABLE] = str(secrets.randbelow(2**31))
    return replace(config, run=replace(config.run, seed=int(os.environ[SEED_VARIABLE])))


def say(*lines: str) -> None:
    """Print for the user, once whatever the number of processes."""
    if is_first_process():
        for line in lines:
            print(line, flush=True)


def run(config: TrainConfig, task: Task, argv: list[str]) -> int:
    from models.environment import quiet_libraries

    quiet_libraries()
    from datamodules.splits import Encoder, training_splits
    from models.loading import source_limit
    from models.signals import TrainingStopped
    from models.strategies import resolve_devices, use_threads
    from models.training_model import load_resumed, model_source

    folder = Path(config.run.save_path)
    resumed = load_resumed(config)
    source = model_source(config, resumed)
    devices = resolve_devices(
        config.device.gpus,
        config.device.cpu_processes,
        config.device.float_precision,
        source.config.model_type,
        config.device.num_nodes,
    )
    use_threads(devices)
    cache = Path(config.data.cache_dir) if config.data.cache_dir else folder / "cache"
    encoder = Encoder(config.data, config.length, task, source.tokenizer, source_limit(source.config), cache)
    splits = training_splits(encoder)
    say(*splits.lines)
    labels = evaluation_labels(task.label_map, Template(task.target_template, "-target_template"))
    model = source.build(config.run.seed)
    try:
        fitted = fit(config, task, labels, devices, splits, source.tokenizer, model, resumed)
    except TrainingStopped as stopped:
        say("stopped and saved; this resumes it:", "  " + resume_command(argv))
        return 128 + stopped.signum if is_first_process() else 0
    if not is_first_process():
        return 0
    say(*fitted)
    if splits.test is not None:
        from models.test_report import report_test_split

        say(*report_test_split(folder, splits.test, task, labels, config, devices))
    return 0


def fit(
    config: TrainConfig,
    task: Task,
    labels: LabelMap | None,
    devices: Any,
    splits: Any,
    tokenizer: Any,
    model: Any,
    resumed: Mapping[str, Any] | None,
) -> list[str]:
    """Train to the end; returns the closing lines."""
    import pytorch_lightning as pl

    from datamodules.batching import BatchOptions
    from datamodules.seq2seq_datamodule import Seq2SeqDataModule
    from models.checkpointing import Checkpointer, take_over_loop
    from models.durable import DurableCheckpointIO
    from models.loading import pack_tokenizer
    from models.run_log import RunLog
    from models.seq2seq_module import ModuleOptions, Seq2SeqModule
    from models.signals import StopSignal
    from models.strategies import lightning_strategy

    batch, run_flags = config.batch, config.run
    folder = Path(run_flags.save_path)
    data = Seq2SeqDataModule(
        splits.train,
        splits.valid,
        label_map=labels,
        pad_token_id=tokenizer.pad_token_id,
        batch_options=BatchOptions(
            batch_size=0 if batch.max_tokens else batch.batch_size,
            max_tokens=batch.max_tokens,
            accumulate=batch.grad_acc,
            pad_to_multiple_of=8 if devices.accelerator == "cuda" else 1,
        ),
        seed=run_flags.seed,
        num_workers=batch.num_workers,
        pin_memory=devices.accelerator == "cuda",
    )
    plan = data.plan(0, devices.world_size)
    steps = plan.num_steps * config.optim.max_epoch
    options = ModuleOptions(
        seed=run_flags.seed,
        total_steps=steps,
        accumulate=batch.grad_acc,
        log_every=run_flags.log_every,
        generate_rows=run_flags.valid_generate_rows,
        metric_names=task.metrics,
    )
    module = Seq2SeqModule(model, tokenizer, config.optim, options, labels)
    description = {
        "task": task.to_dict(),
        "label_map": labels.to_dict() if labels else None,
        "flags": to_dict(config),
        "tokenizer": pack_tokenizer(tokenizer),
        "monitor": run_flags.monitor,
    }
    stop = StopSignal(talk=is_first_process())
    checkpointer = Checkpointer(run_flags, folder, description, stop)
    trainer = pl.Trainer(
        accelerator=devices.accelerator,
        devices=devices.count,
        num_nodes=devices.num_nodes,
        strategy=lightning_strategy(devices, config.device.strategy),
        precision=devices.precision,
        max_epochs=config.optim.max_epoch,
        accumulate_grad_batches=batch.grad_acc,
        val_check_interval=validation_interval(plan, run_flags.valid_check_interval, batch.grad_acc),
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(folder),
        plugins=[DurableCheckpointIO()],
        callbacks=[RunLog(folder, run_flags.log_every), checkpointer],
    )
    take_over_loop(trainer)
    open_run_folder(config, folder)
    say(*summary(config, task, devices, plan, model, steps))
    stop.install()
    trainer.fit(module, datamodule=data, ckpt_path=resumed["path"] if resumed else None, weights_only=True)
    return closing_lines(folder, checkpointer, trainer.global_step)


def validation_interval(plan: Any, share: float, accumulate: int) -> int:
    """Micro-batches between validations: a whole number of optimizer steps, at most the epoch."""
    return min(max(1, round(plan.num_steps * share)) * accumulate, plan.batches_per_rank)


def open_run_folder(config: TrainConfig, folder: Path) -> None:
    """Make the run's folder ready: an overwritten run goes now, when everything else is known to be right."""
    from models.durable import clean_leftovers, write_json
    from models.run_folder import CONFIG_NAME, RUN_NAMES

    if not is_first_process():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if config.run.overwrite:
        for name in RUN_NAMES:
            path = folder / name
            if name != "cache" and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif name != "cache":
                path.unlink(missing_ok=True)
    clean_leftovers(folder)
    write_json(folder / CONFIG_NAME, to_dict(config))


def summary(config: TrainConfig, task: Task, devices: Any, plan: Any, model: Any, steps: int) -> list[str]:
    """The resolved configuration in short."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    optim, batch = config.optim, config.batch
    rate = optim.learning_rate
    rate_words = f"{rate:g}" if rate is not None else "1e-04" if optim.optim == "adam" else "its own relative step"
    size = f"{batch.max_tokens} padded tokens" if batch.max_tokens else f"{batch.batch_size} rows"
    return [
        f"task {task.name}; labels: {task.label_map.describe() if task.label_map else 'free text'}",
        f"model {config.model.init_model or config.model.config_path or config.run.resume_checkpoint}:"
        f" {model.config.model_type}, {parameters:,} parameters, {trained:,} trained, seed {config.run.seed}",
        f"devices {devices.world_size} x {devices.accelerator}, precision {devices.precision}",
        f"batches of {size} x {batch.grad_acc} accumulated x {devices.world_size} devices,"
        f" {plan.num_steps:,} optimizer steps an epoch, {steps:,} in all, padding {plan.padding_share():.1%}",
        f"optimizer {optim.optim}, learning rate {rate_words}"
        + (f", {optim.lr_scheduler}" if rate is not None or optim.optim == "adam" else ""),
        f"everything goes to {config.run.save_path}",
    ]


def closing_lines(folder: Path, checkpointer: Any, step: int) -> list[str]:
    """Where things lie, and the best score."""
    score = checkpointer.best_score
    best = (
        f"best {checkpointer.flags.monitor} {score:.4f} at step {checkpointer.best_step}" if score is not None else ""
    )
    return [
        f"trained to optimizer step {step}; {best or 'no validation rows: best/ is the last state'}",
        f"model folders {folder / 'best'} and {folder / 'last'}, checkpoints in {folder / 'saved_checkpoints'}",
    ]


def resume_command(argv: list[str]) -> str:
    """The command line that continues this run."""
    kept: list[str] = []
    skip = False
    for token in argv:
        name = token.lstrip("-").replace("-", "_").partition("=")[0]
        if skip and not token.startswith("-"):
            skip = False
            continue
        skip = False
        if token.startswith("-") and name in ("resume_checkpoint", "overwrite"):
            skip = "=" not in token
            continue
        kept.append(token)
    return shlex.join(["python", sys.argv[0], *kept, "-resume_checkpoint", "last"])


if __name__ == "__main__":
    run_command(main)
