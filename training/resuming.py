"""Continuing a run: which checkpoint, whether it is the same run, and what -resume_force makes of another one.

read the newest whole checkpoint -> compare the flags, before any data is read -> compare data and plan -> adapt
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from checkpoints.format import TornCheckpoint
from checkpoints.saved_run import SavedRun
from config.checks import highest_rate
from config.flags.optim import OptimFlags
from config.flags.run import automatic
from config.flags.train import TrainConfig
from config.parser import flag_specs, to_dict
from datamodules.batching import BatchPlan
from datamodules.seq2seq_datamodule import NEGATIVES, PAIRS, TASKS, TEACHER, VALIDATION_DATA, WEIGHTS
from metrics.registry import is_generated
from models.architectures import architecture
from models.loading import OF_ANOTHER_KIND
from models.optimizers.state import state_problem
from task_utils import LANGUAGES, Task
from training.lightning_loop import leaves_out_parameters
from training.trainer import optim_settings
from utils.devices import Devices, arithmetic_of
from utils.differences import Difference, difference_table, differences_of
from utils.errors import UserError, raise_if_any
from utils.tables import counted

SEED_VARIABLE = "S2S_SEED"  # the seed drawn for -seed -1, for the processes that Lightning starts
TASK_PARTS = ("input_template", "target_template", "label_map", "label_separator", *LANGUAGES)
PRECISION = "-float_precision"
SURE_ARITHMETIC = ("32", "bf16", "fp16")  # values that mean the same on every device


def read_newest(
    candidates: Sequence[Path], load: Callable[[Path], SavedRun], say: Callable[..., None]
) -> SavedRun | None:
    """The run of the first whole checkpoint of `candidates`; says which torn ones were passed over. None of none.

    Args:
        load: reads a checkpoint of the strategy.
        say: prints a line for the user.

    Raises:
        UserError: none of them is whole, or one cannot be taken for another reason than its bytes.
        RunError: the disk or the memory refused.
    """
    problems: list[str] = []
    for path in candidates:
        try:
            run = load(path)
        except TornCheckpoint as error:
            problems.extend(error.problems)
            continue
        for problem in problems:
            say(f"passed over: {problem}")
        if problems:
            say(f"continuing from the one before: {path}, optimizer step {run.global_step}")
        return run
    if len(problems) > 1:
        problems.append(
            "no checkpoint is whole: put one back from a copy of the run, or begin again with -overwrite in place of"
            " -resume_checkpoint"
        )
    raise_if_any(problems)
    return None


def with_found(config: TrainConfig, resumed: SavedRun | None) -> TrainConfig:
    """The config with the seed that is to be drawn, and of a resumed run with the size of batches that it has found.

    A resumed run keeps its own seed; a new one draws a seed for all processes.
    """
    if resumed and automatic(config.batch):
        saved = {name: resumed.flags[name] for name in ("batch_size", "max_tokens")}
        config = replace(config, batch=replace(config.batch, **saved))
    if config.run.seed >= 0:
        return config
    if resumed:
        return replace(config, run=replace(config.run, seed=resumed.flags["seed"]))
    if SEED_VARIABLE not in os.environ:
        os.environ[SEED_VARIABLE] = str(secrets.randbelow(2**31))
    return replace(config, run=replace(config.run, seed=int(os.environ[SEED_VARIABLE])))


def flag_differences(resumed: SavedRun, config: TrainConfig, tasks: Sequence[Task]) -> list[Difference]:
    """Flags that would make another run of it; seen without reading any data."""
    saved, now = (_in_force(flags) for flags in (saved_flags(resumed, config), to_dict(config)))

    def is_base(name: str) -> bool:
        """Whether the flag says where the base model of an adapter lies now; a digest tells whether it is the same."""
        return name == "init_model" and resumed.model.has_adapter

    ways = ["never", "fixed", "batches", "optimizer", "measure"]
    ways += ["generated rows"] if is_generated(config.run.monitor) else []  # scores of other rows are not compared
    names = [
        spec.name
        for spec in flag_specs(type(config))
        if spec.resume in ways
        or (spec.resume in ("if given", "kept") and now[spec.name] and not is_base(spec.name))
        or (spec.resume == "arithmetic" and now[spec.name] in SURE_ARITHMETIC)
    ]
    saved["float_precision"] = arithmetic_of(resumed.position.fingerprint.get(PRECISION, saved["float_precision"]))
    found = differences_of(saved, {name: now[name] for name in names}, "-")
    if len(tasks) == len(resumed.tasks) == 1:
        return [*found, *_task_differences(resumed.tasks[0], tasks[0])]
    trained = {str(state["name"]): state for state in resumed.tasks}
    if list(trained) != [task.name for task in tasks]:
        return [*found, Difference("-train_task", ", ".join(trained), ", ".join(task.name for task in tasks))]
    return [*found, *(one for task in tasks for one in _task_differences(trained[task.name], task, f"{task.name}: "))]


def _task_differences(trained: Mapping[str, Any], task: Task, place: str = "") -> list[Difference]:
    """What the texts of a task are made of and what it was trained with."""
    present = task.to_dict()
    return differences_of(trained, {name: present.get(name) for name in TASK_PARTS}, f"-{place}")


def _in_force(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags with the learning rate and the length of the schedule that are in force.

    A rate that is left out is the same as that of the optimizer.
    """
    rate = highest_rate(replace(OptimFlags(), optim=flags["optim"], learning_rate=flags["learning_rate"]))
    steps = flags["max_steps"] if flags["scheduler_steps"] == -1 else flags["scheduler_steps"]
    return {**flags, "learning_rate": "automatic" if rate is None else rate, "scheduler_steps": steps}


def saved_flags(resumed: SavedRun, config: TrainConfig) -> dict[str, Any]:
    """The flags of the run before; one that its version did not have was what is the default now."""
    return {**to_dict(type(config)()), **resumed.flags}


def flags_of(config: TrainConfig, *ways: str) -> set[str]:
    """The flags whose declaration names one of these ways of a resume, as the user types them."""
    return {f"-{spec.name}" for spec in flag_specs(type(config)) if spec.resume in ways}


def plan_differences(resumed: SavedRun, fingerprint: Mapping[str, Any]) -> list[Difference]:
    """What makes another course of batches: other rows, encoding, or devices.

    Args:
        fingerprint: what the data module says of this run.
    """
    saved = dict(resumed.position.fingerprint)
    saved[PRECISION] = arithmetic_of(saved.get(PRECISION, fingerprint[PRECISION]))  # the first releases do not say
    for name in (TASKS, WEIGHTS):  # later ones do not say what was not in use
        saved.setdefault(name, "")
    optional = dict.fromkeys((TEACHER, NEGATIVES, PAIRS), "none")
    return differences_of({**optional, **saved}, {**optional, **fingerprint})


def check_same(differences: Sequence[Difference], config: TrainConfig) -> None:
    """Do nothing when there is no difference, or -resume_force is given and none is in the model itself.

    Raises:
        UserError: with a table of the differences.
    """
    fixed = [one for one in differences if one.name in flags_of(config, "never")]
    if fixed and config.run.resume_force:
        raise UserError(
            f"-resume_checkpoint {config.run.resume_checkpoint}: the checkpoint's model was made with other settings,"
            f" which -resume_force cannot change; leave these out, or start a new run\n{difference_table(fixed)}"
        )
    if differences and not config.run.resume_force:
        raise UserError(
            f"-resume_checkpoint {config.run.resume_checkpoint}: the run was saved with other settings; give those, or"
            f" -resume_force to go on all the same, though not exactly\n{difference_table(differences)}"
        )


def kept_flags(resumed: SavedRun | None, config: TrainConfig) -> dict[str, Any]:
    """The flags for the next checkpoint: what named the model at first stays, though a resume need not repeat it."""
    flags = to_dict(config)
    if resumed is None:
        return flags
    saved, model = saved_flags(resumed, config), flags_of(config, "if given", "kept")
    return {name: value or (saved[name] if f"-{name}" in model else value) for name, value in flags.items()}


def environment(devices: Devices) -> dict[str, Any]:
    """What else decides how sums are rounded: threads, library, processor, and whether it adds in one order."""
    name = torch.cuda.get_device_name() if devices.accelerator == "cuda" else torch.backends.cpu.get_cpu_capability()
    library = str(torch.__version__)
    fixed = devices.deterministic
    return {"threads": torch.get_num_threads(), "torch": library, "device": name, "deterministic": fixed}


def saved_threads(resumed: SavedRun | None, config: TrainConfig, devices: Devices) -> int:
    """The threads of each process that a resumed run on the CPU takes over; 0 = this machine's own number."""
    if resumed is None or config.run.resume_force or devices.accelerator != "cpu":
        return 0
    return int(resumed.environment.get("threads", 0))


def changed_words(resumed: SavedRun, config: TrainConfig, devices: Devices) -> list[str]:
    """What differs from the run before in a way that changes its result, though it is allowed."""
    before, present = saved_flags(resumed, config), to_dict(config)
    lines = [
        f"-{spec.name} was {before[spec.name]} and is {present[spec.name]} now: {spec.change}"
        for spec in flag_specs(type(config))
        if spec.change and before[spec.name] != present[spec.name]
    ]
    saved, on_gpu = {"deterministic": False, **resumed.environment}, devices.accelerator == "cuda"
    lines += [
        f"{name} was {saved.get(name)} and is {value} now: sums may be rounded differently from here, so that the"
        " weights need not be those of an uninterrupted run, bit for bit"
        for name, value in environment(devices).items()
        if saved.get(name) != value and not (on_gpu and name == "threads")
    ]
    if on_gpu and not devices.deterministic:
        lines.append(
            "a GPU adds in another order every time without -deterministic, so that the weights need not be those of an"
            " uninterrupted run, bit for bit"
        )
    return lines


def finished_words(resumed: SavedRun, config: TrainConfig) -> str:
    """Why there is nothing left to train after `resumed`; empty when there is."""
    epochs, step = resumed.position.epoch, resumed.global_step
    patience = config.run.early_stopping_patience
    without_gain = resumed.scores.validations_without_gain
    if epochs >= config.epochs:
        return (
            f"the run is finished: {counted(epochs, 'epoch')}, optimizer step {step}; a larger {config.length_flag}"
            " trains on"
        )
    if patience and without_gain >= patience:
        return f"the run is finished: stopped early at optimizer step {step}; -early_stopping_patience 0 trains on"
    return ""


def limit_words(resumed: SavedRun, config: TrainConfig) -> str:
    """Why -max_steps leaves nothing to do after `resumed`; empty when it does not."""
    step, limit = resumed.global_step, config.run.max_steps
    if resumed.position.validation_pending:
        return ""  # the validation at that step is still to be done
    return (
        f"-max_steps {limit} is reached: the run is at optimizer step {step}; -max_steps 0 trains on"
        if 0 < limit <= step
        else ""
    )


# ---- -resume_force


@dataclass(frozen=True)
class Adapted:
    """A run made to fit the flags and the plan of this one, and what is not exact any more."""

    run: SavedRun
    total_steps: int  # optimizer steps of the whole run: done before, and to come
    lines: list[str]


def adapt(resumed: SavedRun, differences: Sequence[Difference], config: TrainConfig, plan: BatchPlan) -> Adapted:
    """`resumed` for this run; as it is when nothing differs."""
    if not differences:
        return Adapted(resumed, _total_steps(resumed, config, plan), [])
    names = {difference.name for difference in differences}
    run, step = resumed, resumed.global_step
    lines = ["-resume_force: the run goes on with other settings, so its result is not that of either alone"]
    lines.append(difference_table(differences))
    if _other_plan(names, config):
        run, words = _moved(run, plan)
        lines.append(words)
    if PAIRS in names:
        run = replace(run, log=None)  # its sums are of another loss
    total_steps = _total_steps(run, config, plan)
    if names & flags_of(config, "optimizer"):
        run.model.tensors.optimizer = None
        lines.append("the optimizer begins with an empty state")
    lines.append(f"the learning rate is that of step {step} of {total_steps} in the schedule of the flags")
    if names & flags_of(config, "measure", "generated rows") or any(name.startswith(VALIDATION_DATA) for name in names):
        run = replace(run, scores=replace(run.scores, best_score=None, best_step=0, validations_without_gain=0))
        lines.append("the best score so far is of another measure: the next validation begins anew")
    return Adapted(run, total_steps, lines)


def _total_steps(run: SavedRun, config: TrainConfig, plan: BatchPlan) -> int:
    """Optimizer steps done and to come: also those of a run that was once forced to go on with other batches."""
    to_come: int = (config.epochs - run.position.epoch) * plan.num_steps
    done: int = -(-run.position.batches // plan.accumulate)
    return run.global_step + to_come - done


def check_optimizer(
    resumed: SavedRun, differences: Sequence[Difference], model: PreTrainedModel, config: TrainConfig
) -> None:
    """Refuse a run whose optimizer state is not one of this model, unless the flags drop it.

    Raises:
        UserError: names the entry.
    """
    tensors = resumed.model.tensors
    dropped = {difference.name for difference in differences} & flags_of(config, "optimizer")
    if dropped or tensors.optimizer is None:
        return
    complete = architecture(model.config.model_type).own_search and not leaves_out_parameters(model.config)
    if problem := state_problem(optim_settings(config.optim), model, tensors.optimizer, complete):
        raise UserError(f"{resumed.model.place}: {OF_ANOTHER_KIND}: optimizer_states: {problem}")


def _other_plan(names: set[str], config: TrainConfig) -> bool:
    """Whether the micro-batches of an epoch are others, so that the saved position means nothing."""
    plan = flags_of(config, "batches")
    return any(name in plan or not name.startswith(("-", VALIDATION_DATA)) for name in names)


def _moved(run: SavedRun, plan: BatchPlan) -> tuple[SavedRun, str]:
    """The run at the same share of the new plan's epoch, down to an optimizer step; and what that is, in words."""
    epoch, before, of = run.position.epoch, run.position.batches, run.position.batches_per_epoch
    batches = before * plan.num_steps // of * plan.accumulate
    if batches >= plan.batches_per_rank:
        epoch, batches = epoch + 1, 0
    position = {"epoch": epoch, "batches": batches, "batches_per_epoch": plan.batches_per_rank}
    words = (
        f"the batches are others: epoch {epoch} goes on at batch {batches} of {plan.batches_per_rank} (it was batch"
        f" {before} of {of}); rows of this epoch may be seen twice or not at all"
        if batches
        else f"the batches are others: the run goes on with the beginning of epoch {epoch}"
    )
    return run.at(**position, validation_pending=False), words
