"""Checks of the command line of `inference.py`: every problem is told at once, before anything heavy is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from checkpoints.model_paths import EXPORTS, check_model_paths, may_know_task, model_path
from checkpoints.run_folder import CHECKPOINT_FOLDER, checkpoints_of, holds_run, step_of
from config.checks import check_combinations, check_devices, collect, is_too_long, lies_in, same_file
from config.flags.data import STANDARD_INPUT
from config.flags.inference import OUTPUT_FILES, InferenceConfig, LabelFlags, OutputFlags
from datamodules.checks import check_data, data_file, local_inputs
from datamodules.readers.paths import WITH_RECORDS, check_data_paths, parse_data_path
from metrics.registry import METRICS, REFERENCES, metric_names, scored_names, takes_of
from metrics.uncertainty.probabilities import PERPLEXITY
from postprocessors.answers import Answers
from postprocessors.base import FREE_TEXT, Postprocessor
from postprocessors.labels import LabelMap, allowed_labels
from postprocessors.numbers import MOST_CHOICES, Number
from prediction.parts_folder import PARTS_SUFFIX, checkpoint_output, has_parts, is_structured
from reports.page import IMAGES_FLAG, PAGE_ENDING, images_folder
from task_utils import Task, get_task, override_task, task_name, task_names
from utils.errors import closest, raise_if_any
from utils.launch import world_size
from utils.libraries import missing_package
from utils.tables import counted

FITTED_ON = ("calibrate", "thresholds")  # flags of labelled rows
OF_ONE_LABEL = ["label_prior", "calibrate", "label_sets", "abstain", "label_temperature", "highlight"]
OF_SEVERAL = ["thresholds"]
OTHER_FORMS = re.compile(  # of files, which nobody fills with plain lines
    r"\.(csv|json|parquet|arrow|feather|xlsx?|ods|ya?ml|xml|html|md|gz|bz2|xz|zst|zip|pkl|npy|pt|safetensors|db|sqlite)"
)


def check_inference(config: InferenceConfig, problems: list[str]) -> None:
    """Every problem of an `inference.py` command line, appended to `problems`."""
    if STANDARD_INPUT in config.data.test_data:
        _check_streaming(config, problems)
    else:
        check_data(config.data, problems)
    task = _check_rows(config, problems)
    check_outputs(config, problems)
    if config.output.openai_batch:
        _check_batch_files(config, problems)
    check_combinations(config, problems)
    check_decoding(config, problems)
    named = collect(problems, lambda: named_metrics(config.output.metrics)) or ()
    if PERPLEXITY in named and len(config.model.model) > 1:
        problems.append(f"-metrics {PERPLEXITY}: not with several -model: give one")
    problems += perplexity_problems(named, config.length.doc_stride)
    check_label_flags(config, task, problems)
    check_model_paths(problems, {"-model": config.model.model, "-tokenizer": config.model.tokenizer})
    check_devices(config.device.gpus, config.device.cpu_processes, problems)


def check_launched(output: str, inputs: Sequence[str], problems: list[str]) -> None:
    """Problems of a prediction that torchrun or srun started as several processes."""
    if world_size() > 1 and STANDARD_INPUT in inputs:
        problems.append(f"-test_data {STANDARD_INPUT}: one process reads standard input; start it without a launcher")
    elif world_size() > 1 and not output:
        problems.append(
            "-save_output is required where torchrun or srun starts several processes: what they share lies beside it"
        )


def of_newest_checkpoint(config: InferenceConfig, problems: list[str]) -> list[InferenceConfig]:
    """The config of -all_checkpoints for the newest one; none where there is no run, which `problems` then says."""
    names = config.model.model
    if world_size() > 1:
        problems.append(
            "-all_checkpoints: not where torchrun or srun starts several processes; give -gpus or -cpu_processes"
        )
    found = checkpoints_of(Path(names[0])) if len(names) == 1 and os.path.isdir(names[0]) else []
    if names and not found:
        given = " ".join(f"-model {name}" for name in names)
        problems.append(f"-all_checkpoints: give one run with checkpoints in {CHECKPOINT_FOLDER}/, not {given}")
    return [replace(config, model=replace(config.model, model=(str(path),))) for path in found[:1]]


def perplexity_problems(metrics: Collection[str], doc_stride: int) -> list[str]:
    """Why the perplexity of references cannot be had of windows."""
    windows = f"-doc_stride {doc_stride}: a window has no reference; leave the metric out, or give -doc_stride 0"
    return [f"-metrics {PERPLEXITY}: not with {windows}"] if doc_stride and PERPLEXITY in metrics else []


def _check_streaming(config: InferenceConfig, problems: list[str]) -> None:
    """Problems of predicting standard input line by line."""
    place, data = f"-test_data {STANDARD_INPUT}", config.data
    if data.train_data or data.valid_data or len(data.test_data) > 1:
        problems.append(f"{place}: standard input stands alone; give no other data")
    if config.device.cpu_processes > 1 or config.device.gpus > 1:
        problems.append(f"{place}: one device predicts; give -gpus 0 or 1, and no -cpu_processes")


def _check_batch_files(config: InferenceConfig, problems: list[str]) -> None:
    """Problems of the names of files of requests and of answers."""
    if STANDARD_INPUT in config.data.test_data:
        return
    kinds = {value: collect([], lambda value=value: parse_data_path(value).kind) for value in config.data.test_data}  # type: ignore[misc]
    problems += [
        f"-openai_batch: -test_data {value} is no .jsonl file; a batch file has a request on each line"
        for value, kind in kinds.items()
        if kind not in ("jsonl", None)
    ]
    if Path(config.output.save_output).suffix.lower() != ".jsonl":
        problems.append("-openai_batch: give -save_output a file that ends in .jsonl for the answers")


def _check_rows(config: InferenceConfig, problems: list[str]) -> Task | None:
    """Problems of the rows to predict; gives the task of -task."""
    data = config.data
    task: Task | None = None
    name = task_name(config.model.task)
    own = name not in task_names() and any(may_know_task(name, model) for model in config.model.model)
    if name and not own:
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


def check_outputs(config: InferenceConfig, problems: list[str]) -> None:
    """Problems of the files to write: what is there already, or cannot be written."""
    output, model = config.output, config.model
    fitting = {name: data_file(getattr(config.label, name)) for name in FITTED_ON}
    inputs = local_inputs(config.data, tokenizer=model.tokenizer, task=model.task, **fitting)
    inputs += [(f"-{name}", path) for name in ("predictions", "references") for path in _scored_files(config, name)]
    inputs += local_models("-model", model.model)
    steps: list[str] = []
    if model.all_checkpoints and model.model and output.save_output:
        paths = checkpoints_of(Path(model.model[0]).parent.parent, last_first=False)
        steps = [str(checkpoint_output(Path(output.save_output), step_of(path))) for path in paths]
    check_files({name: getattr(output, name) for name in OUTPUT_FILES}, inputs, output.overwrite, problems, steps)
    if output.report_images and output.save_report:
        problems += images_problems(output)
    if config.label.highlight and not is_structured(output.save_output):
        problems.append("-highlight: give -save_output a file that ends in .jsonl or .tsv")
    if config.label.label_sets and output.save_output and not is_structured(output.save_output):
        problems.append("-label_sets: a plain line holds none; give -save_output a file that ends in .jsonl or .tsv")
    if STANDARD_INPUT not in config.data.test_data and not config.scoring.score_only:
        for flag in ("keep_fields", "group_by"):
            if getattr(output, flag):
                _check_records(flag, config, problems)


def check_files(
    outputs: Mapping[str, str],
    inputs: list[tuple[str, str]],
    overwrite: bool,
    problems: list[str],
    steps: Sequence[str] = (),
    texts: bool = True,
) -> None:
    """Problems of the files that flags (without their dash) name, `save_output` the one with parts beside it.

    Args:
        steps: outputs of further predictions, whose parts lie beside them.
        texts: whether they are those of `OUTPUT_FILES` in the forms that inference.py writes.
    """
    output = outputs["save_output"]
    going_on = bool(output) and any(has_parts(Path(path)) for path in (output, *steps))
    folders = [f"{path}{PARTS_SUFFIX}" for path in (output, *steps)] if output else []
    seen: dict[str, str] = {}
    for name, value in outputs.items():
        if value:
            same = seen.setdefault(os.path.realpath(value), f"-{name}")
            problem = f"the same file as {same}" if same != f"-{name}" else _file_problem(value, inputs)
            problem = problem or (_ending_problem(name, value) if texts and name in OUTPUT_FILES else "")
            parts = next((folder for folder in folders if lies_in(value, folder)), "")
            if not problem and name != "save_output" and parts:
                problem = f"{parts} is for the finished parts of -save_output; choose another place"
            if not problem and os.path.lexists(value) and not overwrite and not going_on:
                problem = "exists; -overwrite replaces it"
            problems.extend([f"-{name} {value}: {problem}"] if problem else [])


def images_problems(output: OutputFlags) -> list[str]:
    """Why no pictures of the report's page can be written."""
    folder, problems = images_folder(Path(output.save_report)), [missing_package("matplotlib", IMAGES_FLAG)]
    if Path(output.save_report).suffix.lower() != PAGE_ENDING:
        problems.append(
            f"{IMAGES_FLAG}: the charts are those of a page; give -save_report a file that ends in {PAGE_ENDING}"
        )
    elif os.path.lexists(folder) and not os.path.isdir(folder):
        problems.append(f"{IMAGES_FLAG}: {folder} is no folder; move it away")
    elif os.path.isdir(folder) and os.listdir(folder) and not output.overwrite:
        problems.append(f"{IMAGES_FLAG}: {folder} is not empty; -overwrite replaces the pictures in it")
    return [problem for problem in problems if problem]


def _scored_files(config: InferenceConfig, name: str) -> list[str]:
    """The files on this machine that -predictions or -references names, whatever their ending."""
    values = getattr(config.scoring, name)
    return [path for path in (*values, *map(data_file, values)) if os.path.exists(path)]


def local_models(flag: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """The files and folders on this machine that a flag like -model stands for, with the flag."""
    unseen: list[str] = []  # `check_model_paths` tells them
    paths = [collect(unseen, lambda name=name: model_path(flag, name)) for name in names]  # type: ignore[misc]
    return [(flag, path) for path in paths if path and os.path.exists(path)]


def _check_records(flag: str, config: InferenceConfig, problems: list[str]) -> None:
    """What -keep_fields and -group_by need: the records of the input, and every row of them."""
    if flag == "keep_fields" and not is_structured(config.output.save_output):
        problems.append("-keep_fields: give -save_output a file that ends in .jsonl or .tsv")
    paths, share = config.data.test_data or config.data.valid_data, config.data.test_data_proportions
    if share and not config.data.test_data:
        problems.append(
            f"-{flag} reads the records of whole files, and -test_data_proportions {share} predicts a share of"
            f" -train_data; give the rows as -test_data, or leave -{flag} out"
        )
        return
    kinds = [collect(problems, lambda path=path: parse_data_path(path).kind) for path in paths]  # type: ignore[misc]
    if not paths or not set(kinds) <= {*WITH_RECORDS, None}:
        problems.append(f"-{flag}: give -test_data .tsv, .csv, .jsonl or .json files; others are not read again")


def check_decoding(config: InferenceConfig, problems: list[str]) -> None:
    """Problems of the search that the flags ask for, appended to `problems`."""
    decode = config.decode
    if decode.num_return > decode.width:
        problems.append(
            f"-num_return {decode.num_return}: at most -beam_size {decode.beam_size} outputs are found; raise"
            " -beam_size, or give -do_sample"
        )
    if decode.engine == "ctranslate2":
        _check_ctranslate2(config, problems)
    if decode.num_return > 1 and not is_structured(config.output.save_output):
        problems.append(
            f"-num_return {decode.num_return}: a plain line holds one output; give -save_output a .jsonl or .tsv file"
        )
    if decode.max_predict_length and decode.min_predict_length > decode.max_predict_length:
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
    folders = Path(os.path.realpath(path.parent)), *Path(os.path.realpath(path.parent)).parents
    for folder in folders:
        if folder.name in (*EXPORTS, CHECKPOINT_FOLDER) and holds_run(folder.parent):
            return f"lies in {folder}, which a training replaces; choose another place"
    there = next(folder for folder in folders if os.path.lexists(folder))  # the others are made
    if not os.path.isdir(there):
        return f"{there} is no folder"
    return "" if os.access(there, os.W_OK) else f"no permission to write in {there}"


def _ending_problem(name: str, value: str) -> str:
    """Why a file is not written under a name that promises another form; plain lines may have any other name."""
    ending = Path(value).suffix.lower()
    lines_only = name == "save_label"
    if name == "save_report":
        told = f"no {ending} report is written; give .json, or .html for a page with charts"
        return "" if ending in ("", ".json", PAGE_ENDING) else told
    if not (OTHER_FORMS.fullmatch(ending) or (lines_only and ending == ".jsonl")):
        return ""
    choices = "" if lines_only else ", or .jsonl or .tsv with sources and scores"
    return f"no {ending} file is written; give .txt (or no ending) for plain lines{choices}"


def check_label_flags(config: InferenceConfig, task: Task | None, problems: list[str]) -> None:
    """Problems that the flags show, appended to `problems`; `task` is None when the checkpoint has it.

    The name of a built-in task may mean the checkpoint's own, whose labels are not known yet.
    """
    label = config.label
    if task is not None and (task.label_map is not None or task.name != config.model.task):
        problems.extend(label_problems(label, task.label_map or task.output or FREE_TEXT))
    if label.label_decoding == "score" and len(config.model.model) > 1:
        problems.append("-label_decoding score takes one -model; several decode together with constrained")
    for name in FITTED_ON:
        if getattr(label, name):
            problems.extend(check_data_paths(f"-{name}", (getattr(label, name),)))


def label_problems(flags: LabelFlags, postprocessor: Postprocessor) -> list[str]:
    """What stands against predicting the rows of a task by these flags."""
    mode, labels = flags.label_decoding, allowed_labels(postprocessor)
    if mode == "constrained" and isinstance(postprocessor, Answers):  # to spans of the passage
        return []
    if mode != "generate" and isinstance(postprocessor, Number) and postprocessor.longest_texts and labels is None:
        written = f"{postprocessor.describe()} with {counted(postprocessor.decimals, 'decimal')}"
        return [f"-label_decoding {mode}: of {written} there are none, or more than {MOST_CHOICES:,}"]
    if mode != "generate" and labels is None:
        return [
            f"-label_decoding {mode} needs labels, or numbers with bounds: give -label_map, or a -task with a label map"
        ]
    if mode == "score" and not isinstance(postprocessor, LabelMap):
        return [f"-label_decoding score is for labels, and these are {postprocessor.describe()}; use constrained"]
    if mode != "score" or labels is None:
        return []
    names, told = OF_SEVERAL, "rows that may have several labels, and these have one"
    if labels.separator:
        names, told = OF_ONE_LABEL, f"rows of one label, and these may have several, joined by {labels.separator!r}"
    given = [f"-{name}" for name in names if getattr(flags, name) != getattr(LabelFlags, name)]
    return [f"{', '.join(given)}: for {told}"] if given else []


def check_labels(flags: LabelFlags, postprocessor: Postprocessor) -> None:
    """Raises `UserError` with the problems of `label_problems`."""
    raise_if_any(label_problems(flags, postprocessor))


def _check_ctranslate2(config: InferenceConfig, problems: list[str]) -> None:
    """Problems of -engine ctranslate2 with the other flags, appended to `problems`."""
    decode = config.decode
    problems += filter(None, [missing_package("ctranslate2", "-engine ctranslate2")])
    if len(config.model.model) > 1:
        problems.append("-engine ctranslate2 decodes with one -model; several decode together with -engine torch")
    if decode.beam_size > 1 and not decode.early_stopping:
        problems.append(
            f"-engine ctranslate2 ends the search of a row as soon as -beam_size {decode.beam_size} outputs have ended;"
            " ask for that with -early_stopping (-engine torch then gives the same texts), or give -beam_size 1"
        )


def named_metrics(names: str) -> tuple[str, ...]:
    """The metrics of -metrics, names joined by commas; `UserError` for one that does not exist."""
    found = tuple(filter(None, (name.strip() for name in names.split(","))))
    known = (*scored_names(), *metric_names(REFERENCES))
    raise_if_any(
        f"-metrics {name}: no such metric{closest(name, known)}; known: {', '.join(known)}"
        for name in found
        if name not in known
    )
    return found


def with_metrics(task: Task, names: str) -> Task:
    """The task with the metrics of -metrics besides its own, but those of references, which need no outputs;
    `UserError` for one that its outputs do not have."""
    fitting = metric_names(*takes_of(task.kind))
    added = [name for name in named_metrics(names) if METRICS[name].takes != REFERENCES]
    raise_if_any(
        f"-metrics {name}: is of {METRICS[name].takes}, and the outputs of task {task.name} are {task.kind}; of these"
        f" there are: {', '.join(fitting)}"
        for name in added
        if name not in fitting
    )
    return replace(task, metrics=tuple(dict.fromkeys((*task.metrics, *added))))
