"""Python files of the user (-user_code): metrics, kinds of output, layouts and architectures of one's own.

A file registers what it brings when it is imported: `metrics.registry.register`, `postprocessors.kinds.register`,
`datamodules.readers.layouts.register`, or `AutoConfig.register` and `AutoModelForSeq2SeqLM.register` of transformers.
It is imported only where the flag names it, never because a checkpoint, a config.json or a model folder does.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError, closest, first_line, raise_if_any

VARIABLE = "S2S_USER_CODE"  # the files, for the processes that a prediction starts


def import_user_code(paths: Sequence[str]) -> None:
    """Import the files, in this order; processes that are started can do the same with `import_inherited`.

    Raises:
        UserError: no such file, a name that another module has, or what the file raised, with its line.
    """
    raise_if_any(problem for path in paths for problem in _path_problems(path))
    for path in paths:
        place = Path(path).resolve()
        if str(place.parent) not in sys.path:
            sys.path.append(str(place.parent))  # at the end: it hides no module, and pickles find it in other processes
        try:
            importlib.import_module(place.stem)
        except (Exception, SystemExit) as error:
            raise UserError(f"-user_code {_line_of(error, place, path)}: {type(error).__name__}: {error}") from error
    if paths:
        os.environ[VARIABLE] = os.pathsep.join(str(Path(path).resolve()) for path in paths)


def import_inherited() -> None:
    """Import the files that the process which started this one was given."""
    import_user_code([path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path])


@contextmanager
def errors_of_user_code(what: str) -> Iterator[None]:
    """Turn what the user's files raise inside into one line that `what` opens; other errors stay as they are.

    Raises:
        UserError: with the line of the user's file.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        for path in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
            if (line := _line_of(error, Path(path), path)) != path:
                raise UserError(f"{what}: -user_code {line}: {type(error).__name__}: {first_line(error)}") from error
        raise


def _path_problems(path: str) -> list[str]:
    place = Path(path)
    if place.suffix != ".py":
        return [f"-user_code {path}: give a .py file"]
    if not place.is_file():
        there = sorted(other.name for other in place.parent.glob("*.py")) if place.parent.is_dir() else []
        return [f"-user_code {path}: no such file{closest(place.name, there)}"]
    if not place.stem.isidentifier():
        return [f"-user_code {path}: the name must be one that Python can import: letters, digits and _"]
    known = sys.modules.get(place.stem)
    spec = getattr(known, "__spec__", None) if known else importlib.util.find_spec(place.stem)
    if (known or spec) and (spec is None or spec.origin != str(place.resolve())):
        return [f"-user_code {path}: a module named {place.stem} is there already; choose another name"]
    return []


def _line_of(error: BaseException, place: Path, path: str) -> str:
    """`file:line` of the user's own line that raised, as far as it is known."""
    if isinstance(error, SyntaxError) and error.filename == str(place):
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(place)]
    return f"{path}:{lines[-1]}" if lines else path
