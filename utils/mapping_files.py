"""JSON and YAML files that a user writes by hand (label maps, tasks), read strictly: every scalar stays text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.errors import UserError

FILE_SUFFIXES = (".yaml", ".yml", ".json")


def read_mapping_file(flag: str, path: str) -> object:
    """Content of a JSON or YAML file as mappings, lists and texts; a key that occurs twice is an error."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path}: not UTF-8 at byte {error.start}") from None
    if path.endswith(".json"):
        try:
            return json.loads(text, object_pairs_hook=_unique_keys, parse_int=str, parse_float=str)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{flag} {path}: {error}") from None
    import yaml

    try:
        return _yaml_value(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        line = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else path
        raise UserError(f"{flag} {line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{flag} {path}: {error}") from None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    repeated = [key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number])]
    if repeated:
        raise ValueError(f"key {repeated[0]!r} occurs more than once")
    return dict(pairs)


def _yaml_value(node: Any) -> object:
    """Every scalar as the text it was written as: in a label map `no` and `1.0` are not False and a number."""
    if node is None or isinstance(node.value, str):
        return "" if node is None else node.value
    if node.id == "sequence":
        return [_yaml_value(item) for item in node.value]
    return _unique_keys([(str(_yaml_value(key)), _yaml_value(value)) for key, value in node.value])
