"""The mean of checkpoints: summed in float64, one tensor at a time; whole files are never held in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.model_source import InferenceModel, check_same_texts
from checkpoints.retention import KEEP_BEST
from checkpoints.run_folder import CHECKPOINT_FOLDER, checkpoints_of, is_checkpoint, step_of
from checkpoints.saved_run import read_model, read_run
from utils.errors import UserError

IGNORED_KEYS = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


@dataclass(frozen=True)
class WeightSource:
    """A checkpoint whose tensors are read one by one."""

    place: str  # for messages
    names: Collection[str]
    read: Callable[[str], Tensor]


def chosen_checkpoints(text: str, run: Path | None) -> list[str]:
    """The paths that -average names: `last:N` or `best:N` of the run's folder, or files and folders joined by commas.

    Raises:
        UserError: a count that is no number, no run, or fewer checkpoints than asked for.
    """
    kind, _, count = text.partition(":")
    if kind not in ("last", "best") or not count:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if len(names) < 2:
            raise UserError(f"-average {text}: last:N, best:N, or two or more files joined by commas expected")
        return names
    if not count.isdecimal() or int(count) < 2:
        raise UserError(f"-average {text}: a whole number of 2 or more expected after {kind}:")
    if run is None:
        raise UserError(f"-average {text}: -model must be the folder of a run, or a .ckpt in one")
    found = newest_checkpoints(run) if kind == "last" else best_checkpoints(run)
    if len(found) < int(count):
        way = "train with -save_every and a higher -save_last_k to keep more"
        if kind == "best":
            way = (
                f"a run keeps those of its {KEEP_BEST} best validations; -valid_check_interval makes them more frequent"
            )
        raise UserError(
            f"-average {text}: {run / CHECKPOINT_FOLDER} has {len(found)} checkpoints of"
            f" {'different steps' if kind == 'last' else 'validations'}; {way}"
        )
    return [str(path) for path in found[: int(count)]]


def newest_checkpoints(run: Path) -> list[Path]:
    """One checkpoint for each optimizer step that the run has one of, from the latest step on."""
    by_step = checkpoints_by_step(checkpoints_of(run), "-average")
    return [by_step[step] for step in sorted(by_step, reverse=True)]


def checkpoints_by_step(paths: Sequence[Path], flag: str) -> dict[int, Path]:
    """The first of the checkpoints for each optimizer step that there is one of."""
    by_step: dict[int, Path] = {}
    for path in paths:
        step = step_of(path)
        if step < 0:  # last.ckpt
            step = read_run(path, flag).global_step
        by_step.setdefault(step, path)
    return by_step


def best_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of validations that are still there, best first by the scores that the newest records."""
    for newest in newest_checkpoints(run)[:1]:
        kept = read_run(newest, "-average").scores.kept
        ordered = sorted(kept["best"], key=lambda entry: -entry[0])
        paths = [run / CHECKPOINT_FOLDER / name for _, name in ordered]
        return [path for path in paths if path.exists()]
    return []


def average_into(model: PreTrainedModel, sources: Sequence[WeightSource]) -> None:
    """Replace the weights of `model` by the mean of the sources; buffers and whole numbers must be the same in all.

    Raises:
        UserError: a tensor is missing, left over, of another shape, or differs where it must not; it is named.
    """
    tensors = model.state_dict()
    same_memory: dict[int, list[str]] = {}
    for name, value in tensors.items():
        same_memory.setdefault(value.data_ptr(), []).append(name)
    for source in sources:
        left_over = sorted(set(source.names) - tensors.keys())
        if left_over:
            raise UserError(f"{source.place}: another architecture: {sources[0].place} has no tensor {left_over[0]}")
    buffers = {name for name, _ in model.named_buffers()}
    for names in same_memory.values():
        target = tensors[names[0]]
        equal = not target.is_floating_point() or not buffers.isdisjoint(names)
        target.copy_(_mean(names, target, sources, equal))


def _mean(names: list[str], target: Tensor, sources: Sequence[WeightSource], equal: bool) -> Tensor:
    """The mean of one tensor that has several names where weights are tied; `equal` = all must be the same."""
    total = torch.zeros(target.shape, dtype=torch.float64)
    first: Tensor | None = None
    for source in sources:
        present = [name for name in names if name in source.names]
        if not present:
            raise UserError(f"{source.place}: another architecture: the tensor {names[0]} is missing")
        value = source.read(present[0])
        if value.shape != target.shape:
            raise UserError(
                f"{source.place}: another architecture: {present[0]} is {list(value.shape)}, not {list(target.shape)}"
            )
        for other in present[1:]:
            if not torch.equal(source.read(other), value):
                raise UserError(f"{source.place}: another architecture: {present[0]} and {other} are not one matrix")
        if equal and first is not None and not torch.equal(first, value):
            raise UserError(f"{source.place}: {present[0]} differs from that of {sources[0].place}: it has no mean")
        first = value if equal and first is None else first
        total += value.to(torch.float64)
    return first if first is not None else total / len(sources)


def weight_source(name: str, flag: str = "-average") -> WeightSource:
    """The weights of a .ckpt (mapped into memory) or of a from_pretrained folder with .safetensors files.

    Raises:
        UserError: missing, torn, or of another kind.
    """
    place = f"{flag} {name}"
    if is_checkpoint(Path(name)):
        weights = read_model(Path(name), flag).tensors.weights
        return WeightSource(place, weights.keys(), weights.__getitem__)
    files: dict[str, Path] = {}
    try:
        for path in sorted(Path(name).glob("*.safetensors")):
            with safe_open(path, framework="pt") as opened:
                files |= dict.fromkeys(opened.keys(), path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{place}: {path} is torn ({error})") from error
    if not files:
        raise UserError(f"{place}: no .safetensors file in this folder; give a .ckpt, best/ or last/")

    def read(tensor: str) -> Tensor:
        with safe_open(files[tensor], framework="pt") as opened:
            return opened.get_tensor(tensor)  # type: ignore[no-any-return]

    return WeightSource(place, files.keys(), read)


def averaged(names: Sequence[str], flag: str = "-average") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model whose weights are the mean of those of the named checkpoints, and the tokenizer that all have.

    Raises:
        UserError: a checkpoint cannot be read; other architectures, configs, tokenizers, templates or labels; the
            difference is named.
    """
    models = [InferenceModel(name, flag=flag) for name in names]
    check_same_texts(models)  # their mean would have learned neither
    first_config, tokenizer = models[0].config_and_tokenizer()
    for name, other in zip(names[1:], models[1:], strict=True):
        config, other_tokenizer = other.config_and_tokenizer()
        difference = _first_difference(_plain(first_config), _plain(config))
        if difference:
            raise UserError(f"{flag} {name}: another architecture than {names[0]}: {difference}")
        if other_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{flag} {name}: another tokenizer than that of {names[0]}")
    sources = [weight_source(name, flag) for name in names]
    model, tokenizer = models[0]()
    average_into(model, sources)
    return model, tokenizer


def _plain(config: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in content.items() if key not in IGNORED_KEYS}


def _first_difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    keys = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
    return f"{keys[0]} is {other.get(keys[0])!r}, not {first.get(keys[0])!r}" if keys else ""
