"""What surrounds a training run: the opening of its folder, its resolved settings, and what is told about it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import transformers

from checkpoints.model_folder import exported_at, write_export
from checkpoints.retention import continue_from, remove_uncounted
from checkpoints.run_folder import (
    CHECKPOINT_FOLDER,
    CONFIG_NAME,
    EPOCH_LOG,
    LOCK_NAME,
    OVERWRITTEN,
    REPORT_PAGE,
    RUN_NAMES,
    STEP_LOG,
    TEST_REPORT,
    clean_leftovers,
    conversions_of,
    exported_step,
    is_of_run,
    validated_checkpoint,
)
from checkpoints.saved_run import SavedRun, read_run
from config.checks import highest_rate, schedule_of, schedule_steps
from config.flags.train import TrainConfig
from config.parser import to_dict
from datamodules.batching import BatchPlan
from datamodules.mixture import Mixture
from datamodules.splits import Splits, hub_test_rows
from generation.decoder import generation_config
from models.adapters.quantised import parameter_counts
from models.meter import peak_memory
from models.optimizers.build import OPTIMIZER_ROWS
from models.optimizers.schedules import resolve_warmup
from postprocessors.base import FREE_TEXT, said
from reports.charts import histogram
from reports.images import save_images
from reports.page import images_folder, save_page
from reports.training import RunRecord, run_charts, training_page
from training.checkpointing import Checkpointer
from training.loggers.registry import Loggers
from training.run_log import reopened_trackers
from training.signals import PROCESS_BEGAN
from utils.console import duration, say, tell
from utils.devices import Devices
from utils.errors import shortened
from utils.files import run_error, write_file, write_folder, write_json
from utils.json_files import parse_json, read_json
from utils.launch import is_first_process


def resolved_settings(
    config: TrainConfig, mixture: Mixture, devices: Devices, plan: BatchPlan, model: Any, total_steps: int
) -> dict[str, Any]:
    """What the flags came to: the `resolved` part of config.json. Rates are per step, sizes in rows or tokens.

    Args:
        total_steps: optimizer steps of the whole run, as its schedule has them.
    """
    optim = config.optim
    rate = highest_rate(optim)
    first, *others = [task.to_dict() for task in mixture.tasks]
    return {
        "task": first,
        **({"tasks": [first, *others]} if others else {}),
        "model_type": model.config.model_type,
        "parameters": sum(parameter_counts(model).values()),
        "trained_parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "accelerator": devices.accelerator,
        "devices": devices.world_size,
        "precision": devices.arithmetic,
        "threads": torch.get_num_threads(),
        "learning_rate": rate or "its own relative step",
        "lr_scheduler": schedule_of(optim),
        "warmup_steps": 0 if rate is None else resolve_warmup(optim.warmup_steps, schedule_steps(config, total_steps)),
        "steps_per_epoch": plan.num_steps,
        "steps": total_steps,
        "padding_share": round(plan.padding_share(), 4),
        "rows_above_max_tokens": plan.oversized_rows,
        "versions": {"torch": str(torch.__version__), "transformers": transformers.__version__},
    }


def summary_lines(
    config: TrainConfig, mixture: Mixture, resolved: Mapping[str, Any], resumed: SavedRun | None, validates: bool
) -> list[str]:
    """The resolved configuration in short, and where the run goes on.

    Args:
        validates: whether there are validation rows.
    """
    batch, model, optim = config.batch, config.model, config.optim
    size = f"{batch.max_tokens} padded tokens" if batch.max_tokens else f"{batch.batch_size} rows"
    source = "of the checkpoint" if resumed else model.init_model or model.config_path
    schedule = ""
    if resolved["lr_scheduler"]:
        name, steps = resolved["lr_scheduler"], schedule_steps(config, 0)
        cycles = f" in {optim.optim_cosanneal_restarts} cycles" if name in ("cosanneal", "cyclic") else ""
        length = f" over {steps:,} steps" if steps else ""
        schedule = f", {name}{cycles}{length}, warm-up of {resolved['warmup_steps']:,} steps"
    clips = OPTIMIZER_ROWS[optim.optim].clips
    clip = f", gradients clipped at {optim.grad_clip:g}" if optim.grad_clip and not clips else ""
    tasks = [f"task {task.name}; {said(task.label_map or task.output or FREE_TEXT)}" for task in mixture.tasks]
    device = config.device
    ways = {"deterministic": device.deterministic, "fused attention": device.attention == "fused"}
    ways["compiled layers"] = device.compile
    how = "".join(f", {words}" for words, chosen in ways.items() if chosen)
    lines = [
        *([config.subject] if config.subject else tasks),
        f"model {source}: {resolved['model_type']}, {resolved['parameters']:,} parameters,"
        f" {resolved['trained_parameters']:,} trained, seed {config.run.seed}",
        f"devices {resolved['devices']} x {resolved['accelerator']}, precision {resolved['precision']}{how}",
        f"batches of {size} x {batch.grad_acc} accumulated x {resolved['devices']} devices,"
        f" {resolved['steps_per_epoch']:,} optimizer steps an epoch, {resolved['steps']:,} in all,"
        f" padding {resolved['padding_share']:.1%}",
        f"optimizer {config.optim.optim}, learning rate {resolved['learning_rate']}{schedule}{clip}",
    ]
    if config.distillation.teacher:
        flags = config.distillation
        lines.append(
            f"teacher {flags.teacher}: weight {flags.distill_weight:g} in the loss, temperature"
            f" {flags.distill_temperature:g}"
        )
    if resumed:
        lines.append(
            f"resuming from {resumed.path}: epoch {resumed.position.epoch}, step {resumed.global_step:,} of"
            f" {resolved['steps']:,}"
        )
    elif config.run.resume_checkpoint == "auto":
        lines.append("-resume_checkpoint auto: there is no checkpoint yet, so the run starts afresh")
    if not validates:
        lines.append(
            "no validation rows: best/ will be the last state; -valid_data or -valid_data_proportions gives some"
        )
    if resolved["rows_above_max_tokens"]:
        lines.append(f"{resolved['rows_above_max_tokens']:,} rows above -max_tokens are batches of their own")
    if resolved["warmup_steps"] >= resolved["steps"]:
        lines.append(f"-warmup_steps {resolved['warmup_steps']} is the whole run: the rate stays below its peak")
    return [*lines, f"everything goes to {config.run.save_path}"]


def open_run_folder(config: TrainConfig, folder: Path, resumed: SavedRun | None, resolved: Any) -> None:
    """Make the run's folder ready: an overwritten run goes now, when everything else is known to be right.

    So does what a run left that was killed before its first checkpoint, where -resume_checkpoint auto starts afresh.

    What marks the folder as a run goes last, and config.json is replaced, so that a kill in between leaves a run.
    A run that is continued in another folder takes its best/ and its logs along: its best score and its course go on
    as well. One that is continued in its own has the checkpoints of its own course only.

    Raises:
        RunError: the disk refused.
    """
    with run_error(folder):
        _make_room(config, folder, resumed)
    clean_leftovers(folder)
    write_json(folder / CONFIG_NAME, {**to_dict(config), "resolved": resolved})
    if resumed is not None:
        path = resumed.path
        if is_of_run(path, folder):
            continue_from(folder, resumed)
        origin = path.parent.parent
        for name in (STEP_LOG, EPOCH_LOG) if path.parent.name == CHECKPOINT_FOLDER else ():
            if (origin / name).is_file() and not (folder / name).exists():
                content = (origin / name).read_bytes()  # the run log cuts off what came after the checkpoint
                write_file(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
        best = origin / "best"
        if best.is_dir() and not (folder / "best").exists():
            write_folder(folder / "best", lambda target: shutil.copytree(best, target, dirs_exist_ok=True))
        complete_exports(folder, resumed, config.model.init_model, finished=False)


def _make_room(config: TrainConfig, folder: Path, resumed: SavedRun | None) -> None:
    """Make `folder`, without the run that is overwritten there."""
    folder.mkdir(parents=True, exist_ok=True)
    anew = config.run.resume_checkpoint == "auto" and resumed is None  # a run that ended before its first checkpoint
    if config.run.overwrite or anew:
        paths = [*conversions_of(folder), *(folder / name for name in OVERWRITTEN)]
        for path in sorted(paths, key=lambda path: path.name == CHECKPOINT_FOLDER):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != CONFIG_NAME:
                path.unlink(missing_ok=True)
        others = sorted(path.name for path in folder.iterdir() if path.name not in (*RUN_NAMES, LOCK_NAME))
        if others:
            tell(f"{folder}: left there, since no training wrote it: {shortened(others, 5)}")


def complete_finished_run(folder: Path, resumed: SavedRun, base: str) -> None:
    """Tidy up after a kill in the last writes of a run: what is left over goes, best/ and last/ are written if need be.

    A finished run that lies in another folder is left alone.
    """
    if is_of_run(resumed.path, folder):
        clean_leftovers(folder)
        remove_uncounted(folder, resumed, later=False)
        complete_exports(folder, resumed, base, finished=True)


def end_finished_run(config: TrainConfig, mixture: Mixture, resumed: SavedRun, ended: str, test_too: bool) -> bool:
    """Say that the run has `ended`, tidy up, and tell whether nothing is left: no test rows to score either.

    Args:
        test_too: test rows that have no report yet are left.
    """
    say(ended)
    folder = Path(config.run.save_path)
    if is_first_process():
        complete_finished_run(folder, resumed, config.model.init_model)
        if test_too and is_of_run(resumed.path, folder):
            write_report_page(folder)
    tested = any(
        member.data.test_data or member.data.test_data_proportions or hub_test_rows(member.data, member.task)
        for member in mixture.members
    )
    if not test_too:
        return True
    if tested and not (folder / TEST_REPORT).exists():
        if (folder / "best").exists():
            return False
        say(f"no test rows are scored: there is no {folder / 'best'}; the finished run is {resumed.path}")
    end_trackers(reopened_trackers(config, left_open=True), folder)
    return True


def length_charts(config: TrainConfig, parts: Sequence[Splits]) -> list[dict[str, Any]]:
    """How long the training rows are, with the lengths at which they are cut: for config.json, and from there for the
    page of the run. A row that is several windows counts as these."""
    rows = [part.train for part in parts]
    cut = config.length.max_seq_length or max(part.task.max_seq_length for part in parts)
    cut_target = config.length.max_target_length or max(part.task.max_target_length for part in parts)
    charts = (
        ("source_lengths", "Sources", np.concatenate([split.source_lengths for split in rows]), cut),
        ("target_lengths", "Targets", np.concatenate([split.target_lengths for split in rows]), cut_target),
    )
    found = [histogram(name, title, "tokens", {"training rows": values}, at) for name, title, values, at in charts]
    return [asdict(chart) for chart in found if chart]


def write_report_page(folder: Path) -> None:
    """Write the page of a finished run from its files, if it is not there as it is; where it cannot be written, that is
    said in a line: the run is whole without it."""
    path = folder / REPORT_PAGE
    with failure_told(path):
        record = RunRecord(read_json(folder / CONFIG_NAME), epochs=read_json(folder / EPOCH_LOG))
        with open(folder / STEP_LOG, "rb") as file:
            record.add(map(parse_json, file))
        record.test = read_json(folder / TEST_REPORT) if (folder / TEST_REPORT).exists() else None
        page = training_page(record)
        if path.exists() and path.read_bytes() == page.encode("utf-8", "replace"):
            return
        if record.config.get("report_images"):
            with failure_told(images_folder(path)):
                tell(*save_images(images_folder(path), run_charts(record), overwrite=True))
        save_page(path, page, overwrite=True)


@contextmanager
def shown_in_trackers(loggers: Loggers, folder: Path) -> Iterator[None]:
    """At its end the trackers get the files of the run as they are by then, and end: the training is complete, whether
    or not the test rows could be scored."""
    try:
        yield
    finally:
        end_trackers(loggers, folder)


def end_trackers(loggers: Loggers, folder: Path) -> None:
    """Give the trackers the files of a run whose training is complete, and end them."""
    page = folder / REPORT_PAGE
    files = [page, folder / CONFIG_NAME, folder / EPOCH_LOG, *sorted(images_folder(page).glob("*.png"))]
    loggers.close_trackers(True, files)


@contextmanager
def failure_told(path: Path) -> Iterator[None]:
    """Say in a line that `path` could not be written, whatever the reason: it may lie in files that people touched."""
    try:
        yield
    except Exception as error:
        tell(f"{path} could not be written: {type(error).__name__}: {error}")


def closing_lines(
    folder: Path,
    checkpointer: Checkpointer,
    step: int,
    devices: Devices,
    speed: str,
    of_tasks: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> list[str]:
    """Where things lie, the best scores, and what the run took: time of this process, memory of the first one.

    Args:
        speed: how fast this process trained, in words.
        of_tasks: the best figure of each of several tasks.
    """
    best = "no validation rows: best/ is the last state"
    if checkpointer.best_score is not None:
        best = f"best {checkpointer.flags.monitor} {checkpointer.best_score:.4f} at step {checkpointer.best_step}"
    elif checkpointer.validation and checkpointer.flags.monitor not in checkpointer.validation:
        best = f"{checkpointer.flags.monitor} was undefined in every validation: best/ is of the last one"
    return [
        f"trained to optimizer step {step}; {best}",
        *(
            f"  {task}: best {found['figure']} {found['value']:.4f} at step {found['global_step']}"
            for task, found in of_tasks.items()
        ),
        f"model folders {folder / 'best'} and {folder / 'last'}, checkpoints in {folder / CHECKPOINT_FOLDER}",
        "the best of them, from the first:",
        *(f"  {name}" for _, name in reversed(checkpointer.kept.entries["best"])),
        f"took {duration(time.monotonic() - PROCESS_BEGAN)}; {speed}; {memory_words(devices)}",
    ]


def memory_words(devices: Devices) -> str:
    """The most memory that this process has held, in words."""
    gpu = f", {peak_memory(devices.device(0)):.1f} GB on the GPU" if devices.accelerator == "cuda" else ""
    return f"peak memory {peak_memory(torch.device('cpu')):.1f} GB{gpu}"


def complete_exports(folder: Path, resumed: SavedRun, base: str, finished: bool) -> None:
    """Write what a kill between a checkpoint and its `best/` (when `finished`, also `last/`) left undone.

    Args:
        base: as -init_model names it now, of a run that trains an adapter; "" = where it was.
    """
    best_step, step = resumed.scores.best_step, resumed.global_step
    if best_step and exported_step(folder, "best") != best_step:
        origin = resumed.path.parent.parent  # another folder, when the run goes on in a new one
        path = validated_checkpoint(folder, best_step) or validated_checkpoint(origin, best_step)
        if best_step == step:
            path = resumed.path
        if path is not None:
            export_checkpoint(folder / "best", path, base)
    if finished and exported_step(folder, "last") != step:
        export_checkpoint(folder / "last", resumed.path, base)


def export_checkpoint(folder: Path, path: Path, base: str) -> None:
    """Make `folder` what the run would have exported at the checkpoint `path`, and say so."""
    run = read_run(path)
    model, tokenizer = run.model.build("-init_model", base), run.model.tokenizer()
    model.generation_config = generation_config(model, tokenizer)
    reason = "is of another step" if folder.exists() else "was not finished"
    write_export(folder, model, tokenizer, exported_at(run), run.model.state)
    tell(f"{folder} {reason}: written anew from the checkpoint of optimizer step {run.global_step}")
