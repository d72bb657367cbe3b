"""Turns frozen dataclasses of flags into a command line: parsing, help, and every problem reported at once.

A command is one dataclass whose fields are groups; a group is a dataclass whose fields are flags, each made by
`flag(...)`. Single and double dash, underscore and dash are the same: `-save_path`, `--save-path`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import shlex
import shutil
import textwrap
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from config.run_files import is_run_file, read_run_file, run_file_text
from utils.errors import raise_if_any

TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")

_SPELLINGS = (  # the last words of a help page
    "Single and double dash, underscore and dash are the same; booleans take true/false or stand alone; of a flag that"
    " is given twice the last value counts. A .yaml or .json file that stands first gives flags too; -print_config"
    " writes one of the values in force. -version tells the version."
)

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class FlagSpec:
    """What one flag is: its name, type and default, what its values may be, and what it decides.

    A condition is the name of a flag (whose value is not the default), `name=value|value`, or several of these with
    blanks between, all of which hold; with each stands what to tell.
    """

    default: Any
    help: str  # states the unit, and the value that switches it off
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    aliases: tuple[str, ...] = ()
    metavar: str = ""
    required: bool = False
    unless: tuple[str, ...] = ()  # flags that are on where it is not required
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)  # without this condition it has no effect
    excludes: Mapping[str, str] = dataclasses.field(default_factory=dict)  # with this condition it contradicts
    # What a resume makes of another value than the saved run's: refuse it ("fixed"; with -resume_force the position
    # ("batches"), the state of the optimizer or the best score ("measure") begin anew, and "never" stays refused),
    # refuse it "if given" or where the best is told by "generated rows", compare what it came to on the device
    # ("arithmetic"), or take it ("free"). "kept" is "if given", and the saved value is taken over when a run goes on.
    # Those of a "process" are free, and not taken over when a run goes on; those of "once" do not stand in the command
    # that goes on either.
    resume: str = "fixed"
    change: str = ""  # what another value means from here on, if it is taken
    decides: bool | str = True  # whether predictions depend on it, or the flag that must be given for that
    # Of run files: "read" names a file, a folder, or something by its name, and "listed" several of these, joined by
    # commas; "written" names a file or a folder.
    path: str = ""
    trained: bool = False  # predictions take the value of the training where none is given
    name: str = ""
    kind: type = str
    repeat: bool = False


def flag(default: Any, help: str, **more: Any) -> Any:
    """Declare one flag as a dataclass field; `more` is what `FlagSpec` has besides."""
    return dataclasses.field(default=default, metadata={"spec": FlagSpec(default, help, **more)})


def free(default: Any, help: str, **more: Any) -> Any:
    """Declare a flag that decides neither what is trained nor what is predicted.

    So are those that say which rows are read, and how: the rows themselves are compared.
    """
    return flag(default, help, **{"resume": "free", "decides": False, **more})


def flag_groups(config_class: type, whole: bool = False) -> dict[str, list[FlagSpec]]:
    """The flags of a command, by group name (the field of `config_class`).

    A command that takes over the groups of another one may leave some of their flags out, which keep their defaults
    (`without`, a frozenset of names), declare some of them otherwise (`otherwise`, what `FlagSpec` has by name), and
    name groups that come `first`. `whole` leaves none out.
    """
    groups: dict[str, list[FlagSpec]] = {}
    group_types = get_type_hints(config_class)
    without: Collection[str] = () if whole else getattr(config_class, "without", ())
    otherwise: Mapping[str, Mapping[str, Any]] = getattr(config_class, "otherwise", {})
    first: Collection[str] = getattr(config_class, "first", ())
    for group_field in sorted(dataclasses.fields(config_class), key=lambda field: field.name not in first):
        group_class = group_types[group_field.name]
        types = get_type_hints(group_class)
        specs = [_spec(field, types[field.name]) for field in dataclasses.fields(group_class)]
        kept = [dataclasses.replace(spec, **otherwise.get(spec.name, {})) for spec in specs if spec.name not in without]
        if kept:
            groups[group_field.name] = kept
    return groups


def _spec(field: dataclasses.Field[Any], annotation: Any) -> FlagSpec:
    kinds = {int: int, float: float, bool: bool, str: str, float | None: float, tuple[str, ...]: str}
    spec: FlagSpec = field.metadata["spec"]
    return dataclasses.replace(spec, name=field.name, kind=kinds[annotation], repeat=annotation == tuple[str, ...])


def flag_specs(config_class: type) -> list[FlagSpec]:
    """The flags of a command in the order of `-h`."""
    return [spec for group in flag_groups(config_class).values() for spec in group]


def parse_flags(config_class: type[Config], argv: Sequence[str]) -> tuple[Config, frozenset[str], list[str]]:
    """Read `argv`, whose first word may be a run file, into a `config_class`.

    Returns the config, the names of the flags that were given, and the problems found (the config holds the
    default wherever a value was wrong, so that further checks can go on and everything is reported together).
    """
    specs = {name: spec for spec in flag_specs(config_class) for name in (spec.name, *spec.aliases)}
    texts, values, problems = _read(config_class, argv, specs)
    on = {spec.name for spec in specs.values() if _is_on(spec, texts)}
    problems += [
        f"-{spec.name} is required: {spec.help}"
        for spec in {spec.name: spec for spec in specs.values()}.values()
        if spec.required and spec.name not in texts and not on & {*spec.unless}
    ]
    group_types = get_type_hints(config_class)
    parts = {
        group: group_types[group](**{spec.name: values[spec.name] for spec in group_specs if spec.name in values})
        for group, group_specs in flag_groups(config_class).items()
    }
    return config_class(**parts), frozenset(texts), problems


def _read(
    config_class: type, argv: Sequence[str], specs: dict[str, FlagSpec]
) -> tuple[dict[str, Sequence[str]], dict[str, Any], list[str]]:
    """The texts given by flag name, those of the command line before those of its run file; their values; problems."""
    problems: list[str] = []
    values: dict[str, Any] = {}
    texts: dict[str, Sequence[str]] = {}
    if argv and is_run_file(argv[0]):
        in_file, problems = read_run_file(argv[0], flag_groups(config_class), flag_groups(config_class, whole=True))
        for name, given in in_file.items():
            texts[name] = given.texts
            problems += [f"{given.place}: {problem}" for problem in _take(specs[name], given.texts, values)]
        argv = argv[1:]
    on_command_line, wrong = _split(argv, specs)
    problems += wrong
    for name, given_texts in on_command_line.items():
        problems += _take(specs[name], given_texts, values)
    return {**texts, **on_command_line}, values, problems


def _take(spec: FlagSpec, texts: Sequence[str], values: dict[str, Any]) -> list[str]:
    """Put the value of a flag into `values`, or return what is wrong with it."""
    converted = [_convert(spec, text) for text in (texts if spec.repeat else texts[-1:])]
    wrong = [problem for _, problem in converted if problem]
    if not wrong:
        values[spec.name] = tuple(value for value, _ in converted) if spec.repeat else converted[0][0]
    return wrong


def _is_on(spec: FlagSpec, texts: Mapping[str, Sequence[str]]) -> bool:
    """Whether a flag is given with another value than its default."""
    return spec.name in texts and _convert(spec, texts[spec.name][-1])[0] != spec.default


def split_token(token: str) -> tuple[str, str | None] | None:
    """Flag name and inline value of `-name`, `--name`, `-name=value`; None when the token is no flag."""
    if not token.startswith("-"):
        return None
    body = token[2:] if token.startswith("--") else token[1:]
    if not body[:1].isalpha():
        return None
    name, separator, value = body.partition("=")
    return name.replace("-", "_"), (value if separator else None)


def names_flag(token: str, name: str) -> bool:
    """Whether the token is that flag, in any of its spellings."""
    return (split_token(token) or ("",))[0] == name


def _split(argv: Sequence[str], specs: dict[str, FlagSpec]) -> tuple[dict[str, list[str]], list[str]]:
    texts: dict[str, list[str]] = {}
    problems: list[str] = []
    index = 0
    while index < len(argv):
        token = argv[index]
        index += 1
        parsed = split_token(token)
        if parsed is None:
            way = "a run file stands first" if is_run_file(token) else "quote a value that holds blanks"
            problems.append(f"{token!r} belongs to no flag; {way}")
            continue
        name, value = parsed
        spec = specs.get(name)
        following = argv[index] if index < len(argv) else None
        if spec is None:
            problems.append(_unknown_flag(token, name, specs))
            if following is not None and split_token(following) is None:
                index += 1
            continue
        if value is None:
            is_flag = following is not None and (split_token(following) or ("", None))[0] in specs
            if spec.kind is bool and (following is None or split_token(following)):
                value = "true"
            elif following is None or is_flag:
                problems.append(f"-{name} needs a value: {spec.help}")
                continue
            else:
                value = following
                index += 1
        texts.setdefault(spec.name, []).append(value)
    return texts, problems


def _unknown_flag(token: str, name: str, specs: dict[str, FlagSpec]) -> str:
    close = difflib.get_close_matches(name, list(specs), n=1, cutoff=0.6)
    return f"unknown flag {token.partition('=')[0]}" + (f"; did you mean -{close[0]}?" if close else "; -h lists them")


def _convert(spec: FlagSpec, text: str) -> tuple[Any, str]:
    """The typed value and "", or None and the problem."""
    if spec.kind is bool:
        word = text.lower()
        if word in TRUE_WORDS + FALSE_WORDS:
            return word in TRUE_WORDS, ""
        return None, f"-{spec.name} {text}: true or false expected"
    if spec.kind in (int, float):
        noun = "a whole number" if spec.kind is int else "a number"
        try:
            number = spec.kind(text)
        except ValueError:
            return None, f"-{spec.name} {text}: {noun} expected"
        if not math.isfinite(number):
            return None, f"-{spec.name} {text}: {noun} expected"
        if spec.minimum is not None and number < spec.minimum:
            return None, f"-{spec.name} {text}: at least {spec.minimum:g} expected"
        if spec.maximum is not None and number > spec.maximum:
            return None, f"-{spec.name} {text}: at most {spec.maximum:g} expected"
        return number, ""
    if spec.choices and text not in spec.choices:
        close = difflib.get_close_matches(text, spec.choices, n=1, cutoff=0.6)
        hint = f"; did you mean {close[0]}?" if close else ""
        return None, f"-{spec.name} {text}: one of {', '.join(spec.choices)} expected{hint}"
    return text, ""


def saved_tokens(config_class: type, saved: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The tokens that give the flags of `saved` (of `to_dict`) once more, and what is wrong with its values."""
    tokens: list[str] = []
    problems: list[str] = []
    for spec in flag_specs(config_class):
        value = saved.get(spec.name)
        values = value if spec.repeat and isinstance(value, list) else [value]
        for one in values if value is not None else []:
            text = str(one).lower() if isinstance(one, bool) else str(one)
            fits = isinstance(one, str) == (spec.kind is str) and not isinstance(one, list | dict)
            problem = _convert(spec, text)[1] if fits else f"{spec.name} is {text[:60]}, which is no value of this flag"
            problems += [problem] if problem else []
            tokens += [] if problem else [f"-{spec.name}={text}"]
    return tokens, problems


def without_run_file(argv: Sequence[str], config: Any, given: Collection[str]) -> list[str]:
    """`argv` with the flags of its run file, as `config` has them, in place of the file."""
    if not argv or not is_run_file(argv[0]):
        return list(argv)
    return saved_tokens(type(config), {name: value for name, value in to_dict(config).items() if name in given})[0]


def without_flags(argv: Sequence[str], names: Collection[str]) -> list[str]:
    """`argv` less the named flags and their values."""
    kept: list[str] = []
    dropping = False  # the value of a flag that is left out
    for token in argv:
        parsed = split_token(token)
        if parsed is None and dropping:
            dropping = False
            continue
        name, value = parsed or ("", None)
        dropping = name in names and value is None
        if name not in names:
            kept.append(token)
    return kept


def information(config_class: type, usage: str, argv: Sequence[str]) -> str:
    """What `-h` (`-help`), `-version` or `-print_config` among the tokens asks for; empty when there is none.

    Raises `UserError` when `-print_config` stands with flags that are wrong.
    """
    asked = {token.lstrip("-").replace("-", "_") for token in argv if token.startswith("-")}
    if asked & {"h", "help"}:
        return help_text(config_class, usage)
    if "version" in asked:
        return version()
    if "print_config" in asked:
        others = [token for token in argv if token.lstrip("-").replace("-", "_") != "print_config"]
        return config_text(config_class, usage, others)
    return ""


def config_text(config_class: type, usage: str, argv: Sequence[str]) -> str:
    """A commented run file of the values in force; flags that a command requires may be missing."""
    specs = {name: spec for spec in flag_specs(config_class) for name in (spec.name, *spec.aliases)}
    _, values, problems = _read(config_class, argv, specs)
    raise_if_any(problems)
    values = {spec.name: values.get(spec.name, spec.default) for spec in specs.values()}
    group_types = get_type_hints(config_class)
    titles = {group: _title(group_types[group], group) for group in flag_groups(config_class)}
    return run_file_text(usage, flag_groups(config_class), titles, values)


def _title(group_class: type, group: str) -> str:
    return (group_class.__doc__ or group).strip().splitlines()[0].rstrip(".")


def version() -> str:
    """The name and the version of the project."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return f"{project['name']} {project['version']}"


def help_text(config_class: type, usage: str) -> str:
    """The whole help page, as wide as the terminal: usage, then the flags by group with type, default and unit."""
    width = max(60, min(110, shutil.get_terminal_size((100, 24)).columns))
    lines = [usage.strip(), ""]
    group_types = get_type_hints(config_class)
    for group, specs in flag_groups(config_class).items():
        lines.append(_title(group_types[group], group))
        for spec in specs:
            names = ", ".join(f"-{name}" for name in (spec.name, *spec.aliases))
            heading = f"{names} {_value_word(spec)}".replace("|", "| ")  # choices may be broken behind each
            wrapped = textwrap.wrap(heading, width, initial_indent="  ", subsequent_indent="    ")
            lines += [line.replace("| ", "|") for line in wrapped]
            sentence = f"{spec.help} {_default_words(spec)}".rstrip()
            indent = " " * 8  # names with a hyphen stay whole
            lines += textwrap.wrap(
                sentence, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
            )
        lines.append("")
    return "\n".join([*lines, *textwrap.wrap(_SPELLINGS, width, break_on_hyphens=False)])


def _value_word(spec: FlagSpec) -> str:
    if spec.choices:
        return "{" + "|".join(spec.choices) + "}"
    word = {int: "N", float: "X", bool: "true|false", str: "TEXT"}[spec.kind]
    return (spec.metavar or word) + (" (may repeat)" if spec.repeat else "")


def _default_words(spec: FlagSpec) -> str:
    if spec.required:
        return "(required)"
    if spec.default is None:
        return "(default: automatic)"
    if spec.default in ("", ()):
        return ""
    value = str(spec.default).lower() if isinstance(spec.default, bool) else spec.default
    return f"(default: {value})"


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved flags as plain values, by flag name; tuples become lists."""
    flat: dict[str, Any] = {}
    for group_field in dataclasses.fields(config):
        for name, value in dataclasses.asdict(getattr(config, group_field.name)).items():
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def shown(name: str, value: Any) -> str:
    """A flag as the user writes it."""
    if isinstance(value, bool):
        return f"-{name}" if value else f"-{name} false"
    return " ".join(
        f"-{name} {shlex.quote(str(one))}" for one in (value if isinstance(value, list | tuple) else [value])
    )


def deciding_flags(config: Any) -> dict[str, Any]:
    """The flags that decide what is predicted, by the name that the user types, as JSON values."""
    values = to_dict(config)
    specs = flag_specs(type(config))
    return {f"-{spec.name}": values[spec.name] for spec in specs if values.get(str(spec.decides), spec.decides)}
