"""Tasks, label maps and templates: what a row means and how it is written to and read from a model. No torch."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from errors import UserError, raise_if_any
from mapping_files import FILE_SUFFIXES, read_mapping_file

TEXT_METRICS = ("exact_match", "chrf", "bleu", "rouge1", "rouge2", "rougeL")
LABEL_METRICS = ("accuracy", "accuracy_corrected", "macro_f1", "micro_f1")
METRIC_NAMES = (*TEXT_METRICS, *LABEL_METRICS)


@dataclass(frozen=True)
class LabelMap:
    """Ordered bijection between label ids (values of the data) and label texts (what the model writes).

    Raises `UserError` when there is no entry, or when an id or a text is empty or occurs twice.
    """

    entries: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        problems = [] if self.entries else ["label map: no entry; write it as 0=부정,1=긍정"]
        for kind, values in (("id", self.ids), ("text", self.texts)):
            problems += [f"label map: empty {kind} in entry {n}" for n, v in enumerate(values, 1) if not v.strip()]
            counts = Counter(value.strip() for value in values if value.strip())
            problems += [f"label map: {kind} {v!r} occurs more than once" for v, count in counts.items() if count > 1]
        raise_if_any(problems)

    @classmethod
    def parse(cls, value: str) -> LabelMap:
        """Read the value of `-label_map`: `0=부정,1=긍정`, or a .json/.yaml/.yml file.

        The file holds a mapping from id to text, or a list of texts (their ids are then 0, 1, ...).
        """
        if value.endswith(FILE_SUFFIXES) and ("=" not in value or os.path.exists(value)):
            return cls._of(read_mapping_file("-label_map", value), f"-label_map {value}")
        pairs = []
        for number, item in enumerate(value.split(","), 1):
            label_id, equals, text = item.partition("=")
            if not equals:
                raise UserError(
                    f"-label_map {value!r}: entry {number} ({item.strip()!r}) is not ID=TEXT; write 0=부정,1=긍정, "
                    "or name a .json or .yaml file (needed for texts that hold a comma)"
                )
            pairs.append((label_id.strip(), text.strip()))
        with _errors_at(f"-label_map {value!r}"):
            return cls(tuple(pairs))

    @classmethod
    def _of(cls, content: object, place: str) -> LabelMap:
        """Build a label map from a mapping id -> text or a list of texts; `place` opens the error messages."""
        if isinstance(content, dict):
            pairs = list(content.items())
        elif isinstance(content, list | tuple):
            pairs = [(str(number), text) for number, text in enumerate(content)]
        else:
            raise UserError(f"{place}: expected a mapping from id to text, or a list of texts, not {content!r}")
        for label_id, text in pairs:
            if isinstance(text, bool) or not isinstance(text, str | int | float):
                raise UserError(f"{place}: the text of label {str(label_id)!r} must be plain text, not {text!r}")
        with _errors_at(place):
            return cls(tuple((str(key).strip(), str(text).strip()) for key, text in pairs))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Label ids in declared order."""
        return tuple(label_id for label_id, _ in self.entries)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Label texts in declared order."""
        return tuple(text for _, text in self.entries)

    @cached_property
    def _by_id(self) -> dict[str, str]:
        return dict(self.entries)

    @cached_property
    def _by_text(self) -> dict[str, str]:
        return {text: label_id for label_id, text in self.entries}

    @cached_property
    def _by_value(self) -> dict[str, str]:
        return {**{text.strip(): text for text in self.texts}, **{key.strip(): text for key, text in self.entries}}

    def text(self, label_id: str) -> str:
        """Text of a label id; `KeyError` for an unknown id."""
        return self._by_id[label_id]

    def id(self, text: str) -> str:
        """Id of a label text; `KeyError` for an unknown text."""
        return self._by_text[text]

    def lookup(self, value: str) -> str | None:
        """Label text of a data value: an id, else already a text (blanks around it ignored); None if unknown."""
        return self._by_value.get(value.strip())

    def nearest(self, text: str, max_distance: int | None = None) -> str | None:
        """Label text with the smallest edit distance (characters) to `text`; ties go to the first declared.

        None when no label lies within `max_distance`; no limit when that is None.
        """
        if text in self._by_text:
            return text
        import editdistance

        distance, best = min(
            ((int(editdistance.eval(text, label)), label) for label in self.texts), key=lambda pair: pair[0]
        )
        return best if max_distance is None or distance <= max_distance else None

    def correct(self, predictions: Sequence[str], max_distance: int | None = None) -> list[str | None]:
        """`nearest` of every prediction, worked out once per unique string."""
        known = {text: self.nearest(text, max_distance) for text in set(predictions)}
        return [known[text] for text in predictions]

    def rendered(self, template: Template) -> LabelMap:
        """The same ids with the texts that the target template makes of the label texts."""
        with _errors_at(f"{template.name} {template.source!r}"):
            return LabelMap(tuple((label_id, template.render({"target": text})) for label_id, text in self.entries))

    def describe(self) -> str:
        """`0=부정, 1=긍정`: the map as shown in messages."""
        return ", ".join(f"{label_id}={text}" for label_id, text in self.entries)

    def to_dict(self) -> dict[str, str]:
        """Primitives for checkpoints and JSON: id -> text, in declared order."""
        return dict(self.entries)

    @classmethod
    def from_dict(cls, state: Mapping[str, str]) -> LabelMap:
        """Inverse of `to_dict`."""
        return cls(tuple((str(key), str(text)) for key, text in state.items()))


def evaluation_labels(task_label_map: LabelMap | None, target_template: Template) -> LabelMap | None:
    """Label map as the model writes it: its texts rendered by the target template; None without a label map.

    Raises `UserError` when the template uses a variable other than `target`: a label would then have no fixed text.
    """
    if task_label_map is None:
        return None
    others = sorted(target_template.variables - {"target"})
    if others:
        raise UserError(
            f"{target_template.name} {target_template.source!r}: with a label map only {{{{ target }}}} may be used, "
            f"not {', '.join(others)}"
        )
    return task_label_map.rendered(target_template)


@dataclass(frozen=True)
class Variable:
    """A bare `{{ name }}` of a template."""

    name: str


class Template:
    """A sandboxed Jinja template over the columns of a row (plus `source` and `target`).

    `variables` are the names it reads. `parts` is set when it holds only literal text and bare `{{ name }}`: joining
    these gives exactly what `render` gives. A missing variable is an error, and newlines at the end are kept. Raises
    `UserError` on a syntax error, with `name` (the flag), the line and the reason.
    """

    def __init__(self, source: str, name: str = "-input_template") -> None:
        import jinja2
        from jinja2.meta import find_undeclared_variables
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.source = source
        self.name = name
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        environment.globals.clear()  # every name is a column, `range` and `dict` too
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            lines = source.splitlines() or [""]
            line = lines[min(error.lineno, len(lines)) - 1]
            raise UserError(f"{name}, line {error.lineno} ({line.strip()!r}): {error.message}") from None
        self.variables: frozenset[str] = frozenset(find_undeclared_variables(tree))
        self.parts: tuple[str | Variable, ...] | None = _plain_parts(tree)

    def render(self, row: Mapping[str, str]) -> str:
        """The text for one row; `ValueError` with a short reason when it cannot be rendered."""
        if self.parts is not None:
            try:
                return "".join(part if isinstance(part, str) else row[part.name] for part in self.parts)
            except KeyError as error:
                raise ValueError(f"{error} is undefined") from None
        try:
            return self._template.render(row)
        except Exception as error:
            raise ValueError(str(error) or type(error).__name__) from error

    def __reduce__(self) -> tuple[type[Template], tuple[str, str]]:
        return Template, (self.source, self.name)

    def __repr__(self) -> str:
        return f"Template({self.source!r}, name={self.name!r})"


def _plain_parts(tree: Any) -> tuple[str | Variable, ...] | None:
    """Literal texts and bare variables of a parsed template, or None when it holds anything else."""
    from jinja2 import nodes

    parts: list[str | Variable] = []
    for output in tree.body:
        if not isinstance(output, nodes.Output):
            return None
        for node in output.nodes:
            if isinstance(node, nodes.TemplateData):
                parts.append(node.data)
            elif isinstance(node, nodes.Name) and node.name != "self":
                parts.append(Variable(node.name))
            else:
                return None
    return tuple(parts)


@dataclass(frozen=True)
class Task:
    """What a data set means: its columns, templates, labels, metrics and default lengths (tokens; 0 = no limit).

    A column is a name or a number counted from 1. `hub_dataset` (`name` or `name:config`) is read when no
    `-train_data` is given; "" means that the task needs files. `valid_proportion` is the share of the training rows
    used for validation when no validation data are given. Raises `UserError` with every problem found.
    """

    name: str
    description: str
    source_column: str | int = 1
    target_column: str | int = 2
    input_template: str = "{{ source }}"
    target_template: str = "{{ target }}"
    label_map: LabelMap | None = None
    metrics: tuple[str, ...] = TEXT_METRICS
    max_seq_length: int = 0
    max_target_length: int = 0
    hub_dataset: str = ""
    valid_proportion: float = 0.0

    def __post_init__(self) -> None:
        problems = [] if self.name.strip() else ["task: name is empty"]
        for key in ("source_column", "target_column"):
            column = getattr(self, key)
            if column == "" or (isinstance(column, int) and column < 1):
                problems.append(f"task {self.name}: {key} {column!r} is no column; give a name, or a number from 1")
        for metric in self.metrics:
            if metric not in METRIC_NAMES:
                problems.append(f"task {self.name}: unknown metric {metric!r}; known: {', '.join(METRIC_NAMES)}")
            elif metric in LABEL_METRICS and self.label_map is None:
                problems.append(f"task {self.name}: metric {metric!r} needs a label_map")
        for key in ("max_seq_length", "max_target_length"):
            if getattr(self, key) < 0:
                problems.append(f"task {self.name}: {key} {getattr(self, key)} is below 0 (0 = no limit)")
        if not 0.0 <= self.valid_proportion < 1.0:
            problems.append(f"task {self.name}: valid_proportion {self.valid_proportion} is not in [0, 1)")
        raise_if_any(problems)

    def with_label_map(self, label_map: LabelMap) -> Task:
        """The same task with another label map; a task of free text gets the label metrics."""
        metrics = LABEL_METRICS if self.label_map is None else self.metrics
        return dataclasses.replace(self, label_map=label_map, metrics=metrics)

    def to_dict(self) -> dict[str, Any]:
        """Primitives for checkpoints and JSON."""
        state = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        label_map = None if self.label_map is None else self.label_map.to_dict()
        return {**state, "label_map": label_map, "metrics": list(self.metrics)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Task:
        """Inverse of `to_dict`; numbers may be written as text. Raises `UserError` on an unknown key or a wrong value.

        Without `metrics`, a task with a label map gets the label metrics and one without gets the text metrics.
        """
        place = f"task {state.get('name', '')}".rstrip()
        known = [field.name for field in dataclasses.fields(cls)]
        problems = [
            f"{place}: unknown key {key!r}{_closest(str(key), known)}; known: {', '.join(known)}"
            for key in state
            if key not in known
        ]
        values: dict[str, Any] = {}
        for key in (key for key in known if key in state):
            try:
                values[key] = _field_value(key, state[key], place)
            except ValueError as error:
                problems.append(f"{place}: {key} {error}, not {state[key]!r}")
            except UserError as error:
                problems += error.problems
        problems += [f"{place}: key {key!r} is missing" for key in ("name",) if key not in state]
        raise_if_any(problems)
        values.setdefault("description", "")
        values.setdefault("metrics", TEXT_METRICS if values.get("label_map") is None else LABEL_METRICS)
        return cls(**values)


def _field_value(key: str, value: object, place: str) -> object:
    """Value of a `Task` field from primitives; `ValueError` says what it must be."""
    if key == "label_map":
        return None if value in (None, "") else LabelMap._of(value, f"{place}: label_map")
    if key == "metrics":
        if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
            return tuple(value)
        raise ValueError("must be a list of names")
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


_TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Make `task` known under its name; `ValueError` when another task has that name."""
    if _TASKS.setdefault(task.name, task) != task:
        raise ValueError(f"a task named {task.name!r} is registered already")
    return task


def task_names() -> tuple[str, ...]:
    """Names of the built-in tasks, sorted."""
    importlib.import_module("datamodules.tasks")  # here and not above: the task files import this module
    return tuple(sorted(_TASKS))


def get_task(name_or_path: str) -> Task:
    """The built-in task of that name, or the one that a .yaml/.yml/.json file describes (keys as in `Task`).

    Raises `UserError` on an unknown name (with the list) and on every mistake in a file.
    """
    names = task_names()
    if name_or_path in _TASKS:
        return _TASKS[name_or_path]
    if not name_or_path.endswith(FILE_SUFFIXES):
        raise UserError(
            f"-task {name_or_path}: no such task{_closest(name_or_path, names)}; known: {', '.join(names)}; "
            "or a .yaml file that describes a task"
        )
    content = read_mapping_file("-task", name_or_path)
    if not isinstance(content, dict):
        raise UserError(f"-task {name_or_path}: expected a mapping with keys such as name, source_column, label_map")

    with _errors_at(f"-task {name_or_path}"):
        task = Task.from_dict({"name": Path(name_or_path).stem, **content})
        Template(task.input_template, "input_template")
        evaluation_labels(task.label_map, Template(task.target_template, "target_template"))
        return task


def _closest(word: str, choices: Sequence[str]) -> str:
    matches = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.5)
    return f" (did you mean {matches[0]}?)" if matches else ""


@contextmanager
def _errors_at(place: str) -> Iterator[None]:
    """Errors raised inside become a `UserError` whose lines begin with `place`."""
    try:
        yield
    except UserError as error:
        raise UserError(*(f"{place}: {problem}" for problem in error.problems)) from None
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
