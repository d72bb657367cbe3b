"""The fit: data module, module, callbacks and trainer put together, and run to the end or to a stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from checkpoints.saved_run import TASKS_KEY, SavedRun
from config.checks import schedule_steps
from config.flags.run import logger_names
from config.flags.train import TrainConfig
from config.parser import to_dict
from datamodules.splits import Splits
from models.freezing import trained_lines
from models.kernels.compiled import CompiledBlocks
from models.seq2seq_module import Seq2SeqModule
from models.tokenizers import pack_tokenizer
from postprocessors.labels import LabelMap
from training.checkpointing import Checkpointer
from training.lightning_loop import data_module, in_precision, ours
from training.loggers.registry import Loggers
from training.memory.batch_search import with_found_batch
from training.profiling import StepProfile
from training.resuming import adapt, environment, kept_flags
from training.run import (
    closing_lines,
    length_charts,
    open_run_folder,
    resolved_settings,
    summary_lines,
    write_report_page,
)
from training.run_log import RunLog
from training.setup import Prepared
from training.signals import StopSignal, TrainingStopped
from training.strategies.registry import STRATEGIES
from training.trainer import build_module, build_trainer, process_watch
from training.validation import GeneratedValidation
from utils.console import say
from utils.devices import is_out_of_memory
from utils.errors import RunError
from utils.launch import is_first_process

QUIET_BATCHES = 100  # without a compilation: it is over, or nearly


class LargestBatchFirst(pl.Callback):
    """Tries the largest batch of the first epoch before training begins: memory that lacks is seen at once.

    Args:
        on_cpu: there as well, where the system gives what memory it has and a trial costs more than it tells.
    """

    def __init__(self, on_cpu: bool = False) -> None:
        self.on_cpu = on_cpu

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = ours(pl_module)
        if self.on_cpu or module.device.type != "cpu":
            batch = trainer.strategy.batch_to_device(data_module(trainer).first_batches().largest(), module.device)
            with in_precision(trainer):
                module.try_batch(batch)


class Compilation(pl.Callback):
    """Runs training steps through the compiled blocks, and tells what their compilation cost when it is over."""

    def __init__(self, blocks: CompiledBlocks) -> None:
        self.blocks = blocks
        self.seen = 0  # compilations
        self.quiet = 0  # batches since the latest
        self.told = ""

    def on_train_batch_start(self, *_: Any) -> None:
        self.blocks.on = True

    def on_train_batch_end(self, *_: Any) -> None:
        self.blocks.on = False
        self.quiet = self.quiet + 1 if self.blocks.compilations == self.seen else 0
        self.seen = self.blocks.compilations
        if self.quiet == QUIET_BATCHES:
            self.tell()

    def on_train_end(self, *_: Any) -> None:
        self.tell()

    def on_exception(self, *_: Any) -> None:  # a stop as well
        self.tell()

    def tell(self) -> None:
        """Say how much was compiled, unless it was said."""
        line = self.blocks.describe()
        say(*(() if line == self.told else (line,)))
        self.told = line


@contextmanager
def memory_errors(module: Seq2SeqModule, config: TrainConfig, fixed_rows: bool = False) -> Iterator[None]:
    """Raise `RunError` with the batch and what helps where the memory is too small.

    Args:
        fixed_rows: -max_tokens does not go with the loss.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if not module.batch_shape:
            raise RunError(f"the model does not fit into the memory of {module.device}") from error
        batch = config.batch
        smaller = "a smaller -max_tokens" if batch.max_tokens else "-max_tokens in place of -batch_size"
        halved = f"-batch_size {batch.batch_size // 2} with -grad_acc {batch.grad_acc * 2}"
        ways = [
            *(() if fixed_rows else (smaller,)),
            *(() if batch.max_tokens or batch.batch_size < 2 else (f"{halved} (the same training)",)),
        ]
        ways += [] if config.model.gradient_checkpointing else ["-gradient_checkpointing"]
        raise RunError(
            f"the memory of {module.device} is too small for a batch of {module.batch_shape}: give {', or '.join(ways)}"
            "; the checkpoints that are there are whole"
        ) from error


def fit(prepared: Prepared, stop: StopSignal) -> tuple[Prepared, Loggers]:
    """Train to the end; gives what was prepared, with the size of batches that was found where one was to be, and the
    trackers, which wait for the files of the run.

    Raises:
        TrainingStopped: a signal or a limit; the run was saved at a step boundary.
        RunError: a NaN, or the disk refused.
    """
    prepared = with_found_batch(prepared)
    strategy = STRATEGIES[prepared.config.device.strategy]
    config, resumed, parts = prepared.config, prepared.resumed, prepared.data.parts
    folder = Path(config.run.save_path)
    data = prepared.data_module()
    plan = data.plan(0, prepared.devices.world_size)
    total_steps = plan.num_steps * config.epochs
    if resumed:
        adapted = adapt(resumed, prepared.differences, config, plan)
        resumed, total_steps = adapted.run, adapted.total_steps
        say(*adapted.lines)
    validated = tuple(part.name for part in data.validated)
    of_vectors = prepared.data.passages is not None
    module = build_module(
        config,
        prepared.model,
        prepared.tokenizer,
        schedule_steps(config, total_steps),
        strategy,
        validated,
        prepared.teacher,
        of_vectors=of_vectors,
        text_apart=prepared.data.rows.special_ids is not None,
    )
    checkpointer = Checkpointer(config.run, folder, described(prepared, resumed), stop, strategy)
    metric_names = {part.name: part.task.generated_metrics(config.run.monitor) for part in parts}
    generated = GeneratedValidation(config.generated_rows, metric_names, strategy)
    loggers = Loggers(logger_names(config.run), folder, to_dict(config))
    arithmetic = prepared.devices.arithmetic
    drawn = bool(config.model.config_path) and resumed is None and not of_vectors
    run_log = RunLog(folder, config.run.log_every, total_steps, config.run.monitor, arithmetic, loggers, drawn)
    callbacks: list[pl.Callback] = [LargestBatchFirst()] if strategy.largest_batch_first else []
    callbacks += [*([] if of_vectors else [generated]), run_log, checkpointer]
    if config.device.compile:
        callbacks.append(Compilation(CompiledBlocks(prepared.model, prepared.devices.accelerator)))
    profile = StepProfile(folder, config.run.profile) if config.run.profile and is_first_process() else None
    trainer = build_trainer(config, strategy, prepared.devices, plan, bool(validated), callbacks, resumed, profile)
    resolved = resolved_settings(config, prepared.mixture, prepared.devices, plan, prepared.model, total_steps)
    resolved["lengths"] = length_charts(config, parts)
    if is_first_process():
        open_run_folder(config, folder, resumed, resolved)
    say(*summary_lines(config, prepared.mixture, resolved, resumed, bool(validated)))
    say(*trained_lines(prepared.model))
    stop.install()
    fixed_rows = of_vectors or bool(config.cloze_weight)
    with ended_in_order(trainer, loggers, stop), memory_errors(module, config, fixed_rows), profile or nullcontext():
        trainer.fit(module, datamodule=data, ckpt_path=str(resumed.path) if resumed else None, weights_only=True)
    speed, of_tasks = run_log.speed(), run_log.best_of_tasks()
    say(*closing_lines(folder, checkpointer, trainer.global_step, prepared.devices, speed, of_tasks))
    if is_first_process():
        write_report_page(folder)
    return prepared, loggers


@contextmanager
def ended_in_order(trainer: pl.Trainer, loggers: Loggers, stop: StopSignal) -> Iterator[None]:
    """End the other processes and the trackers with a training that stops or fails; one that comes to its end leaves
    the trackers open."""
    try:
        yield
    except TrainingStopped:  # on every rank alike
        loggers.close_trackers(succeeded=True)
        raise
    except BaseException as error:
        process_watch(trainer).end_all(error)
        loggers.close_trackers(succeeded=False)
        raise
    finally:
        process_watch(trainer).switch_off()
        stop.talk = False  # no optimizer step is left to stop after


def described(prepared: Prepared, resumed: SavedRun | None) -> dict[str, Any]:
    """What a checkpoint says of its run, besides weights and state."""
    return {
        **described_tasks(prepared.data.parts),
        "flags": kept_flags(resumed, prepared.config),
        "tokenizer": resumed.model.tokenizer_files if resumed else pack_tokenizer(prepared.tokenizer),
        "monitor": prepared.config.run.monitor,
        "environment": environment(prepared.devices),
    }


def described_tasks(parts: Sequence[Splits]) -> dict[str, Any]:
    """What a checkpoint says of the tasks: of several, the first stands there as `task`."""
    postprocessor = parts[0].postprocessor if len(parts) == 1 else None
    tasks = [part.task.to_dict() for part in parts]
    return {
        "task": tasks[0],
        "label_map": postprocessor.to_dict() if isinstance(postprocessor, LabelMap) else None,
        **({TASKS_KEY: tasks} if len(tasks) > 1 else {}),
    }
