"""JSON and YAML files that a user writes by hand (label maps, tasks), read strictly: every scalar stays text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from utils.errors import UserError, closest

FILE_SUFFIXES = (".yaml", ".yml", ".json")
MOST_BYTES = 1 << 20  # of such a file: tens of thousands of labels, and seconds of the YAML parser
UNREAD_MARKS = {  # by the class of their tokens
    "AnchorToken": "anchors (&name) are not read; write it out",
    "AliasToken": "aliases (*name) are not read; write it out",
    "TagToken": "tags (!name) are not read; write the value itself",
    "DirectiveToken": "directives (%NAME) are not read",
}


def read_mapping_file(flag: str, path: str) -> object:
    """Content of a JSON or YAML file as mappings, lists and texts.

    Raises `UserError` for a key that occurs twice, a YAML alias, a file above `MOST_BYTES`, and what is no plain file
    (a pipe may never end).
    """
    text = read_text(flag, path)
    if path.endswith(".json"):
        return json_value(flag, path, text)
    with _yaml_errors(flag, path, text):
        import yaml

        return _yaml_value(yaml.compose(text, Loader=yaml.SafeLoader), set())


def read_text(flag: str, path: str) -> str:
    """The text of a plain file of up to `MOST_BYTES`; `UserError` for any other."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{flag} {path}: is no regular file")
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"{flag} {path}: above {MOST_BYTES:,} bytes, the most that is read")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path}: not UTF-8 at byte {error.start}") from None


def json_value(flag: str, path: str, text: str) -> object:
    """What a JSON text says, its numbers as texts. Raises `UserError` where it is none, and for a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_int=str, parse_float=str)
    except RecursionError:
        raise _too_deep(flag, path, text) from None
    except ValueError as error:
        raise UserError(f"{flag} {path}: {error}") from None


def yaml_node(flag: str, path: str, text: str) -> Any:
    """The root node of a YAML text, whose nodes know their lines; None where nothing stands.

    Raises `UserError` where it is no YAML, and for anchors, aliases, tags and directives.
    """
    with _yaml_errors(flag, path, text):
        import yaml

        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if reason := UNREAD_MARKS.get(type(token).__name__):
                raise yaml.MarkedYAMLError(problem=reason, problem_mark=token.start_mark)
        return yaml.compose(text, Loader=yaml.SafeLoader)


@contextmanager
def _yaml_errors(flag: str, path: str, text: str) -> Iterator[None]:
    import yaml

    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"{path}:{mark.line + 1}" if mark else path
        is_template = mark and "{{" in (*text.splitlines(), "")[mark.line]  # the end of the text is a line of its own
        quoted = '; YAML reads {{ as the start of a mapping: put a template in quotes, "{{ source }}"'
        raise UserError(f"{flag} {line}: {error.problem}{quoted if is_template else ''}") from None
    except RecursionError:
        raise _too_deep(flag, path, text) from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{flag} {path}: {error}") from None


def lines_of_keys(path: str) -> dict[str, int]:
    """The lines, from 1 on, of the outermost keys of a file that `read_mapping_file` has read as a mapping."""
    import yaml

    with open(path, encoding="utf-8-sig") as file:
        node: Any = yaml.compose(file, Loader=yaml.SafeLoader)
    return {str(key.value): key.start_mark.line + 1 for key, _ in node.value}


def unknown_keys(place: str, keys: Iterable[object], known: Sequence[str]) -> list[str]:
    """A problem for each of the keys that is not known."""
    return [
        f"{place}: unknown key {key!r}{closest(str(key), known)}; known: {', '.join(known)}"
        for key in keys
        if key not in known
    ]


def _too_deep(flag: str, path: str, text: str) -> UserError:
    """Names the line that opens most brackets; of several the one that is indented most."""
    lines = text.splitlines()
    depths = [(line.count("[") + line.count("{"), len(line) - len(line.lstrip())) for line in lines]
    return UserError(f"{flag} {path}:{depths.index(max(depths)) + 1}: nested too deep for a file of this kind")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"key {key!r} occurs more than once")
        values[key] = value
    return values


def _yaml_value(node: Any, seen: set[int]) -> object:
    """Every scalar as the text it was written as: in a label map `no` and `1.0` are not False and a number.

    A node that was `seen` stands behind an alias; a few of these can stand for more values than memory holds.
    """
    import yaml

    if node is None:
        return ""
    if id(node) in seen:
        raise yaml.MarkedYAMLError(problem="aliases (*name) are not read; write it out", problem_mark=node.start_mark)
    seen.add(id(node))
    if isinstance(node.value, str):
        return node.value
    if node.id == "sequence":
        return [_yaml_value(item, seen) for item in node.value]
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key is plain text", problem_mark=key.start_mark)
    return _unique_keys([(str(_yaml_value(key, seen)), _yaml_value(value, seen)) for key, value in node.value])
