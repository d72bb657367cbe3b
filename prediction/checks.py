"""Checks of the command line of `inference.py`: every problem is told at once, before anything heavy is imported."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from checkpoints.model_paths import check_model_paths, model_path
from config.checks import check_devices, collect
from config.flags import CTRANSLATE2_INSTALL, STANDARD_INPUT, DecodeFlags, InferenceConfig, LabelFlags
from datamodules.checks import check_data, data_file, local_inputs
from datamodules.readers.paths import check_data_paths, parse_data_path
from postprocessors.labels import LabelMap
from prediction.parts_folder import PARTS_SUFFIX, has_parts, is_structured
from task_utils import Task, get_task, override_task
from utils.errors import raise_if_any
from utils.files import is_too_long, lies_in, same_file

RULE_FLAGS = ("no_repeat_ngram_size", "min_predict_length", "repetition_penalty")  # change the model's own scores

SCORE_FLAGS = ("label_prior", "calibrate", "label_temperature")
SAMPLING_FLAGS = ("temperature", "top_k", "top_p", "do_sample")
SEARCH_FLAGS = ("beam_size", "length_penalty", "num_return", "early_stopping")
EXCLUDED = {
    "generate": (),
    "constrained": (*RULE_FLAGS, *SAMPLING_FLAGS),  # rules could block every label
    "score": (*RULE_FLAGS, *SAMPLING_FLAGS, *SEARCH_FLAGS),
}
REASONS = {
    "constrained": "chooses the best label, and this could leave none",
    "score": "looks at every label and searches nothing",
}

ROW_FLAGS = ("valid_data_proportions", "test_data_proportions", "source_column", "target_column", "header")
FILE_FLAGS = (*ROW_FLAGS, "strict_data", "cache_dir", "max_target_length", "do_truncate")  # not of standard input
SAMPLING = ("temperature", "top_k", "top_p")


def check_inference(config: InferenceConfig, given: frozenset[str], problems: list[str]) -> None:
    """Every problem of an `inference.py` command line, appended to `problems`."""
    if STANDARD_INPUT in config.data.test_data:
        _check_streaming(config, problems)
    else:
        check_data(config.data, problems)
    task = _check_rows(config, problems)
    _check_outputs(config, problems)
    _check_decoding(config, given, problems)
    check_label_flags(config, task, problems)
    check_model_paths(problems, {"-model": config.model.model, "-tokenizer": (config.model.tokenizer,)})
    check_devices(config.device.gpus, config.device.cpu_processes, problems)


def _check_streaming(config: InferenceConfig, problems: list[str]) -> None:
    """Problems of predicting standard input line by line."""
    place, data, output = f"-test_data {STANDARD_INPUT}", config.data, config.output
    if data.train_data or data.valid_data or len(data.test_data) > 1:
        problems.append(f"{place}: standard input stands alone; give no other data")
    given = [name for name in ("save_output", "save_label", "save_report", "keep_fields") if getattr(output, name)]
    if given:
        names = ", ".join(f"-{name}" for name in given)
        problems.append(f"{place}: predictions go to standard output, a line each; for {names} give a file of rows")
    if config.device.cpu_processes > 1 or config.device.gpus > 1:
        problems.append(f"{place}: one device predicts; give -gpus 0 or 1, and no -cpu_processes")
    ignored = [*_changed(data, FILE_FLAGS), *_changed(config.length, FILE_FLAGS)]
    if ignored:
        problems.append(
            f"{place}: a line is a source and nothing else, and is cut where it is too long; for {', '.join(ignored)}"
            " give a file of rows"
        )
    probabilities = _changed(config.label, SCORE_FLAGS)
    if probabilities:
        problems.append(
            f"{place}: a prior and a calibration need all rows, and a line holds no probabilities; for"
            f" {', '.join(probabilities)} give a file of rows"
        )


def _changed(flags: Any, names: tuple[str, ...]) -> list[str]:
    """Those of `names` that are flags of this group and have another value than by default, as the user types them."""
    defaults, values = asdict(type(flags)()), asdict(flags)
    changed = {name: values[name] for name in names if name in values and values[name] != defaults[name]}
    return [f"-{name} {str(value).lower() if isinstance(value, bool) else value}" for name, value in changed.items()]


def _check_rows(config: InferenceConfig, problems: list[str]) -> Task | None:
    """Problems of the rows to predict; gives the task of -task."""
    data = config.data
    task: Task | None = None
    if config.model.task:
        task = collect(problems, lambda: override_task(get_task(config.model.task), data))
    hub = bool(task and task.hub_dataset) and not data.train_data
    if data.test_data_proportions and not (data.train_data or data.test_data or hub):
        problems.append(
            f"-test_data_proportions {data.test_data_proportions}: a share of the rows of -train_data, which is not"
            " given; give it, or leave the share out and give -test_data"
        )
    elif not (data.test_data or data.valid_data or (data.train_data and data.test_data_proportions) or hub):
        problems.append("-test_data is required: a file, a folder or a hub name with the rows to predict")
    if data.label_map and not config.model.task:
        collect(problems, lambda: LabelMap.parse(data.label_map))
    return task


def _check_outputs(config: InferenceConfig, problems: list[str]) -> None:
    output, model = config.output, config.model
    calibrate = data_file(config.label.calibrate)
    inputs = local_inputs(config.data, tokenizer=model.tokenizer, task=model.task, calibrate=calibrate)
    inputs += [("-model", path) for path in _local_models(model.model)]
    going_on = bool(output.save_output) and has_parts(Path(output.save_output))
    parts = f"{output.save_output}{PARTS_SUFFIX}"
    seen: dict[str, str] = {}
    for name in ("save_output", "save_label", "save_report"):
        value = getattr(output, name)
        if value:
            same = seen.setdefault(os.path.realpath(value), f"-{name}")
            problem = f"the same file as {same}" if same != f"-{name}" else _file_problem(value, inputs)
            if not problem and name != "save_output" and output.save_output and lies_in(value, parts):
                problem = f"{parts} is for the finished parts of -save_output; choose another place"
            if not problem and os.path.lexists(value) and not output.overwrite:
                problem = _existing_problem(name, going_on)
            problems.extend([f"-{name} {value}: {problem}"] if problem else [])
    if output.keep_fields and STANDARD_INPUT not in config.data.test_data:
        _check_fields(config, problems)


def _local_models(names: Sequence[str]) -> list[str]:
    """The files and folders on this machine that -model stands for."""
    unseen: list[str] = []  # `check_inference` has them already
    paths = [collect(unseen, lambda name=name: model_path("-model", name)) for name in names]  # type: ignore[misc]
    return [path for path in paths if path and os.path.exists(path)]


def _existing_problem(name: str, going_on: bool) -> str:
    """Why the file of -`name` is not replaced without -overwrite; empty when a stopped run of this command wrote it."""
    if not going_on:
        return "exists; -overwrite replaces it"
    if name == "save_output":
        return ""
    return "exists; -overwrite replaces it, and keeps the finished parts of the same command"


def _check_fields(config: InferenceConfig, problems: list[str]) -> None:
    """What -keep_fields needs: records on both sides, and every row of them."""
    if not config.output.save_output.lower().endswith(".jsonl"):
        problems.append("-keep_fields: give -save_output a file that ends in .jsonl")
    paths, share = config.data.test_data or config.data.valid_data, config.data.test_data_proportions
    if share and not config.data.test_data:
        problems.append(
            f"-keep_fields copies the records of whole files, and -test_data_proportions {share} predicts a share of"
            " -train_data; give the rows as -test_data, or leave -keep_fields out"
        )
        return
    kinds = [collect(problems, lambda path=path: parse_data_path(path).kind) for path in paths]  # type: ignore[misc]
    if not paths or not set(kinds) <= {"json", "jsonl", None}:
        problems.append("-keep_fields: give -test_data .jsonl or .json files; others have no records to keep")


def _check_decoding(config: InferenceConfig, given: frozenset[str], problems: list[str]) -> None:
    decode = config.decode
    if decode.do_sample and decode.beam_size > 1:
        problems.append(f"-do_sample and -beam_size {decode.beam_size} exclude each other: draw, or search")
    if not decode.do_sample:
        wanted = [f"-{name}" for name in SAMPLING if name in given]
        if wanted:
            works = "works" if len(wanted) == 1 else "work"
            problems.append(f"{', '.join(wanted)} only {works} with sampling; give -do_sample as well")
        if decode.num_return > decode.beam_size:
            problems.append(
                f"-num_return {decode.num_return}: at most -beam_size {decode.beam_size} outputs are found; raise"
                " -beam_size, or give -do_sample"
            )
    if decode.early_stopping and decode.beam_size == 1 and config.label.label_decoding != "score":
        problems.append("-early_stopping only works with beam search; give -beam_size 2 or more, or leave it out")
    check_engine_flags(config, given, problems)
    if decode.num_return > 1 and not is_structured(config.output.save_output):
        problems.append(
            f"-num_return {decode.num_return}: a plain line holds one output; give -save_output a .jsonl or .tsv file"
        )
    if decode.min_predict_length > decode.max_predict_length:
        problems.append(
            f"-min_predict_length {decode.min_predict_length} is more than -max_predict_length"
            f" {decode.max_predict_length}"
        )


def _file_problem(value: str, inputs: list[tuple[str, str]]) -> str:
    """Why no file can be written to `value`, whatever -overwrite says; empty when it can."""
    path = Path(value).absolute()
    if is_too_long(path):
        return "the name is too long for a file system; choose a shorter one"
    if value == STANDARD_INPUT or not value.strip() or value.endswith(os.sep):
        return "is no name of a file; predictions go to standard output with -test_data - only"
    for flag, source in inputs:
        if same_file(value, source):
            return f"the same file as {flag}" if os.path.isfile(path) else "is a folder; give a file"
        if os.path.isdir(source) and os.path.lexists(value) and lies_in(value, source):
            return f"is a file of {flag} {source}; choose another place"
    if path.is_symlink():  # it would become a file of its own
        return f"is a link to {os.readlink(path)}; give the file itself"
    if os.path.isdir(path):
        return "is a folder; give a file"
    if os.path.exists(path) and not os.path.isfile(path):
        return "is no regular file (a device or a pipe)"
    if not os.path.isdir(path.parent):
        return f"the folder {path.parent} does not exist"
    return "" if os.access(path.parent, os.W_OK) else f"no permission to write in {path.parent}"


def check_label_flags(config: InferenceConfig, task: Task | None, problems: list[str]) -> None:
    """Problems that the flags show, appended to `problems`; `task` is None when the checkpoint has it.

    The name of a built-in task may mean the checkpoint's own, whose labels are not known yet.
    """
    mode = config.label.label_decoding
    if task is not None and (task.label_map is not None or task.name != config.model.task):
        problems.extend(label_problems(mode, task.label_map))
    given = {**asdict(config.label), **asdict(config.decode)}
    defaults: dict[str, Any] = {**asdict(LabelFlags()), **asdict(DecodeFlags())}
    changed = {name: value for name, value in given.items() if value != defaults[name]}
    if mode != "score":
        problems += [
            f"-{name} {changed[name]} is about label probabilities: it goes with -label_decoding score"
            for name in SCORE_FLAGS
            if name in changed
        ]
    problems += [
        f"-{name} {changed[name]}: -label_decoding {mode} {REASONS[mode]}; leave it out"
        for name in EXCLUDED[mode]
        if name in changed
    ]
    if mode != "generate" and config.decode.engine != "torch":
        problems.append(
            f"-label_decoding {mode} only works with -engine torch; {config.decode.engine} has no search among labels"
        )
    if mode == "score" and len(config.model.model) > 1:
        problems.append("-label_decoding score takes one -model; several decode together with constrained")
    if config.label.calibrate:
        problems.extend(check_data_paths("-calibrate", (config.label.calibrate,)))
        if "label_temperature" in changed:
            problems.append(
                f"-calibrate fits the temperature, and -label_temperature {changed['label_temperature']} gives one:"
                " leave one of them out"
            )


def label_problems(mode: str, labels: LabelMap | None) -> list[str]:
    """What stands against predicting the rows of a task by `-label_decoding mode`."""
    if mode != "generate" and labels is None:
        return [f"-label_decoding {mode} needs labels: give -label_map, or a -task with a label map"]
    if mode == "score" and labels is not None and labels.separator:
        return [
            f"-label_decoding score gives one label a row, and these rows may have several, joined by"
            f" {labels.separator!r}; use constrained"
        ]
    return []


def check_labels(mode: str, labels: LabelMap | None) -> None:
    """Raises `UserError` with the problems of `label_problems`."""
    raise_if_any(label_problems(mode, labels))


def check_engine_flags(config: InferenceConfig, given: frozenset[str], problems: list[str]) -> None:
    """Problems of -engine with the other flags, appended to `problems`."""
    decode, precision = config.decode, config.device.float_precision
    if decode.engine == "torch":
        if "compute_type" in given:
            problems.append(
                f"-compute_type {decode.compute_type} only works with -engine ctranslate2; give -float_precision with"
                " -engine torch"
            )
        return
    if importlib.util.find_spec("ctranslate2") is None:
        problems.append(f"-engine ctranslate2 needs the package ctranslate2, which is missing; {CTRANSLATE2_INSTALL}")
    if len(config.model.model) > 1:
        problems.append("-engine ctranslate2 decodes with one -model; several decode together with -engine torch")
    if precision != "32":
        problems.append(
            f"-float_precision {precision} only works with -engine torch; give -compute_type with ctranslate2"
        )
    problems.extend(_search_problems(decode))


def _search_problems(decode: DecodeFlags) -> list[str]:
    """What CTranslate2 cannot do with the very same meaning; models/ctranslate2_engine.py says why."""
    problems = []
    if decode.do_sample:
        problems.append("-do_sample only works with -engine torch, which draws with a seed for each row")
    if decode.beam_size > 1 and not decode.early_stopping:
        problems.append(
            f"-engine ctranslate2 ends the search of a row as soon as -beam_size {decode.beam_size} outputs have ended;"
            " ask for that with -early_stopping true (-engine torch then gives the same texts), or give -beam_size 1"
        )
    defaults = DecodeFlags()
    rules = [
        f"-{name} {getattr(decode, name)}" for name in RULE_FLAGS if getattr(decode, name) != getattr(defaults, name)
    ]
    if decode.beam_size > 1 and rules:
        problems.append(
            f"{', '.join(rules)}: -engine ctranslate2 has this with one beam only; with -beam_size {decode.beam_size}"
            " its scores would be others than those of -engine torch: give -beam_size 1, or -engine torch"
        )
    return problems
