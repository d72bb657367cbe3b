"""Tasks, label maps and templates: what a row means and how it is written to and read from a model. No torch."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from config.checks import collect, column_problems
from config.flags.data import DataFlags
from config.templates import Template, Variable
from metrics.registry import (
    LABELS,
    METRICS,
    PASSAGES,
    PROBABILITIES,
    TEACHER_FORCED,
    TEXTS,
    default_metrics,
    is_generated,
    metric_names,
    metric_problems,
)
from postprocessors.base import FREE_TEXT, Postprocessor
from postprocessors.kinds import KINDS, postprocessor_dict, postprocessor_of
from postprocessors.labels import LabelMap
from utils.errors import UserError, closest, errors_at, raise_if_any
from utils.mapping_files import FILE_SUFFIXES, read_mapping_file, unknown_keys

__all__ = [
    "FILES",
    "Task",
    "Template",
    "file_paths",
    "get_task",
    "override_task",
    "task_content",
    "task_name",
    "task_names",
    "task_table",
    "written_labels",
]

LAYOUTS = ["conll", "squad"]  # and those that `datamodules.readers.layouts.register` adds
LANGUAGES = ("source_language", "target_language")
# Keys that older checkpoints do not know.
IF_SET = ("label_separator", "layout", "references", "placeholders", "passage", "postprocessor", *LANGUAGES)

FILES = ("train_data", "valid_data", "test_data")  # keys that name files of rows; a `Task` itself has none
LINE_WIDTH = 80  # of `task_table`
BUILT_IN = Path(__file__).parent / "datamodules" / "tasks"


def written_labels(label_map: LabelMap, target_template: Template) -> LabelMap:
    """The label map as the model writes it: its texts rendered by the target template.

    Raises `UserError` when the template uses a variable other than `target`: a label would then have no fixed text; or
    when it does anything to the text of joined labels.
    """
    others = sorted(target_template.variables - {"target"})
    if others:
        raise UserError(
            f"{target_template.name} {target_template.source!r}: with a label map only {{{{ target }}}} may be used, "
            f"not {', '.join(others)}"
        )
    if label_map.separator and target_template.parts != (Variable("target"),):
        raise UserError(
            f"{target_template.name} {target_template.source!r}: with a label separator it must be '{{{{ target }}}}'"
        )
    with errors_at(f"{target_template.name} {target_template.source!r}"):
        texts = [target_template.render({"target": text}) for text in label_map.texts]
        return dataclasses.replace(label_map, entries=tuple(zip(label_map.ids, texts, strict=True)))


@dataclass(frozen=True)
class Task:
    """What a data set means: its columns, templates, outputs, metrics and default lengths (tokens; 0 = no limit).

    A column is a name or a number counted from 1. `layout` is the word of a reader for files that are no table, "" by
    the file's ending. `references` is the template of the text that predictions are scored against, "" for the target.
    `placeholders` are values that mean that a column has no text: rows where a column of the source holds one, or is
    empty, do not train. `passage` is the variable whose text -doc_stride cuts into windows, "" for none.
    `source_language` and `target_language` are templates of the languages' codes, "" where no row says them. `output`
    is what the texts stand for where neither free text nor a label map; task files call it `postprocessor`.
    `hub_dataset` (`name` or `name:config`) is read when no `-train_data` is given; "" means that the task needs files.
    `valid_proportion` is the share of the training rows used for validation when no validation data are given. Raises
    `UserError` with every problem found.
    """

    name: str
    description: str
    source_column: str | int = 1
    target_column: str | int = 2
    input_template: str = "{{ source }}"
    target_template: str = "{{ target }}"
    label_map: LabelMap | None = None
    metrics: tuple[str, ...] = default_metrics(TEXTS)
    max_seq_length: int = 0
    max_target_length: int = 0
    hub_dataset: str = ""
    valid_proportion: float = 0.0
    layout: str = ""
    references: str = ""
    placeholders: tuple[str, ...] = ()
    passage: str = ""
    source_language: str = ""
    target_language: str = ""
    output: Postprocessor | None = None

    def __post_init__(self) -> None:
        problems = [] if self.name.strip() else ["task: name is empty"]
        for key in ("source_column", "target_column"):
            column = getattr(self, key)
            if column == "" or (isinstance(column, int) and column < 1):
                problems.append(f"task {self.name}: {key} {column!r} is no column; give a name, or a number from 1")
        problems += metric_problems(f"task {self.name}", self.metrics, self.kind)
        if self.label_map is not None:
            problems += [
                f"task {self.name}: {key} does not go with a label_map; leave one of them out"
                for key, value in (
                    ("postprocessor", self.output),
                    ("references", self.references),
                    ("target_language", self.target_language),
                )
                if value
            ]
        if self.passage and self.kind != "answers":
            problems.append(f"task {self.name}: passage {self.passage!r} needs postprocessor: answers")
        if self.layout and self.layout not in LAYOUTS:
            known = f"{closest(self.layout, LAYOUTS)}; known: {', '.join(LAYOUTS)}"
            problems.append(f"task {self.name}: unknown layout {self.layout!r}{known}")
        for key in ("max_seq_length", "max_target_length"):
            if getattr(self, key) < 0:
                problems.append(f"task {self.name}: {key} {getattr(self, key)} is below 0 (0 = no limit)")
        if not 0.0 <= self.valid_proportion < 1.0:
            problems.append(f"task {self.name}: valid_proportion {self.valid_proportion} is not in [0, 1)")
        raise_if_any(problems)

    @property
    def passage_variables(self) -> frozenset[str]:
        """The variables of templates that hold the passage; `source` as well where it is the source column."""
        names = {self.passage, "source"} if self.passage == self.source_column else {self.passage}
        return frozenset(names - {""})

    @property
    def kind(self) -> str:
        """The kind of its outputs, as metrics take it."""
        return LABELS if self.label_map is not None else (self.output or FREE_TEXT).kind

    @property
    def postprocessor(self) -> Postprocessor:
        """What the model's texts stand for.

        Raises:
            UserError: a target template that cannot be read, or does not go with the labels.
        """
        template = Template(self.target_template, "-target_template")
        return (self.output or FREE_TEXT) if self.label_map is None else written_labels(self.label_map, template)

    @property
    def monitors(self) -> tuple[str, ...]:
        """The figures of a validation that `-monitor` may name."""
        if self.kind == PASSAGES:
            return ("val_loss", *metric_names(PASSAGES))
        return metric_names(*dict.fromkeys((TEACHER_FORCED, TEXTS, self.kind)))

    def generated_metrics(self, monitor: str) -> tuple[str, ...]:
        """The metrics of a validation's generated rows: `exact_match`, the task's, and `monitor`, if it is one of this
        task (`TASK/METRIC` names the task among several)."""
        named = (name for name in self.metrics if METRICS[name].takes != PROBABILITIES)
        task, _, metric = monitor.rpartition("/")
        monitored = task in ("", self.name) and metric in self.monitors and is_generated(metric)
        return tuple(dict.fromkeys(("exact_match", *named, *((metric,) if monitored else ()))))

    def with_label_map(self, label_map: LabelMap) -> Task:
        """The same task with another label map; a task of other outputs gets the label metrics, one of labels keeps
        its separator unless the new map has one."""
        if self.label_map is None:
            metrics = default_metrics(LABELS)
            return dataclasses.replace(self, label_map=label_map, output=None, references="", metrics=metrics)
        separator = label_map.separator or self.label_map.separator
        return dataclasses.replace(self, label_map=label_map.joined_by(separator))

    def to_dict(self) -> dict[str, Any]:
        """Primitives for checkpoints and JSON; a key of `IF_SET` stands there if it is in use."""
        state = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        output = state.pop("output")
        label_map = None if self.label_map is None else self.label_map.to_dict()
        state |= {"label_map": label_map, "metrics": list(self.metrics), "placeholders": list(self.placeholders)}
        state |= {"postprocessor": postprocessor_dict(output)} if output else {}
        if self.label_map and self.label_map.separator:
            state["label_separator"] = self.label_map.separator
        return {key: value for key, value in state.items() if value or key not in IF_SET}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Task:
        """Inverse of `to_dict`; numbers may be written as text. Raises `UserError` on an unknown key or a wrong value.

        Without `metrics`, a task gets those of its outputs: of labels, of its postprocessor's kind, or of texts.
        """
        place = f"task {state.get('name', '')}".rstrip()
        known = task_keys()
        problems = unknown_keys(place, state, known)
        values: dict[str, Any] = {}
        for key in (key for key in known if key in state):
            try:
                values[key] = _field_value(key, state[key], place)
            except ValueError as error:
                problems.append(f"{place}: {key} {error}, not {state[key]!r}")
            except UserError as error:
                problems += error.problems
        problems += [f"{place}: key {key!r} is missing" for key in ("name",) if key not in state]
        read = set(values)
        separator = values.pop("label_separator", "")
        if separator and not values.get("label_map", "label_map" in state):
            problems.append(f"{place}: label_separator {separator!r} needs a label_map")
        if separator and values.get("label_map"):
            joined = collect(problems, lambda: _joined(values["label_map"], separator, place))
            values["label_map"] = joined or values["label_map"]
        for key in ("aliases", *FILES):  # aliases are of the built-in tasks alone
            values.pop(key, None)
        values["output"] = values.pop("postprocessor", None)
        kind = (values["output"] or FREE_TEXT).kind if values.get("label_map") is None else LABELS
        if {"label_map", "postprocessor"} & state.keys() - read:
            problems += metric_problems(place, values.pop("metrics", ()), _kind_named(state))
        defaults = {"name": "?", "description": "", "metrics": default_metrics(kind) or default_metrics(TEXTS)}
        task: Task | None = collect(problems, lambda: cls(**{**defaults, **values}))
        if task is None or problems:
            raise UserError(*problems)
        return task


def _kind_named(state: Mapping[str, Any]) -> str:
    """The kind of the outputs of a task whose label map or postprocessor cannot be read; empty where it is unknown."""
    named = state.get("postprocessor")
    kind = named.get("kind") if isinstance(named, Mapping) else named
    return LABELS if state.get("label_map") else kind if isinstance(kind, str) and kind in KINDS else ""


def _joined(label_map: LabelMap, separator: str, place: str) -> LabelMap:
    with errors_at(place):
        return label_map.joined_by(separator)


def _field_value(key: str, value: object, place: str) -> object:
    """Value of a `Task` field from primitives; `ValueError` says what it must be."""
    if key == "label_map":
        return None if value in (None, "") else LabelMap._of(value, f"{place}: label_map")
    if key == "postprocessor":
        return None if value in (None, "") else postprocessor_of(value, f"{place}: postprocessor")
    if key in FILES:
        return file_paths(key, value, place)
    if key == "label_separator" and not isinstance(value, str):
        raise ValueError("must be text, for example ', '")
    if key in ("metrics", "aliases", "placeholders"):
        if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
            return tuple(value)
        raise ValueError(f"must be a list of {'texts' if key == 'placeholders' else 'names'}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be plain text or a number")
    if key in ("source_column", "target_column"):
        text = str(value).strip()
        return int(text) if text.lstrip("-").isdecimal() else text
    for keys, kind, words in (
        (("max_seq_length", "max_target_length"), int, "must be a whole number of tokens"),
        (("valid_proportion",), float, "must be a number from 0 to 1"),
    ):
        if key in keys:
            try:
                return kind(str(value))
            except ValueError:
                raise ValueError(words) from None
    return str(value)


def file_paths(key: str, value: object, place: str) -> tuple[str, ...]:
    """The paths of a key of `FILES`: one, or a list of them. Raises `UserError` when it is something else."""
    values = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(path, str) and path.strip() for path in values):
        raise UserError(f"{place}: {key} must be a path or a list of paths, not {value!r}")
    return tuple(values)


def task_keys() -> tuple[str, ...]:
    """The keys that a task file may have."""
    fields = (field.name for field in dataclasses.fields(Task) if field.name != "output")
    return tuple(dict.fromkeys((*fields, *IF_SET, "aliases", *FILES)))


def task_names() -> tuple[str, ...]:
    """Names of the built-in tasks, sorted."""
    return tuple(sorted(path.stem for path in BUILT_IN.glob("*.yaml")))


def task_name(name: str) -> str:
    """The built-in task that `name` is another name of (key `aliases` of a task file), else `name` itself."""
    if not name or name in task_names() or name.endswith(FILE_SUFFIXES):
        return name
    contents = ((task, task_content(str(BUILT_IN / f"{task}.yaml"))) for task in task_names())
    return next((task for task, content in contents if name in content.get("aliases", ())), name)


def task_table() -> list[str]:
    """The built-in tasks: a name each, and below it the description, the columns, the kind of output, the metrics."""
    lines = []
    for task in map(get_task, task_names()):
        named = {"source": str(task.source_column), "target": str(task.target_column)}
        templates = Template(task.input_template), Template(task.references or task.target_template)
        sides = (", ".join(sorted(named.get(name, name) for name in read.variables)) for read in templates)
        told = (task.description, f"columns {' -> '.join(sides)}", f"{task.kind} by {', '.join(task.metrics)}")
        lines.append(task.name)
        for line in told:
            lines += textwrap.wrap(line, LINE_WIDTH, initial_indent="  ", subsequent_indent=" " * 4)
    return lines


def get_task(name_or_path: str, flag: str = "-task") -> Task:
    """The built-in task of that name, or the one that a .yaml/.yml/.json file describes (keys as in `Task`).

    Raises `UserError`, which begins with `flag`, on an unknown name (with the list) and on every mistake in a file.
    """
    name, names = task_name(name_or_path), task_names()
    if name not in names and not name.endswith(FILE_SUFFIXES):
        raise UserError(
            f"{flag} {name_or_path}: no such task{closest(name_or_path, names)}; known: {', '.join(names)}; "
            "or a .yaml file that describes a task"
        )
    path = str(BUILT_IN / f"{name}.yaml") if name in names else name
    content = task_content(path, flag)
    problems: list[str] = []
    with errors_at(f"{flag} {name_or_path}"):
        task: Task | None = collect(problems, lambda: Task.from_dict({"name": Path(path).stem, **content}))
        for key in ("input_template", "target_template", "references", *LANGUAGES):
            collect(problems, partial(Template, str(content.get(key, "")), key))
        if task is None or problems:
            raise UserError(*problems)
        if task.label_map is not None:
            written_labels(task.label_map, Template(task.target_template, "target_template"))
        return task


def task_content(path: str, flag: str = "-task") -> dict[str, Any]:
    """The keys and values of a task file, or of one that mixes tasks."""
    content = read_mapping_file(flag, path)
    if not isinstance(content, dict):
        raise UserError(f"{flag} {path}: expected a mapping with keys such as name, source_column, label_map")
    return content


def override_task(task: Task, data: DataFlags) -> Task:
    """`task` with the columns, templates and label map that the flags give in place of its own.

    Raises:
        UserError: a template or label map that cannot be read, or that do not go together.
    """
    if data.label_map:
        task = task.with_label_map(LabelMap.parse(data.label_map))
    if data.label_separator:
        if task.label_map is None:
            raise UserError(f"-label_separator {data.label_separator!r} needs labels: -label_map, or a -task with them")
        with errors_at("-label_separator"):
            task = replace(task, label_map=task.label_map.joined_by(data.label_separator))
    changes: dict[str, Any] = {}
    for name in ("input_template", "target_template", "source_column", "target_column"):
        value = getattr(data, name)
        is_column = name.endswith("column")
        raise_if_any(column_problems(name, value) if is_column else ())
        if value:
            changes[name] = int(value) if is_column and value.isdecimal() else value
    task = replace(task, **changes)
    read = Template(task.input_template, "-input_template").variables
    for name in LANGUAGES:
        value = getattr(data, name)
        if value and (getattr(task, name) or name in read or Template(value, f"-{name}").variables):
            task = replace(task, **{name: value})
    _ = task.postprocessor  # raises
    return task


def fixed_languages(task: Task, data: DataFlags) -> tuple[str, str]:
    """The languages of the source and the target that are those of all rows; empty where rows have their own."""
    templates = (Template(getattr(task, name) or getattr(data, name), f"-{name}") for name in LANGUAGES)
    source, target = ("" if template.variables else template.source for template in templates)
    return source, target
