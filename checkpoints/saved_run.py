"""A checkpoint as a typed view. What any part of the program takes from one is checked here, and named nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.adapter_base import build_adapted, find_base
from checkpoints.entries import LOG_KEY, MODEL_ENTRIES, MOST, OPTIONAL_ENTRIES, RUN_ENTRIES, refuse_wrong_entries, shown
from checkpoints.format import CONTENT_KEY, read_checkpoint
from checkpoints.retention import kept_problem
from checkpoints.sharded import Rows
from config.flags.pretrain import PretrainConfig
from config.flags.train import TrainConfig
from config.parser import flag_groups
from models.adapters.methods import Adapter, parse_adapter
from models.adapters.rank_allocation import RANKS_KEY, SUMS, rank_matrix
from models.loading import ADAPTER_KEY, OF_ANOTHER_KIND, checkpoint_config, from_checkpoint
from models.optimizers.settings import MEAN_KEY, PLATEAU_COUNTS, PLATEAU_KEY, TRAINED_KEY
from models.tokenizers import unpack_tokenizer
from task_utils import Task
from utils.devices import all_finite
from utils.errors import UserError, error_reason, raise_if_any

TASKS_KEY = "tasks"  # of a mixture, besides the first of them as `task`; not there in a run of one task
DIGEST_KEY = "base_digest"  # in the training_state.json of an adapter: of the weights of its base model
WEIGHTS = "model."  # opens the names of the model's parameters


@dataclass
class Tensors:
    """Most of the bytes of a checkpoint; `release` lets go of them, wherever the view is still held."""

    weights: Mapping[str, Tensor]  # by their names in the model itself
    optimizer: Mapping[str, Any] | None = None  # its state_dict; None = it begins with an empty state
    trained: Mapping[str, Tensor] | None = None  # the weights that are trained, where `weights` are their mean

    def release(self) -> None:
        """Let go of the tensors; asking for them again is an AttributeError."""
        del self.weights, self.optimizer, self.trained


@dataclass(frozen=True)
class SavedModel:
    """What a checkpoint gives to predict with."""

    place: str  # the flag and the path: opens messages
    description: Mapping[str, Any]  # `describe` of the model
    tokenizer_files: Mapping[str, Tensor]
    state: Mapping[str, Any]  # task, label_map and flags, as in training_state.json
    tensors: Tensors

    def config(self) -> PreTrainedConfig:
        """The model config; `UserError` if it is none."""
        return checkpoint_config(self.description, self.place)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; `UserError` if its files are none."""
        return unpack_tokenizer(self.tokenizer_files, self.place)

    @property
    def has_adapter(self) -> bool:
        """Whether its weights are those of an adapter, so that a base model is needed."""
        return ADAPTER_KEY in self.description

    def adapter(self) -> Adapter:
        """The adapter that it holds; `UserError` where that is damaged."""
        return parse_adapter(self.description[ADAPTER_KEY], self.place)

    def find_base(self, flag: str, base: str) -> None:
        """Raise `UserError` where an adapter's base model is not there; the arguments are those of `build`."""
        if self.has_adapter:
            find_base(self.adapter(), self.place, flag, base)

    def build(self, flag: str = "-base_model", base: str = "", empty: bool = False) -> PreTrainedModel:
        """The model on the CPU, with its adapter in it where it has one; `UserError` if weights and config do not fit.

        Args:
            flag: with which the user names the base model of an adapter.
            base: its value; "" = the one that the training took.
            empty: as in `from_checkpoint`, of a whole model.
        """
        if self.has_adapter:
            return build_adapted(self.adapter(), self.tensors.weights, self.place, flag, base)
        return from_checkpoint(self.description, self.tensors.weights, self.place, empty)


@dataclass(frozen=True)
class Position:
    """Where the data module stands."""

    epoch: int
    batches: int  # micro-batches of the epoch that are done on each rank
    batches_per_epoch: int
    validation_pending: bool
    fingerprint: Mapping[str, Any]


@dataclass(frozen=True)
class Scores:
    """What `Checkpointer` remembers of the validations so far."""

    best_score: float | None
    best_step: int
    validations_without_gain: int
    validation: Mapping[str, float]  # figures of the latest
    kept: Mapping[str, Any]  # the checkpoints that count


@dataclass(frozen=True)
class SavedRun:
    """What a checkpoint gives to go on training with."""

    path: Path
    model: SavedModel
    global_step: int
    position: Position
    scores: Scores
    monitor: str
    environment: Mapping[str, Any]  # threads, torch, device
    log: Mapping[str, Any] | None
    scaler: Mapping[str, Any] | None  # of the gradients, in fp16
    plateau: Mapping[str, int] | None = None  # what the schedule of that name counts
    rank_sums: Mapping[str, Mapping[str, Tensor]] | None = None  # of an AdaLoRA

    @property
    def flags(self) -> Mapping[str, Any]:
        """The flags of the run, by name."""
        flags: Mapping[str, Any] = self.model.state["flags"]
        return flags

    @property
    def tasks(self) -> Sequence[Mapping[str, Any]]:
        """The tasks, as `Task.to_dict` gave them."""
        return trained_tasks(self.model.state)

    def at(self, **position: Any) -> SavedRun:
        """The run at another position."""
        return replace(self, position=replace(self.position, **position))

    def for_lightning(self, fit_loop: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The checkpoint that Lightning loads, made of what was checked only.

        Args:
            fit_loop: the state of its loop at this position.
            version: of Lightning, so that it finds nothing to upgrade.
        """
        schedule = {"last_epoch": self.global_step, "_step_count": self.global_step + 1, "lr_lambdas": []}
        scaler = {"MixedPrecision": self.scaler} if self.scaler else {}
        tensors = self.model.tensors
        mean = {} if tensors.trained is None else {MEAN_KEY: tensors.weights}
        return {
            "pytorch-lightning_version": version,
            "epoch": self.position.epoch,
            "global_step": self.global_step,
            "state_dict": _renamed(tensors.trained or tensors.weights, lambda name: WEIGHTS + name),
            **mean,
            "loops": {"fit_loop": dict(fit_loop)},
            "callbacks": {"Checkpointer": asdict(self.scores)},
            "optimizer_states": [tensors.optimizer] if tensors.optimizer else [],
            "lr_schedulers": [schedule],
            "Seq2SeqDataModule": asdict(self.position),
            LOG_KEY: self.log,
            **scaler,
            **({PLATEAU_KEY: {name: self.plateau[name] for name in PLATEAU_COUNTS}} if self.plateau else {}),
            **({RANKS_KEY: {kind: dict(self.rank_sums[kind]) for kind in SUMS}} if self.rank_sums else {}),
        }


def read_model(path: Path, flag: str = "-model") -> SavedModel:
    """What inference takes from a .ckpt; its tensors are read from the disk when used.

    Raises:
        UserError, RunError: as `read_checkpoint`, and an entry that is missing or cannot be.
    """
    return _model(read_checkpoint(path, flag), f"{flag} {path}")


def read_run(path: Path, flag: str = "-resume_checkpoint", checked: bool = False) -> SavedRun:
    """What a resume takes from a .ckpt, as `read_model`; `checked` as in `read_checkpoint`.

    A state of the optimizer, or of AdaLoRA's ranks, with NaN is refused: lion for one would train on in silence.
    """
    checkpoint = read_checkpoint(path, flag, checked)
    place = f"{flag} {path}"
    model = _model(checkpoint, place)
    refuse_wrong_entries(checkpoint, RUN_ENTRIES, place)
    content, scores = checkpoint[CONTENT_KEY], checkpoint["callbacks"]["Checkpointer"]
    if problem := kept_problem(scores["kept"]):
        raise UserError(f"{place}: {OF_ANOTHER_KIND}: callbacks.Checkpointer.kept: {problem}")
    states = checkpoint["optimizer_states"]
    model.tensors.optimizer = states[0] if states else None
    for key, entries in OPTIONAL_ENTRIES.items():
        if checkpoint.get(key) is not None:
            refuse_wrong_entries(checkpoint, entries, place)
    for key, state in [*(("optimizer_states", saved) for saved in states), (RANKS_KEY, checkpoint.get(RANKS_KEY))]:
        if not checked and (name := next(_not_finite(state), "")):
            raise UserError(f"{place}: {key}: {name} holds NaN or infinity; resume from an earlier checkpoint")
    if checkpoint.get(TRAINED_KEY) is not None:
        model.tensors.trained = _of_model(checkpoint[TRAINED_KEY])
        if _kinds(model.tensors.trained) != _kinds(model.tensors.weights):
            raise UserError(f"{place}: {OF_ANOTHER_KIND}: {TRAINED_KEY} are not the weights of state_dict")
    position = Position(**_only(Position, checkpoint["Seq2SeqDataModule"]))
    if position.batches > position.batches_per_epoch:
        raise UserError(
            f"{place}: {OF_ANOTHER_KIND}: Seq2SeqDataModule.batches is {position.batches}, more than its"
            f" {position.batches_per_epoch} batches of an epoch"
        )
    return SavedRun(
        path=path,
        model=model,
        global_step=checkpoint["global_step"],
        position=position,
        scores=Scores(**_only(Scores, scores)),
        monitor=content["monitor"],
        environment=content["environment"],
        log=checkpoint.get(LOG_KEY),
        scaler=checkpoint.get("MixedPrecision"),
        plateau=checkpoint.get(PLATEAU_KEY),
        rank_sums=_rank_sums(model, checkpoint.get(RANKS_KEY), place),
    )


def _rank_sums(model: SavedModel, sums: Any, place: str) -> Mapping[str, Mapping[str, Tensor]] | None:
    """Those of an AdaLoRA, of the matrices that the checkpoint has; None of any other model."""
    if not model.has_adapter or model.adapter().method != "adalora":
        return None
    trained = {name: value for name, value in model.tensors.weights.items() if rank_matrix(name)}
    if sums is None or any(_kinds(sums[kind]) != _kinds(trained) for kind in SUMS):
        raise UserError(f"{place}: {OF_ANOTHER_KIND}: {RANKS_KEY} are not the sums of the matrices of state_dict")
    found: Mapping[str, Mapping[str, Tensor]] = sums
    return found


def _model(checkpoint: Mapping[str, Any], place: str) -> SavedModel:
    refuse_wrong_entries(checkpoint, MODEL_ENTRIES, place)
    content, weights = checkpoint[CONTENT_KEY], checkpoint["state_dict"]
    state = {name: content.get(name) for name in ("task", "label_map")} | {"flags": content.get("flags", {})}
    state |= {TASKS_KEY: content[TASKS_KEY]} if TASKS_KEY in content else {}
    check_state(state, place)
    return SavedModel(
        place=place,
        description=content["model"],
        tokenizer_files=content["tokenizer"],
        state=state,
        tensors=Tensors(_of_model(weights)),
    )


def _of_model(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights of the model itself, by their names in it."""
    return _renamed(weights, lambda name: name.removeprefix(WEIGHTS))


def _renamed(weights: Mapping[str, Tensor], name: Callable[[str], str]) -> Mapping[str, Tensor]:
    if isinstance(weights, Rows):  # its tensors are not put together for that
        return weights.renamed(name)
    return {name(key): value for key, value in weights.items()}


def _kinds(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: (value.shape, value.is_floating_point()) for name, value in weights.items()}


def _not_finite(state: Any, name: str = "") -> Iterator[str]:
    """The names of the tensors with NaN or infinity in a state, such as state.0.exp_avg."""
    if isinstance(state, Mapping):
        for key in state:
            yield from _not_finite(state[key], f"{name}.{key}" if name else str(key))
    elif isinstance(state, Tensor) and state.is_floating_point() and not all_finite([state]):
        yield name


def _only(view: type, entries: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: entries[field.name] for field in fields(view)}


def trained_tasks(state: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The tasks that the state of a checkpoint or of a training_state.json names; none = a model that is not ours."""
    tasks: Sequence[Mapping[str, Any]] = state.get(TASKS_KEY) or [state["task"]] if state.get("task") else []
    return tasks


def trained_task(state: Mapping[str, Any], name: str, place: str) -> Mapping[str, Any] | None:
    """The task of that name in the state of a model, "" = its only one; None where there is no such.

    Raises:
        UserError: several tasks, and no name; `place` opens the message.
    """
    tasks = {str(task["name"]): task for task in trained_tasks(state)}
    if len(tasks) > 1 and not name:
        raise UserError(f"{place}: was trained on several tasks; give one as -task: {', '.join(tasks)}")
    return tasks.get(name) if name else next(iter(tasks.values()), None)


def check_state(state: Mapping[str, Any], place: str) -> None:
    """Refuse a task, label map or flags, of a checkpoint or a training_state.json, that are not what is taken of them.

    Raises:
        UserError: a line for each; `place` opens it.
    """
    flags = state.get("flags", {})
    typed: list[tuple[str, Any, type | tuple[type, ...]]] = [
        ("task", state.get("task"), (dict, type(None))),
        ("label_map", state.get("label_map"), (dict, type(None))),
        ("flags", flags, dict),
        (TASKS_KEY, state.get(TASKS_KEY, []), list),
        (DIGEST_KEY, state.get(DIGEST_KEY, ""), str),
    ]
    groups = {**flag_groups(PretrainConfig), **flag_groups(TrainConfig)}
    for spec in (spec for group in groups.values() for spec in group if isinstance(flags, dict)):
        kinds = (list, tuple) if spec.repeat else (int, float, type(None)) if spec.kind is float else (spec.kind,)
        if spec.name in flags:
            typed.append((f"flags.{spec.name}", flags[spec.name], kinds))
    problems = [
        f"{place} is damaged: {name} is {shown(value)}"
        for name, value, kind in typed
        if not isinstance(value, kind) or (isinstance(value, int) and abs(value) > MOST)
    ]
    for task in () if problems else trained_tasks(state):
        try:
            Task.from_dict(task)
        except (UserError, TypeError, AttributeError, ValueError, KeyError, RecursionError) as error:
            problems.append(f"{place} is damaged: {error_reason(error)}")
    raise_if_any(problems)
