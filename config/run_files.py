"""Run files: the flags of a command in a YAML or JSON file, flat or under the names of their groups.

A file says values and nothing else: no anchors, tags or merge keys. `${NAME}` is the environment variable, `$${NAME}`
the text. The `config.json` of a run is read as that run had it: paths and `$` as they are, without the flags that were
for one process, and without those left at their defaults.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from utils.errors import UserError, closest
from utils.mapping_files import FILE_SUFFIXES, json_value, read_text, yaml_node

if TYPE_CHECKING:
    from config.parser import FlagSpec

OF_A_RUN = "resolved"  # the part of a config.json that no other file has
NOT_GIVEN_BACK = ("once", "process")  # `FlagSpec.resume` of flags that are for one process
_VARIABLE = re.compile(r"\$(\$?)\{([^}]*)(\}?)")
_NAME = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)
_SUFFIX = re.compile(r":[\d.]+\Z")  # every N-th row, or the rate of a task
_FILE = re.compile(r"\.(tsv|txt|csv|jsonl|json|parquet|yaml|yml|ckpt|py)\Z", re.IGNORECASE)
_PLAIN = re.compile(r"[A-Za-z0-9_./가-힣][\w./-]*\Z")


@dataclass(frozen=True)
class Given:
    """The texts of one flag in a run file, and where they stand (file:line)."""

    texts: tuple[str, ...]
    place: str


@dataclass(frozen=True)
class _Entry:
    """A value of the file: one text, or None where nothing stands; texts of a list; or the entries of a group."""

    line: int
    value: str | list[_Entry] | dict[str, _Entry] | None


Groups: TypeAlias = Mapping[str, Sequence["FlagSpec"]]


def is_run_file(token: str) -> bool:
    """Whether the first word of a command line names a run file: no flag, and a YAML or JSON file by its ending."""
    return not token.startswith("-") and token.endswith(FILE_SUFFIXES)


def read_run_file(path: str, groups: Groups, whole: Groups) -> tuple[dict[str, Given], list[str]]:
    """The flags that the file gives, by name, and every problem of its keys, variables and kinds of value.

    The config.json of a run holds those of the `whole` groups, which its command does not all have, at their defaults.
    Raises `UserError` when the file cannot be read as one mapping.
    """
    entries = _entries(path)
    of_run = OF_A_RUN in entries and path.endswith(".json")
    entries = {key: entry for key, entry in entries.items() if not (of_run and key == OF_A_RUN)}
    specs = {name: spec for members in groups.values() for spec in members for name in (spec.name, *spec.aliases)}
    defaults = {spec.name: _default_texts(spec) for members in whole.values() for spec in members if of_run}
    given: dict[str, Given] = {}
    problems: list[str] = []
    for key, group, entry in _leaves(entries, groups):
        place = f"{path}:{entry.line}"
        spec = specs.get(key.replace("-", "_"))
        if key in defaults and key not in specs and _texts(entry, path, problems) in ([], defaults[key]):
            continue
        if spec is None or isinstance(entry.value, dict):
            problems.append(f"{place}: {_unknown(key, group, spec, specs, groups)}")
        elif group and spec not in groups[group]:
            home = next(name for name, members in groups.items() if spec in members)
            problems.append(f"{place}: {key} belongs to the group {home}, not to {group}")
        elif isinstance(entry.value, list) and not spec.repeat:
            problems.append(f"{place}: {key} takes one value, not a list")
        elif spec.name in given:
            problems.append(f"{place}: {key} stands at {given[spec.name].place} as well; give it once")
        elif not (of_run and spec.resume in NOT_GIVEN_BACK):
            known = len(problems)
            texts = _texts(entry, path, problems)
            if not of_run:
                texts = [_in_place(spec, _expanded(text, place, problems), path) for text in texts]
            if texts and len(problems) == known and not (of_run and texts == _default_texts(spec)):
                given[spec.name] = Given(tuple(texts), place)
    return given, problems


def _leaves(entries: Mapping[str, _Entry], groups: Groups) -> Iterator[tuple[str, str, _Entry]]:
    """(key, group, entry) of everything that is no group; the group of what stands flat is empty."""
    for key, entry in entries.items():
        if isinstance(entry.value, dict) and key in groups:
            for name, inner in entry.value.items():
                yield name, key, inner
        elif entry.value is not None or key not in groups:  # a group may be left empty
            yield key, "", entry


def _unknown(key: str, group: str, spec: FlagSpec | None, specs: Mapping[str, FlagSpec], groups: Groups) -> str:
    if spec is not None:
        return f"{key} takes a value, not keys of its own"
    if key == "<<":
        return "merge keys (<<) are not read; write the flags out"
    names = [*specs] if group else [*groups, *specs]
    return f"unknown key {key!r}{closest(key, names) or '; -h lists the flags'}"


def _texts(entry: _Entry, path: str, problems: list[str]) -> list[str]:
    """The texts of a value; none where nothing stands."""
    items = entry.value if isinstance(entry.value, list) else [entry]
    wrong = [item for item in items if isinstance(item.value, list | dict)]
    problems += [f"{path}:{item.line}: a list holds plain values here" for item in wrong]
    return [item.value for item in items if isinstance(item.value, str)]


def _default_texts(spec: FlagSpec) -> list[str]:
    values = spec.default if isinstance(spec.default, tuple) else (spec.default,)
    return [_json_text(value) for value in values]


def _expanded(text: str, place: str, problems: list[str]) -> str:
    """`text` with the environment variables it names; one that is not set is a problem."""

    def value(match: re.Match[str]) -> str:
        if match[1]:
            return match[0][1:]
        if not _NAME.match(match[2]) or not match[3]:
            problems.append(f"{place}: {match[0]} names no environment variable; the text itself is $${{...}}")
        elif match[2] not in os.environ:
            problems.append(f"{place}: the environment variable {match[2]} is not set")
        return os.environ.get(match[2], "")

    return _VARIABLE.sub(value, text)


def _in_place(spec: FlagSpec, text: str, path: str) -> str:
    """The value of a flag of files, seen from the folder of the run file; a name of something stays.

    What is read is a file when it begins with ./ or ../, has the ending of one, or has a slash and lies there.
    """
    if not spec.path or not text or text == "-":
        return text
    if spec.path == "listed":
        return ",".join(_in_place(replace(spec, path="read"), part.strip(), path) for part in text.split(","))
    if text.startswith("~/"):
        return os.path.expanduser(text)
    folder = os.path.dirname(path)
    joined = os.path.join(folder, text)
    if os.path.realpath(os.path.normpath(joined)) == os.path.realpath(joined):  # not so behind some symbolic links
        joined = os.path.normpath(joined)
    base = _SUFFIX.sub("", text)
    if spec.path == "written" or _FILE.search(base):
        return joined
    if text.startswith(("./", "../")):
        return joined if joined.startswith(("/", "../")) else f"./{joined}"  # no name of the hub
    return joined if "/" in base and os.path.exists(os.path.join(folder, base)) else text


# ---- reading


def _entries(path: str) -> dict[str, _Entry]:
    """The file as a mapping whose values know their lines."""
    text = read_text("run file", path)
    try:
        if path.endswith(".json"):
            top = _json_entry(json_value("run file", path, text), 1, _json_lines(text))
        else:
            top = _yaml_entry(yaml_node("run file", path, text), path)
    except RecursionError:
        raise UserError(f"run file {path}: nested too deep for a file of this kind") from None
    if top.value is None:
        return {}
    if not isinstance(top.value, dict):
        raise UserError(f"run file {path}: holds no flags; write name: value, a line each")
    return top.value


def _json_lines(text: str) -> dict[str, int]:
    """The line on which each key stands first."""
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        for key in re.findall(r'"([^"\\]*)"\s*:', line):
            lines.setdefault(key, number)
    return lines


def _json_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _json_entry(value: Any, line: int, lines: Mapping[str, int]) -> _Entry:
    if isinstance(value, dict):
        return _Entry(line, {key: _json_entry(inner, lines.get(key, line), lines) for key, inner in value.items()})
    if isinstance(value, list):
        return _Entry(line, [_json_entry(inner, line, lines) for inner in value])
    return _Entry(line, None if value is None else _json_text(value))


def _yaml_entry(node: Any, path: str) -> _Entry:
    if node is None:
        return _Entry(1, None)
    line = node.start_mark.line + 1
    if node.id == "scalar":
        return _Entry(line, None if node.tag.endswith(":null") else node.value)
    if node.id == "sequence":
        return _Entry(line, [_yaml_entry(item, path) for item in node.value])
    entries: dict[str, _Entry] = {}
    for key, value in node.value:
        at = key.start_mark.line + 1
        if key.id != "scalar":
            raise UserError(f"run file {path}:{at}: a key is plain text")
        if key.value in entries:
            raise UserError(f"run file {path}:{at}: key {key.value!r} occurs more than once")
        inner = _yaml_entry(value, path)
        entries[key.value] = _Entry(at, inner.value)
    return _Entry(line, entries)


# ---- writing


def run_file_text(usage: str, groups: Groups, titles: Mapping[str, str], values: Mapping[str, Any]) -> str:
    """A run file of all flags with their help; those that have their default are comments.

    Args:
        titles: of the groups.
        values: of the flags in force, by name.
    """
    synopsis = usage.strip().partition("\n\n")[0].splitlines()
    lines = [f"# {line[len('usage: ') :]}" for line in synopsis]  # the lines of it stand below each other
    lines += ["# Flags behind # have their defaults. Relative paths are seen from the folder of this file."]
    for group, members in groups.items():
        lines += ["", f"# {titles[group]}", f"{group}:"]
        for spec in members:
            mark = "# " if values[spec.name] == spec.default else ""
            lines += [f"  # {spec.help}", f"  {mark}{spec.name}: {_yaml_value(values[spec.name])}".rstrip()]
    return "\n".join(lines)


def _yaml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_yaml_value(one) for one in value) + "]"
    if value is None or not isinstance(value, str):
        return "" if value is None else _json_text(value)
    text = _VARIABLE.sub(lambda match: f"${match[0]}", value)
    is_plain = _PLAIN.match(text) and text.lower() != "null"
    return text if is_plain else json.dumps(text, ensure_ascii=not text.isprintable())
