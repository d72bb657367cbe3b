"""The flags of a run, and their checks: all problems are told at once, before anything heavy is imported."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TypeAlias, TypeVar

from checkpoints.model_paths import check_model_paths
from checkpoints.run_folder import (
    CHECKPOINT_FOLDER,
    CONFIG_NAME,
    OVERWRITTEN,
    check_unlocked,
    checkpoints_of,
    foreign_names,
    holds_run,
    is_checkpoint,
    is_of_run,
    misplaced,
    resume_candidates,
    run_flags,
)
from config.checks import (
    NO_UTF8_NAME,
    check_combinations,
    check_devices,
    collect,
    highest_rate,
    is_too_long,
    lies_in,
    same_file,
    schedule_of,
)
from config.flags.model import FREEZABLE, FULL, WHOLE
from config.flags.optim import OPTIMIZERS
from config.flags.run import DEEPSPEED_STRATEGIES, LOGGERS, SHARDED_STRATEGIES, automatic, logger_names
from config.flags.train import TrainConfig
from config.parser import flag_specs, parse_flags, saved_tokens, shown, to_dict
from datamodules.checks import DATA, check_data, local_inputs
from datamodules.mixture import Mixture, mixture_of
from datamodules.retrieval.checks import retrieval_problems
from metrics.registry import LABELS, TEACHER_FORCED, TEXTS, is_generated, metric_names, missing_packages
from models.presets import read_config
from utils.errors import UserError, closest
from utils.escapes import is_unicode
from utils.json_files import read_json
from utils.launch import is_first_process, started_by_launcher
from utils.libraries import OPTIONAL, missing_package

SMALLEST_MEAN_BETA = 0.01  # of schedule-free training, which loses as many digits where it takes the mean

Config = TypeVar("Config", bound=TrainConfig)
Inputs: TypeAlias = list[tuple[str, str]]  # (flag, path) of the files and folders that are read


def parse_training_flags(
    config_class: type[Config], argv: list[str]
) -> tuple[Config, frozenset[str], list[str], list[str]]:
    """The flags of a command line that trains, and those of the run that it goes on with.

    Returns the config, the names of the flags that were given, lines to tell, and the problems found. Raises
    `UserError` when the run's config.json cannot be read, or is not of a run: its flags are not known then.
    """
    config, given, problems = parse_flags(config_class, argv)
    folder, value = Path(config.run.save_path), config.run.resume_checkpoint
    path = folder / CONFIG_NAME
    if value not in ("last", "best", "auto") or not path.exists() or (value == "auto" and not checkpoints_of(folder)):
        return config, given, [], problems
    try:
        read_json(path)
        saved, reason = run_flags(folder), "does not hold the flags of a run"
    except (OSError, ValueError) as error:
        saved, reason = None, f"cannot be read ({error})"
    if saved is None:
        told = f"-save_path {folder}: {CONFIG_NAME} {reason}; delete it, and give every flag of the run"
        raise UserError(*problems, told)
    specs = flag_specs(config_class)
    if ("corpus" in saved) != any(spec.name == "corpus" for spec in specs):
        maker, own = ("pretrain.py", "train.py") if "corpus" in saved else ("train.py", "pretrain.py")
        raise UserError(
            f"-resume_checkpoint {value}: {maker} made the run in -save_path {folder}; go on with that command, or give"
            f" {own} another -save_path and -init_model {folder / 'best'}"
        )
    # The checkpoint itself has the model, and the tokenizer with its languages.
    taken = {spec.name for spec in specs if spec.resume not in ("once", "process", "if given")} - {*given, "save_path"}
    tokens, wrong = saved_tokens(config_class, {name: saved[name] for name in taken if name in saved})
    config, _, problems = parse_flags(config_class, [*argv, *tokens])
    values, defaults = to_dict(config), to_dict(config_class())
    changed = [shown(name, value) for name, value in values.items() if name in taken and value != defaults[name]]
    lines = [f"flags of {path}: {' '.join(changed)}"] if changed else []
    unknown = sorted(saved.keys() - to_dict(config).keys() - {"resolved"})
    if unknown:
        lines.append(f"{path} has flags that this version does not know: {', '.join(unknown)}")
    return config, given, lines, [*problems, *(f"{path}: {problem}" for problem in wrong)]


def check_train(config: TrainConfig, given: frozenset[str], problems: list[str]) -> Mixture:
    """Every problem of a `train.py` command line, appended to `problems`; returns the tasks, none if they have some."""
    mixture: Mixture = collect(problems, lambda: mixture_of(config.task, config.data)) or Mixture(())
    value = config.run.resume_checkpoint
    of_run = f"{Path(config.run.save_path) / CONFIG_NAME}: " if value in ("last", "best", "auto") else ""
    check_data(config.data, problems, {name: of_run for name in DATA if name not in given})
    problems += [
        f"-source_column and -target_column (or those of -task {task.name}) are both {task.source_column!r};"
        " give two columns"
        for task in mixture.tasks
        if task.source_column == task.target_column
    ]
    resuming, wrong_run = check_origin(config, problems)
    given_rows = any(member.data.train_data or member.task.hub_dataset for member in mixture.members)
    if not (given_rows or config.data.train_data or config.task.train_task or wrong_run):
        problems.append("-train_data is required: a file, a folder or a hub name with the training rows")
    if config.batch.max_tokens and mixture.is_drawn:
        problems.append(
            f"-max_tokens {config.batch.max_tokens}: not with rates of -train_task: each epoch draws rows of other"
            " lengths, and must have as many steps as the others; give -batch_size, or mix without rates and"
            " temperature"
        )
    problems += retrieval_problems(config, mixture)
    check_training(config, given, resuming, problems)
    _check_monitor(config, mixture, problems)
    if not config.task.show_examples:  # which writes nothing
        check_save_path(config, given, _inputs(config, mixture), problems)
    return mixture


def check_origin(config: TrainConfig, problems: list[str]) -> tuple[bool, bool]:
    """Problems of what the training begins with; returns whether it goes on with a run, and whether there is no such
    run."""
    model, value = config.model, config.run.resume_checkpoint
    no_run: list[str] = []
    candidates = collect(no_run, lambda: resume_candidates(config))
    resuming = value not in ("", "auto") or bool(candidates)
    if not model.init_model and not model.config_path and not resuming:
        problems.append("give -init_model (pretrained), -config_path (from scratch) or -resume_checkpoint")
    if model.config_path:
        collect(problems, lambda: read_config(model.config_path))
    names = {"-init_model": model.init_model, "-tokenizer": model.tokenizer, "-teacher": config.distillation.teacher}
    check_model_paths(problems, names)
    return resuming, bool(no_run)


def check_training(config: TrainConfig, given: frozenset[str], resuming: bool, problems: list[str]) -> None:
    """Problems of model, batches, optimizer, devices and trackers, whatever is trained on."""
    model, batch = config.model, config.batch
    if "batch_size" in given and batch.max_tokens:
        problems.append("-batch_size and -max_tokens exclude each other; give one of them")
    if set(model.freeze) == set(FREEZABLE):
        problems.append("-freeze embedding, encoder and decoder together leave nothing to train")
    problems += [f"-freeze {part}: no regular expression: {why}" for part in model.freeze if (why := _not_regex(part))]
    if model.tuning_method != FULL:
        problems += filter(None, [missing_package("peft", f"-tuning_method {model.tuning_method}")])
    if model.load_in != WHOLE:
        problems += filter(None, [missing_package("bitsandbytes", f"-load_in {model.load_in}")])
    if config.run.report_images:
        problems += filter(None, [missing_package("matplotlib", "-report_images")])
    if config.device.strategy in DEEPSPEED_STRATEGIES:
        problems += filter(None, [missing_package("deepspeed", f"-strategy {config.device.strategy}")])
    _check_loggers(logger_names(config.run), problems)
    check_combinations(config, problems)
    _check_optimization(config, given, problems)
    check_devices(config.device.gpus, config.device.cpu_processes, problems)
    if (
        config.device.num_nodes > 1
        and not started_by_launcher()
        and not {"MASTER_ADDR", "MASTER_PORT"} <= {*os.environ}
    ):
        problems.append(
            f"-num_nodes {config.device.num_nodes}: this process was started alone; start it by torchrun --nnodes"
            f" {config.device.num_nodes} on each machine, or by srun with a task for each device"
        )
    if config.run.seed < 0 and (config.device.num_nodes > 1 or started_by_launcher()):
        problems.append(f"-seed {config.run.seed}: a drawn seed is not shared between machines; give one, 0 or above")
    sought = "" if resuming else automatic(batch)
    if sought and config.device.strategy in SHARDED_STRATEGIES:
        problems.append(
            f"{shown(sought, getattr(batch, sought))}: not with -strategy {config.device.strategy}, under which a"
            " device holds a part of the model; give the number"
        )
    _check_requeue(config, problems)


def _not_regex(text: str) -> str:
    """Why `text` is no regular expression; empty where it is one."""
    try:
        re.compile(text)
    except re.error as error:
        return str(error)
    return ""


def _check_optimization(config: TrainConfig, given: frozenset[str], problems: list[str]) -> None:
    optim, strategy = config.optim, config.device.strategy
    served = ["adam"] if strategy in DEEPSPEED_STRATEGIES else [name for name, row in OPTIMIZERS.items() if row.sharded]
    if strategy in SHARDED_STRATEGIES and optim.optim not in served:
        problems.append(
            f"-strategy {strategy}: not with -optim {optim.optim}, which needs whole matrices or was not tried on parts"
            f" of them; give -optim {', '.join(served)}"
        )
    if optim.learning_rate == 0:
        problems.append("-learning_rate 0: above 0 expected")
    if optim.optim_cosanneal_gamma == 0:
        problems.append("-optim_cosanneal_gamma 0: above 0 and at most 1 expected; 1 keeps the peak of each cycle")
    if optim.warmup_steps >= 1 and optim.warmup_steps != int(optim.warmup_steps):
        problems.append(f"-warmup_steps {optim.warmup_steps}: whole steps, or a share below 1, expected")
    if optim.wsd_decay_steps >= 1 and optim.wsd_decay_steps != int(optim.wsd_decay_steps):
        problems.append(f"-wsd_decay_steps {optim.wsd_decay_steps}: whole steps, or a share below 1, expected")
    for name in ("embedding_learning_rate", "layerwise_lr_decay"):
        if getattr(optim, name) == 0:
            problems.append(f"-{name} 0: above 0 expected; -freeze leaves parts as they are")
    if optim.optim == "schedulefree" and config.model.tuning_method == "adalora":
        problems.append("-tuning_method adalora: not with -optim schedulefree, whose mean keeps the ranks that go")
    beta1 = optim.adam_beta1
    if optim.optim == "schedulefree" and beta1 is not None and beta1 < SMALLEST_MEAN_BETA:
        problems.append(
            f"-adam_beta1 {beta1}: at least {SMALLEST_MEAN_BETA} expected with -optim schedulefree, which divides by it"
        )
    if optim.scheduler_steps == -1 and not config.run.max_steps:
        problems.append("-scheduler_steps -1: only with -max_steps: it takes its length from there")
    chosen, rate = OPTIMIZERS[optim.optim], highest_rate(optim)
    problems += filter(None, [missing_package(chosen.package, f"-optim {optim.optim}") if chosen.package else ""])
    if rate is None:
        problems += [
            f"{shown(name, getattr(optim, name))} has no effect on adafactor's own rate; give -learning_rate as well"
            for name in ("lr_scheduler", "embedding_learning_rate", "layerwise_lr_decay", "scheduler_steps")
            if name in given
        ]
    elif not chosen.scheduled and "lr_scheduler" in given and optim.lr_scheduler != "constant":
        problems.append(
            f"-lr_scheduler {optim.lr_scheduler}: not with -optim {optim.optim}, which has no schedule beyond its"
            " warm-up; leave it out"
        )
    with_floor = schedule_of(optim) in ("cosanneal", "cyclic", "cosine", "polynomial", "wsd", "plateau")
    if with_floor and rate and optim.optim_cosanneal_min_lr > rate:
        highest = f"-learning_rate {rate}" if optim.learning_rate else f"{optim.optim}'s rate {rate}"
        more = "" if optim.learning_rate else "; give -learning_rate"
        problems.append(f"-optim_cosanneal_min_lr {optim.optim_cosanneal_min_lr} is above {highest}{more}")


def _check_monitor(config: TrainConfig, mixture: Mixture, problems: list[str]) -> None:
    run, tasks = config.run, mixture.tasks
    if not tasks and "/" in run.monitor:
        return  # a figure of a task that has problems of its own
    choices = mixture.monitors if tasks else metric_names(TEACHER_FORCED, TEXTS, LABELS)
    of_task = run.monitor.rpartition("/")[0]
    if of_task in [member.task.name for member in mixture.members if not member.validates]:
        problems.append(
            f"-monitor {run.monitor}: {of_task} has no validation rows; name their file by valid_data in its file, or"
            " give -valid_data_proportions"
        )
    elif run.monitor not in choices:
        own = f", or that of a task, such as {choices[-1]}" if "/" in choices[-1] else ""
        plain = ", ".join(name for name in choices if "/" not in name)
        known = f"one of {plain} expected{own}{closest(run.monitor, choices)}"
        problems.append(f"-monitor {run.monitor}: {known}")
    elif is_generated(run.monitor) and config.generated_rows == 0:
        problems.append(f"-monitor {run.monitor} needs generated rows: -valid_generate_rows above 0")
    named = [run.monitor.rpartition("/")[2], *(metric for task in tasks for metric in task.metrics)]
    problems += missing_packages(dict.fromkeys(named))
    if tasks and not any(member.validates for member in mixture.members):
        needing = {
            "monitor": run.monitor != TrainConfig().run.monitor,
            "early_stopping_patience": run.early_stopping_patience,
        }
        flags = [shown(name, getattr(run, name)) for name, needed in needing.items() if needed]
        flags += ["-lr_scheduler plateau"] if config.optim.lr_scheduler == "plateau" else []
        if flags:
            problems.append(
                f"{', '.join(flags)}: only with validation rows: give -valid_data or -valid_data_proportions"
            )


def _check_loggers(names: tuple[str, ...], problems: list[str]) -> None:
    for name in names:
        if name not in LOGGERS:
            problems.append(f"-logger {name}: one of {', '.join(LOGGERS)} expected{closest(name, LOGGERS)}")
        elif name in OPTIONAL:
            problems += filter(None, [missing_package(name, f"-logger {name}")])


def _check_requeue(config: TrainConfig, problems: list[str]) -> None:
    run = config.run
    if run.requeue and ("SLURM_JOB_ID" not in os.environ or not shutil.which("scontrol")):
        problems.append("-requeue: this is no SLURM job (no SLURM_JOB_ID, or no scontrol command); leave it out")


def check_save_path(config: TrainConfig, given: frozenset[str], inputs: Inputs, problems: list[str]) -> None:
    """Problems of the folder of the run, which must hold none of the `inputs` where it is emptied first."""
    run, folder = config.run, Path(config.run.save_path)
    if not run.save_path.strip():
        problems.extend(["-save_path is empty"] if "save_path" in given else [])
        return
    if is_too_long(folder):
        problems.append(f"-save_path {folder}: the name is too long for a file system; choose a shorter one")
        return
    if not is_unicode(str(folder)):
        problems.append(f"-save_path {folder}: {NO_UTF8_NAME}")
        return
    parent = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not os.path.isdir(parent):
        words = "exists and is no folder" if parent == folder else f"{parent} is no folder"
        problems.append(f"-save_path {folder}: {words}")
        return
    if not os.access(parent, os.W_OK):
        problems.append(f"-save_path {folder}: no permission to write in {parent}")
    candidates = collect(problems, lambda: resume_candidates(config))
    if run.resume_checkpoint and run.overwrite:
        return
    if is_first_process() and candidates is not None:  # the other processes come when the run has begun
        _check_present_run(config, folder, candidates[0] if candidates else None, inputs, problems)


def _check_present_run(
    config: TrainConfig, folder: Path, resumed: Path | None, inputs: Inputs, problems: list[str]
) -> None:
    """Refuse to delete, replace or mix up what `folder` holds already."""
    foreign = foreign_names(folder)
    found = len(problems)
    collect(problems, lambda: check_unlocked(folder))
    if resumed and is_of_run(resumed, folder):
        problems.extend(f"-save_path {folder}: {problem}" for problem in misplaced(folder))
        return
    if len(problems) > found:
        return
    if foreign:
        problems.append(
            f"-save_path {folder}: holds files that are not of a run ({', '.join(foreign)}); choose another folder"
        )
    elif resumed:
        if holds_run(folder) and not _began_from(folder, resumed):
            value = config.run.resume_checkpoint
            continued = (run_flags(folder) or {}).get("resume_checkpoint") == value and bool(checkpoints_of(folder))
            problems.append(
                f"-save_path {folder}: holds what became of -resume_checkpoint {value}; -resume_checkpoint last goes on"
                " with it, or choose another folder"
                if continued
                else f"-save_path {folder}: already holds another run than that of -resume_checkpoint {resumed};"
                " choose another folder"
            )
    elif config.run.overwrite:
        deleted = [folder / name for name in OVERWRITTEN if os.path.lexists(folder / name)]
        for flag, value in inputs:
            if same_file(value, folder) or any(lies_in(value, place) for place in deleted):
                problems.append(f"{flag} {value}: -overwrite would delete it with the run in -save_path {folder}")
    elif holds_run(folder) and config.run.resume_checkpoint != "auto":
        problems.append(
            f"-save_path {folder}: already holds a run; continue it with -resume_checkpoint last, delete it with"
            " -overwrite, or choose another folder"
            if checkpoints_of(folder)
            else f"-save_path {folder}: holds a run that ended before its first checkpoint; -overwrite begins again"
        )


def _began_from(folder: Path, checkpoint: Path) -> bool:
    """Whether the run in `folder` was resumed from `checkpoint` and ended before a checkpoint of its own."""
    value = (run_flags(folder) or {}).get("resume_checkpoint")
    if not value or any((folder / CHECKPOINT_FOLDER).glob("*.ckpt")):
        return False
    before = [Path(value)] if is_checkpoint(Path(value)) else checkpoints_of(Path(value))[:1]
    return bool(before) and os.path.realpath(before[0]) == os.path.realpath(checkpoint)


def _inputs(config: TrainConfig, mixture: Mixture) -> Inputs:
    model = config.model
    others = {"init_model": model.init_model, "config_path": model.config_path, "tokenizer": model.tokenizer}
    others["teacher"] = config.distillation.teacher
    data = [member.data for member in mixture.members] or [config.data]
    found = [one for flags in data for one in local_inputs(flags, task=config.task.task, **others)]
    tasks = [("-train_task", path) for value in config.task.train_task for path in (value, value.rpartition(":")[0])]
    return [*dict.fromkeys(found), *((flag, path) for flag, path in tasks if os.path.exists(path))]
