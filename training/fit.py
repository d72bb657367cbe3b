"""The fit: data module, module, callbacks and trainer put together, and run to the end or to a stop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints.saved_run import TASKS_KEY
from datamodules.splits import Splits
from models.tokenizers import pack_tokenizer
from postprocessors.labels import LabelMap
from training.checkpointing import Checkpointer
from training.resuming import adapt, environment, kept_flags
from training.run import closing_lines, open_run_folder, resolved_settings, summary_lines
from training.run_log import RunLog
from training.setup import Prepared
from training.signals import StopSignal, TrainingStopped
from training.strategies import STRATEGIES
from training.trainer import build_module, build_trainer, process_watch
from training.validation import GeneratedValidation
from utils.console import say
from utils.launch import is_first_process


def fit(prepared: Prepared, stop: StopSignal) -> None:
    """Train to the end.

    Raises:
        TrainingStopped: a signal or a limit; the run was saved at a step boundary.
        RunError: a NaN, or the disk refused.
    """
    strategy = STRATEGIES[prepared.config.device.strategy]
    config, resumed, parts = prepared.config, prepared.resumed, prepared.parts
    folder = Path(config.run.save_path)
    data = prepared.data_module()
    plan = data.plan(0, prepared.devices.world_size)
    total_steps = plan.num_steps * config.optim.max_epoch
    if resumed:
        adapted = adapt(resumed, prepared.differences, config, plan)
        resumed, total_steps = adapted.run, adapted.total_steps
        say(*adapted.lines)
    validated = tuple(part.name for part in data.validated)
    module = build_module(config, prepared.model, prepared.tokenizer, total_steps, strategy, validated)
    description = {
        **described_tasks(parts),
        "flags": kept_flags(resumed, config),
        "tokenizer": resumed.model.tokenizer_files if resumed else pack_tokenizer(prepared.tokenizer),
        "monitor": config.run.monitor,
        "environment": environment(prepared.devices),
    }
    checkpointer = Checkpointer(config.run, folder, description, stop, strategy)
    metric_names = {part.name: part.task.generated_metrics(config.run.monitor) for part in parts}
    generated = GeneratedValidation(config.run.valid_generate_rows, metric_names)
    run_log = RunLog(folder, config.run.log_every, total_steps, config.run.monitor)
    callbacks = [generated, run_log, checkpointer]
    trainer = build_trainer(config, strategy, prepared.devices, plan, bool(validated), callbacks, resumed)
    resolved = resolved_settings(config, prepared.mixture, prepared.devices, plan, prepared.model, total_steps)
    if is_first_process():
        open_run_folder(config, folder, resumed, resolved)
    say(*summary_lines(config, prepared.mixture, resolved, resumed, bool(validated)))
    stop.install()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(resumed.path) if resumed else None, weights_only=True)
    except TrainingStopped:
        raise  # on every rank alike
    except BaseException as error:
        process_watch(trainer).end_all(error)
        raise
    finally:
        process_watch(trainer).switch_off()
        stop.talk = False  # no optimizer step is left to stop after
    say(*closing_lines(folder, checkpointer, trainer.global_step, prepared.devices, run_log.best_of_tasks()))


def described_tasks(parts: Sequence[Splits]) -> dict[str, Any]:
    """What a checkpoint says of the tasks: of several, the first stands there as `task`."""
    postprocessor = parts[0].postprocessor if len(parts) == 1 else None
    tasks = [part.task.to_dict() for part in parts]
    return {
        "task": tasks[0],
        "label_map": postprocessor.to_dict() if isinstance(postprocessor, LabelMap) else None,
        **({TASKS_KEY: tasks} if len(tasks) > 1 else {}),
    }
