"""Fine-tune an encoder-decoder: flags -> validate -> encode -> build -> fit -> tell.

Supports BART, mBART, T5, mT5, UMT5, ByT5 and what `AutoModelForSeq2SeqLM` loads; one or several GPUs or CPU processes
(DDP); resuming from a .ckpt. `python train.py -h` lists the flags.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console import tell
from errors import RunError, UserError, raise_if_any, run_command
from flag_parsing import help_text, parse_flags, to_dict, wants_help, without_flags
from flags import TrainConfig
from models.run_folder import CACHE_FOLDER, TEST_REPORT, run_lock
from models.signals import StopSignal
from task_utils import LabelMap, Task, Template, evaluation_labels
from validation import check_train, is_first_process

if TYPE_CHECKING:  # the heavy imports wait until the flags are known to be right
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from datamodules.seq2seq_datamodule import Seq2SeqDataModule
    from datamodules.splits import Splits
    from models.strategies import Devices

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
    stop = StopSignal(talk=is_first_process())
    if not is_first_process():
        stop.install()  # the first process decides when all of them stop, also while they start
    with run_lock(Path(config.run.save_path)) if is_first_process() else nullcontext():
        return run(with_seed(config), task, argv, stop)


def with_seed(config: TrainConfig) -> TrainConfig:
    """The config with a seed drawn at random in place of one below 0, the same in every process."""
    if config.run.seed >= 0:
        return config
    if SEED_VARIABLE not in os.environ:
        os.environ[SEED_VARIABLE] = str(secrets.randbelow(2**31))
    return replace(config, run=replace(config.run, seed=int(os.environ[SEED_VARIABLE])))


def say(*lines: str) -> None:
    """Print for the user, once whatever the number of processes."""
    if is_first_process():
        tell(*lines)


@dataclass(frozen=True)
class Prepared:
    """Everything that a run is made of, before the first step."""

    config: TrainConfig
    task: Task
    labels: LabelMap | None  # as they are predicted
    devices: Devices
    splits: Splits
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    resumed: Mapping[str, Any] | None  # the checkpoint


def run(config: TrainConfig, task: Task, argv: list[str], stop: StopSignal) -> int:
    """Prepare, fit, and predict the test rows; returns the exit code."""
    from models.environment import quiet_libraries

    quiet_libraries()
    from models.durable import nothing_kept_on_user_error
    from models.signals import TrainingStopped
    from models.training_model import finished_words, load_resumed

    folder = Path(config.run.save_path)
    resumed = load_resumed(config)
    finished = finished_words(resumed, config) if resumed else ""
    say(*([finished] if finished else []))
    if finished and (not config.data.test_data or (folder / TEST_REPORT).exists()):
        return 0
    try:
        with nothing_kept_on_user_error(folder / CACHE_FOLDER) if is_first_process() else nullcontext():
            prepared = prepare(config, task, resumed)
            if resumed and not finished:
                build_data(prepared).check_resumable(resumed, prepared.devices.world_size)
        if not finished:
            fit(prepared, stop)
    except TrainingStopped as stopped:
        say("stopped and saved; this resumes it:", "  " + resume_command(argv, config.run.seed))
        return 128 + stopped.signum if is_first_process() else 0
    except RunError:
        if is_first_process():
            raise
        return 0  # every rank stops alike, and the first one tells
    if is_first_process() and not stop.received and prepared.splits.test is not None:
        from models.test_report import report_test_split

        say(*report_test_split(folder, prepared.splits.test, task, prepared.labels, config, prepared.devices))
    return 128 + stop.received if stop.received and is_first_process() else 0


def prepare(config: TrainConfig, task: Task, resumed: Mapping[str, Any] | None) -> Prepared:
    """Devices, encoded rows, tokenizer and model."""
    from datamodules.splits import Encoder, training_splits
    from models.loading import source_limit
    from models.strategies import resolve_devices, use_threads
    from models.training_model import changed_words, model_source

    say(*changed_words(resumed, config))
    source = model_source(config, resumed)
    flags = config.device
    model_type = source.config.model_type
    devices = resolve_devices(flags.gpus, flags.cpu_processes, flags.float_precision, model_type, flags.num_nodes)
    use_threads(devices)
    cache = Path(config.data.cache_dir or Path(config.run.save_path) / CACHE_FOLDER)
    encoder = Encoder(config.data, config.length, task, source.tokenizer, source_limit(source.config), cache)
    splits = training_splits(encoder)
    say(*splits.lines)
    labels = evaluation_labels(task.label_map, Template(task.target_template, "-target_template"))
    model = source.build(config.run.seed)
    return Prepared(config, task, labels, devices, splits, source.tokenizer, model, resumed)


def fit(prepared: Prepared, stop: StopSignal) -> None:
    """Train to the end.

    Raises:
        TrainingStopped: a signal; the run was saved at a step boundary.
        RunError: a NaN, or the disk refused.
    """
    from models.checkpointing import Checkpointer
    from models.durable import CONTENT_KEY
    from models.loading import pack_tokenizer
    from models.run_log import RunLog
    from models.run_setup import closing_lines, open_run_folder, resolved_settings, summary_lines
    from models.trainer import build_module, build_trainer

    config, resumed, labels = prepared.config, prepared.resumed, prepared.labels
    folder = Path(config.run.save_path)
    data = build_data(prepared)
    plan = data.plan(0, prepared.devices.world_size)
    module = build_module(config, prepared.model, prepared.tokenizer, prepared.task, labels, plan)
    description = {
        "task": prepared.task.to_dict(),
        "label_map": labels.to_dict() if labels else None,
        "flags": to_dict(config),
        "tokenizer": resumed[CONTENT_KEY]["tokenizer"] if resumed else pack_tokenizer(prepared.tokenizer),
        "monitor": config.run.monitor,
    }
    checkpointer = Checkpointer(config.run, folder, description, stop)
    callbacks = [RunLog(folder, config.run.log_every), checkpointer]
    trainer = build_trainer(config, prepared.devices, plan, data.valid is not None, callbacks)
    resolved = resolved_settings(config, prepared.task, prepared.devices, plan, prepared.model)
    if is_first_process():
        open_run_folder(config, folder, resumed, resolved)
    say(*summary_lines(config, prepared.task, resolved))
    stop.install()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resumed["path"] if resumed else None, weights_only=True)
    finally:
        stop.release()
    say(*closing_lines(folder, checkpointer, trainer.global_step))


def build_data(prepared: Prepared) -> Seq2SeqDataModule:
    """The data module over the encoded rows."""
    from datamodules.batching import BatchOptions
    from datamodules.seq2seq_datamodule import Seq2SeqDataModule

    batch, on_gpu = prepared.config.batch, prepared.devices.accelerator == "cuda"
    options = BatchOptions(
        batch_size=0 if batch.max_tokens else batch.batch_size,
        max_tokens=batch.max_tokens,
        accumulate=batch.grad_acc,
        pad_to_multiple_of=8 if on_gpu else 1,
    )
    return Seq2SeqDataModule(
        prepared.splits.train,
        prepared.splits.valid,
        label_map=prepared.labels,
        pad_token_id=prepared.tokenizer.pad_token_id,
        batch_options=options,
        seed=prepared.config.run.seed,
        num_workers=batch.num_workers,
        pin_memory=on_gpu,
    )


def resume_command(argv: list[str], seed: int) -> str:
    """The command line that continues this run; `seed` is the one in force where -seed below 0 drew one."""
    kept = without_flags(argv, ("resume_checkpoint", "overwrite", "seed"))
    return shlex.join(["python", sys.argv[0], *kept, "-seed", str(seed), "-resume_checkpoint", "last"])


if __name__ == "__main__":
    run_command(main)
