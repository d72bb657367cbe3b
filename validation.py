"""Checks of a whole command line: every problem is collected and told at once, before anything heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.data_paths import check_data_paths
from errors import UserError
from flags import FREEZABLE, DataFlags, InferenceConfig, TrainConfig
from models.presets import read_config
from models.run_folder import holds_run, newest_checkpoint
from task_utils import METRIC_NAMES, LabelMap, Task, Template, evaluation_labels, get_task

LOSS_MONITORS = ("val_loss", "token_accuracy")


def is_first_process() -> bool:
    """Whether this is the process of global rank 0, or a command that has not started others yet."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"))


def override_task(task: Task, data: DataFlags) -> Task:
    """`task` with the columns, templates and label map that the flags give in place of its own.

    Raises:
        UserError: a template or label map that cannot be read, or that do not go together.
    """
    if data.label_map:
        task = task.with_label_map(LabelMap.parse(data.label_map))
    changes: dict[str, Any] = {}
    for name in ("input_template", "target_template", "source_column", "target_column"):
        value = getattr(data, name)
        if value:
            changes[name] = int(value) if name.endswith("column") and value.isdecimal() else value
    task = replace(task, **changes)
    Template(task.input_template, "-input_template")
    evaluation_labels(task.label_map, Template(task.target_template, "-target_template"))
    return task


def _collect(problems: list[str], action: Callable[[], Any]) -> Any:
    try:
        return action()
    except UserError as error:
        problems.extend(error.problems)
        return None


def check_data(data: DataFlags, problems: list[str]) -> None:
    """Problems of the data flags that can be seen without reading whole files."""
    for name in ("train_data", "valid_data", "test_data"):
        problems.extend(check_data_paths(f"-{name}", getattr(data, name)))
    if data.valid_data_proportions + data.test_data_proportions >= 1.0:
        problems.append(
            f"-valid_data_proportions {data.valid_data_proportions} and -test_data_proportions"
            f" {data.test_data_proportions} leave no training rows: their sum must be below 1"
        )
    for name in ("valid", "test"):
        if getattr(data, f"{name}_data") and getattr(data, f"{name}_data_proportions"):
            problems.append(f"-{name}_data and -{name}_data_proportions exclude each other; give one of them")
    if data.cache_dir and Path(data.cache_dir).exists() and not Path(data.cache_dir).is_dir():
        problems.append(f"-cache_dir {data.cache_dir}: exists and is no folder")


def check_train(config: TrainConfig, given: frozenset[str], problems: list[str]) -> Task | None:
    """Every problem of a `train.py` command line, appended to `problems`; returns the resolved task."""
    task: Task | None = _collect(problems, lambda: override_task(get_task(config.task.task), config.data))
    check_data(config.data, problems)
    model, batch = config.model, config.batch
    resuming = bool(config.run.resume_checkpoint)
    if model.init_model and model.config_path:
        problems.append("-init_model and -config_path exclude each other: give pretrained weights or a config")
    if not model.init_model and not model.config_path and not resuming:
        problems.append("give -init_model (pretrained), -config_path (from scratch) or -resume_checkpoint")
    if model.config_path:
        _collect(problems, lambda: read_config(model.config_path))
    if not config.data.train_data and not (task and task.hub_dataset):
        problems.append("-train_data is required: a file, a folder or a hub name with the training rows")
    if "batch_size" in given and batch.max_tokens:
        problems.append("-batch_size and -max_tokens exclude each other; give one of them")
    for part in model.freeze:
        if part not in FREEZABLE:
            problems.append(f"-freeze {part}: one of {', '.join(FREEZABLE)} expected")
    if set(model.freeze) == set(FREEZABLE):
        problems.append("-freeze embedding, encoder and decoder together leave nothing to train")
    _check_optimization(config, given, problems)
    _check_devices(config.device.gpus, config.device.cpu_processes, problems)
    if config.device.num_nodes > 1 and (config.device.cpu_processes or config.device.gpus == 0):
        problems.append("-num_nodes above 1 goes with GPUs; -gpus 0 and -cpu_processes are for one machine")
    launched = any(name in os.environ for name in ("RANK", "SLURM_PROCID"))
    if config.run.seed < 0 and (config.device.num_nodes > 1 or launched):
        problems.append(f"-seed {config.run.seed}: a drawn seed is not shared between machines; give one, 0 or above")
    _check_monitor(config, task, problems)
    _check_save_path(config, problems)
    return task


def _check_optimization(config: TrainConfig, given: frozenset[str], problems: list[str]) -> None:
    optim = config.optim
    if optim.learning_rate == 0:
        problems.append("-learning_rate 0: above 0 expected")
    if optim.optim_cosanneal_gamma == 0:
        problems.append("-optim_cosanneal_gamma 0: above 0 and at most 1 expected; 1 keeps the peak of each cycle")
    if optim.warmup_steps >= 1 and optim.warmup_steps != int(optim.warmup_steps):
        problems.append(f"-warmup_steps {optim.warmup_steps}: whole steps, or a share below 1, expected")
    if optim.optim == "adafactor" and optim.learning_rate is None and "lr_scheduler" in given:
        problems.append(
            f"-lr_scheduler {optim.lr_scheduler} has no effect on adafactor's own rate; give -learning_rate as well"
        )
    cycles = optim.lr_scheduler in ("cosanneal", "cyclic")
    if cycles and optim.learning_rate and optim.optim_cosanneal_min_lr > optim.learning_rate:
        problems.append(
            f"-optim_cosanneal_min_lr {optim.optim_cosanneal_min_lr} is above -learning_rate {optim.learning_rate}"
        )


def _check_devices(gpus: int, cpu_processes: int, problems: list[str]) -> None:
    if cpu_processes and gpus > 0:
        problems.append(f"-cpu_processes {cpu_processes} and -gpus {gpus} exclude each other; give -gpus 0 or leave it")
    if cpu_processes > (os.cpu_count() or 1) * 4:
        problems.append(f"-cpu_processes {cpu_processes}: this machine has {os.cpu_count()} processors")


def _check_monitor(config: TrainConfig, task: Task | None, problems: list[str]) -> None:
    run = config.run
    if run.monitor in LOSS_MONITORS:
        return
    choices = [*LOSS_MONITORS, *dict.fromkeys(("exact_match", *(task.metrics if task else METRIC_NAMES)))]
    if run.monitor not in choices:
        problems.append(f"-monitor {run.monitor}: one of {', '.join(choices)} expected")
    elif run.valid_generate_rows == 0:
        problems.append(f"-monitor {run.monitor} needs generated rows: -valid_generate_rows above 0")


def resumed_path(config: TrainConfig) -> Path:
    """The file that -resume_checkpoint names: itself, or the newest of the run's folder that it (or `last`) names.

    Raises:
        UserError: a URL, or no such file.
    """
    value = config.run.resume_checkpoint
    if "://" in value:
        raise UserError(f"-resume_checkpoint {value}: a file on this machine is expected, not a URL")
    path = newest_checkpoint(Path(config.run.save_path)) if value == "last" else Path(value)
    if path.is_dir():
        path = newest_checkpoint(path)
    if not path.is_file():
        raise UserError(f"-resume_checkpoint {value}: no such file: {path}")
    return path


def _check_save_path(config: TrainConfig, problems: list[str]) -> None:
    run = config.run
    if not run.save_path:
        return
    folder = Path(run.save_path)
    if folder.exists() and not folder.is_dir():
        problems.append(f"-save_path {folder}: exists and is no folder")
        return
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK):
        problems.append(f"-save_path {folder}: no permission to write in {parent}")
    if run.resume_checkpoint:
        _collect(problems, lambda: resumed_path(config))
        if run.overwrite:
            problems.append("-overwrite and -resume_checkpoint exclude each other: delete the run or continue it")
        return
    if is_first_process() and holds_run(folder) and not run.overwrite:
        problems.append(
            f"-save_path {folder}: already holds a run; continue it with -resume_checkpoint last, delete it with"
            " -overwrite, or choose another folder"
        )


def _input_files(data: DataFlags) -> list[tuple[str, str]]:
    """(flag, path) of the data files, without the suffix :N."""
    names = ("train_data", "valid_data", "test_data")
    values = [(f"-{name}", value) for name in names for value in getattr(data, name)]
    return [(flag, value if Path(value).exists() else value.rpartition(":")[0] or value) for flag, value in values]


def check_inference(config: InferenceConfig, problems: list[str]) -> None:
    """Every problem of an `inference.py` command line, appended to `problems`."""
    check_data(config.data, problems)
    data, output = config.data, config.output
    task: Task | None = None
    if config.model.task:
        task = _collect(problems, lambda: override_task(get_task(config.model.task), data))
    hub = bool(task and task.hub_dataset) and not data.train_data
    if not (data.test_data or data.valid_data or (data.train_data and data.test_data_proportions) or hub):
        problems.append("-test_data is required: a file, a folder or a hub name with the rows to predict")
    if data.label_map and not config.model.task:
        _collect(problems, lambda: LabelMap.parse(data.label_map))
    outputs = [("-save_output", output.save_output), ("-save_label", output.save_label)]
    outputs.append(("-save_report", output.save_report))
    seen = {str(Path(path).absolute()): flag for flag, path in _input_files(data)}
    for flag, value in outputs:
        if not value:
            continue
        path = Path(value)
        key = str(path.absolute())
        if key in seen:
            problems.append(f"{flag} {value}: the same file as {seen[key]}")
            continue
        seen[key] = flag
        if path.is_dir():
            problems.append(f"{flag} {value}: is a folder; give a file")
        elif not path.absolute().parent.is_dir():
            problems.append(f"{flag} {value}: the folder {path.absolute().parent} does not exist")
        elif not os.access(path.absolute().parent, os.W_OK):
            problems.append(f"{flag} {value}: no permission to write in {path.absolute().parent}")
        elif path.exists() and not output.overwrite:
            problems.append(f"{flag} {value}: exists; -overwrite replaces it")
    _check_devices(config.device.gpus, config.device.cpu_processes, problems)
