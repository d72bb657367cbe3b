"""The space of a search: flags of train.py with the values that each may take, from a YAML file that a user writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from config.checks import has_effect
from config.flags.train import TrainConfig
from config.parser import FlagSpec, flag_specs, parse_flags
from training.checks import check_train
from utils.errors import UserError, closest, raise_if_any
from utils.mapping_files import lines_of_keys, read_mapping_file, unknown_keys

FLAG = "-search_space"
RANGE_KEYS = ("min", "max", "log", "step")
NOT_SEARCHED = ("once", "process", "measure", "generated rows")  # they do not train, or change what is measured
MOST_CHOICES = 1000
ROUNDING = 1e-6  # of the number of steps in a range


@dataclasses.dataclass(frozen=True)
class Dimension:
    """The values of one flag: `choices`, or the numbers from `low` to `high`, both included.

    Args:
        place: `file:line`.
        step: between two numbers; None = 1 for whole numbers, any number for others.
    """

    spec: FlagSpec
    place: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    @property
    def name(self) -> str:
        """That of the flag."""
        return self.spec.name

    @property
    def extremes(self) -> tuple[str, ...]:
        """The values as they are written, of a range its two ends."""
        return self.choices or (str(self.low), str(self.high))

    @property
    def depends_on(self) -> set[str]:
        """The flags that decide whether this one may be given."""
        conditions = [*self.spec.needs, *self.spec.excludes]
        return {part.partition("=")[0] for condition in conditions for part in condition.split()}

    @property
    def settings(self) -> Any:
        """The values as JSON."""
        if self.choices:
            return [*self.choices]
        return {"min": self.low, "max": self.high, "log": self.log, "step": self.step}

    def suggest(self, trial: Any) -> str:
        """What an optuna trial takes, as it is written on a command line."""
        if self.choices:
            return str(trial.suggest_categorical(self.name, self.choices))
        if self.spec.kind is int:
            step = 1 if self.step is None else int(self.step)
            return str(trial.suggest_int(self.name, int(self.low), int(self.high), step=step, log=self.log))
        return repr(trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log))

    def value(self, text: str) -> Any:
        """What optuna knows `text` as."""
        return text if self.choices else self.spec.kind(text)

    def distribution(self) -> Any:
        """The optuna distribution that `suggest` draws from."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        if self.spec.kind is int:
            step = 1 if self.step is None else int(self.step)
            return distributions.IntDistribution(int(self.low), int(self.high), step=step, log=self.log)
        return distributions.FloatDistribution(self.low, self.high, step=self.step, log=self.log)


def read_space(path: str) -> list[Dimension]:
    """The dimensions of a file, those that depend on others last.

    Raises:
        UserError: with every problem of the file, each with its line.
    """
    if not path.endswith((".yaml", ".yml")):
        raise UserError(f"{FLAG} {path}: a YAML file is expected, its name ending in .yaml")
    content = read_mapping_file(FLAG, path)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{FLAG} {path}: flags with their values are expected, such as `batch_size: [8, 16]`")
    lines = lines_of_keys(path)
    specs = {name: spec for spec in flag_specs(TrainConfig) for name in (spec.name, *spec.aliases)}
    problems: list[str] = []
    space: dict[str, Dimension] = {}
    for key, values in content.items():
        place = f"{path}:{lines[str(key)]}"
        spec = specs.get(str(key).lstrip("-").replace("-", "_"))
        if spec is None:
            problems.append(f"{place}: unknown flag {key!r}{closest(str(key), list(specs))}")
        elif spec.repeat or spec.required or spec.resume in NOT_SEARCHED:
            problems.append(f"{place}: -{spec.name} cannot be searched; give it on the command line")
        elif spec.name in space:
            problems.append(f"{place}: -{spec.name} stands in {space[spec.name].place} as well")
        else:
            dimension, wrong = _dimension(spec, place, values)
            problems += [f"{place}: {problem}" for problem in wrong]
            space[spec.name] = dimension
    raise_if_any(problems)
    return _in_order([*space.values()])


def _in_order(space: list[Dimension]) -> list[Dimension]:
    """The dimensions, each after those that its conditions name."""
    ordered: list[Dimension] = []
    while space:
        names = {dimension.name for dimension in space}
        free = [dimension for dimension in space if not dimension.depends_on & (names - {dimension.name})]
        ordered.append((free or space)[0])
        space = [dimension for dimension in space if dimension is not ordered[-1]]
    return ordered


def _dimension(spec: FlagSpec, place: str, values: object) -> tuple[Dimension, list[str]]:
    nothing = Dimension(spec, place)
    if isinstance(values, Mapping):
        return _range(spec, place, values)
    if not isinstance(values, list) or not values:
        expected = "a list of values, or {min, max} of a number, is expected; give a single value on the command line"
        return nothing, [f"{spec.name}: {expected}"]
    if not all(isinstance(value, str) for value in values):
        return nothing, [f"{spec.name}: a list of plain values is expected"]
    if len({*values}) < len(values) or len(values) > MOST_CHOICES:
        return nothing, [f"{spec.name}: a value occurs twice, or there are more than {MOST_CHOICES:,}"]
    return Dimension(spec, place, choices=tuple(values)), value_problems(spec.name, values)


def _range(spec: FlagSpec, place: str, values: Mapping[Any, object]) -> tuple[Dimension, list[str]]:
    nothing, name = Dimension(spec, place), spec.name
    if spec.kind not in (int, float):
        return nothing, [f"{name}: is no number; give a list of its values"]
    problems = unknown_keys(name, values, RANGE_KEYS)
    problems += [f"{name}: {key} is missing" for key in ("min", "max") if key not in values]
    texts = {key: str(values[key]) for key in ("min", "max", "step") if key in values}
    problems += value_problems(name, [texts[key] for key in ("min", "max") if key in texts])
    log = str(values.get("log", "false")).lower()
    if log not in ("true", "false"):
        problems.append(f"{name}: log is {log}; true or false expected")
    if problems:
        return nothing, problems
    try:
        step = spec.kind(texts["step"]) if "step" in texts else None
    except ValueError:
        return nothing, [f"{name}: step {texts['step']}: a number as of -{name} expected"]
    low, high = spec.kind(texts["min"]), spec.kind(texts["max"])
    if not low < high:
        problems.append(f"{name}: min {texts['min']} is not below max {texts['max']}")
    if step is not None and not 0 < step <= high - low:
        problems.append(f"{name}: step {texts['step']}: above 0 and at most max - min expected")
    elif step is not None and abs((high - low) / step - round((high - low) / step)) > ROUNDING:
        problems.append(f"{name}: max - min is no multiple of step {texts['step']}")
    if log == "true" and low <= 0:
        problems.append(f"{name}: log needs a min above 0")
    if log == "true" and step is not None:
        problems.append(f"{name}: log and step exclude each other")
    return Dimension(spec, place, low=low, high=high, log=log == "true", step=step), problems


def value_problems(name: str, texts: Sequence[str]) -> list[str]:
    """What train.py's parser has against values of a flag."""
    others = parse_flags(TrainConfig, [])[2]
    found = [problem for text in texts for problem in parse_flags(TrainConfig, [f"-{name}={text}"])[2]]
    return [problem for problem in dict.fromkeys(found) if problem not in others]


def as_tokens(flags: Mapping[str, str]) -> list[str]:
    """The words of a command line that give `flags`."""
    return [f"-{name}={text}" for name, text in flags.items()]


def draw(space: Sequence[Dimension], fixed: Sequence[str], trial: Any) -> dict[str, str]:
    """The flags of a trial; one that has no effect beside the others, or contradicts them, is left out."""
    flags: dict[str, str] = {}
    for dimension in space:
        config = parse_flags(TrainConfig, [*fixed, *as_tokens(flags)])[0]
        if has_effect(dimension.spec, config):
            flags[dimension.name] = dimension.suggest(trial)
    return flags


def check_space(space: Sequence[Dimension], fixed: Sequence[str], problems: list[str]) -> None:
    """What train.py has against each value of the space beside the fixed flags, appended to `problems`.

    Args:
        fixed: words of the command line that have no problem themselves, with a -save_path.
    """
    for dimension in space:
        context = _needed_by(dimension, space)
        before = _train_problems([*fixed, *context])
        for text in dimension.extremes:
            found = _train_problems([*fixed, *context, f"-{dimension.name}={text}"])
            told = [problem for problem in found if problem not in before]
            problems += [f"{dimension.place}: {problem}" for problem in dict.fromkeys(told)]


def _needed_by(dimension: Dimension, space: Sequence[Dimension]) -> list[str]:
    """Values of other dimensions under which this one has an effect."""
    tokens = []
    for condition in dimension.spec.needs:
        for part in condition.split():
            name, _, wanted = part.partition("=")
            others = [other for other in space if other.name == name]
            values = [text for other in others for text in other.extremes if text in wanted.split("|") or not wanted]
            tokens += [f"-{name}={values[-1]}"] if values else []
    return tokens


def _train_problems(tokens: Sequence[str]) -> list[str]:
    config, given, problems = parse_flags(TrainConfig, tokens)
    check_train(config, given, problems)
    return problems
