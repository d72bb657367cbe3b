"""Files as somebody hostile or a bad disk might leave them: seeded changes of a good one, and what may come of it."""

from __future__ import annotations

import copy
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.errors import RunError, UserError

LONGEST_SECONDS = 20.0  # of one try; most take some hundredths
LONGEST_LINE = 4000  # characters
JSON_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 2**31, 2**70, -(2**70), 0.5, 1e308, math.nan, math.inf, -math.inf),
    *("", "x", "x" * 300, "\x1b[31m\nerror: no", "/etc/passwd", "../../x", "384", "auto", "한국어"),
    *([], {}, [None], [[0]], {"x": 1}, {"": {}}, ["a", 1], {"auto_map": {"AutoConfig": "evil.Evil"}}),
)


def torch_values() -> list[Any]:
    """What a .ckpt can hold besides JSON's values."""
    return [
        *(b"x", (1, 2), {1, 2}, {1: 2}, {None: 1}, "\ud800", "\0", torch.float16),
        *(torch.zeros(()), torch.zeros(3), torch.zeros(2, 3, dtype=torch.bfloat16), torch.arange(5)),
        *(nn.Parameter(torch.ones(3)), torch.ones(3, requires_grad=True), torch.eye(3).to_sparse()),
        *(torch.zeros(3, device="meta"), torch.ones(3, dtype=torch.complex64).conj(), torch.tensor(math.nan)),
        *(torch.zeros(1).expand(1 << 20, 1 << 20), torch.zeros(1, dtype=torch.uint8).expand(1 << 40)),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    ]


def places_of(content: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all entries in nested dicts and lists, as keys from the outside in."""
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in entries for place in ((*above, key), *places_of(value, (*above, key)))]


def change_one(content: Any, values: list[Any], chance: random.Random) -> tuple[Any, str]:
    """A copy with one entry removed or of another value, and what was done. Every depth is as likely as another."""
    places = places_of(content)
    depth = chance.choice(sorted({len(place) for place in places}))
    place = chance.choice([place for place in places if len(place) == depth])
    changed = _copy(content)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    if chance.random() < 0.2:
        del inner[place[-1]]
        return changed, f"{place} removed"
    inner[place[-1]] = value = chance.choice(values)
    shown = repr(value)[:60] if not isinstance(value, torch.Tensor) else f"{value.dtype} {value.layout} {value.device}"
    return changed, f"{place} = {shown}"


def _copy(content: Any) -> Any:
    """A copy of the dicts and lists; tensors are shared."""
    if isinstance(content, dict):
        return {key: _copy(value) for key, value in content.items()}
    return [_copy(value) for value in content] if isinstance(content, list) else copy.copy(content)


def change_bytes(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """A copy cut, with other bytes in one place, or with a piece of it twice."""
    start = chance.randrange(len(content) + 1)
    end = min(len(content), start + chance.choice((0, 1, 2, 30)))
    odd = (b"", b"\0", b"\xff\xfe", b"\x80", b'"', b"\n", b"\t", b"[" * 100_000, b"{" * 3000, b"\xed\xa0\x80")
    middle = chance.choice((*odd, content[:end]))
    cut = chance.random() < 0.2
    return content[:start] if cut else content[:start] + middle + content[end:], f"bytes {start} to {end}, cut {cut}"


def outcome(use: Callable[[], Any]) -> str:
    """What `use` came to: empty if it is as a user may meet it, else what is wrong with it.

    It may give a result, or raise one of our errors, soon and in short lines.
    """
    began = time.monotonic()
    problems: tuple[str, ...] = ()
    try:
        use()
    except UserError as error:
        problems = error.problems
    except RunError as error:
        problems = (str(error),)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"[:300]
    seconds = time.monotonic() - began
    if seconds > LONGEST_SECONDS:
        return f"took {seconds:.0f} s"
    for line in problems:
        if len(line) > LONGEST_LINE:
            return f"a line of {len(line)} characters: {line[:200]}"
    return ""


def json_change(path: Path, chance: random.Random) -> str:
    """Change one entry, or some bytes, of a JSON file in place; returns what was done."""
    content = path.read_bytes()
    try:
        tree = json.loads(content)
    except ValueError:
        tree = None
    if isinstance(tree, dict) and chance.random() < 0.8:
        changed, told = change_one(tree, list(JSON_VALUES), chance)
        path.write_text(json.dumps(changed), encoding="utf-8")
    else:
        new, told = change_bytes(content, chance)
        path.write_bytes(new)
    return f"{path.name}: {told}"
