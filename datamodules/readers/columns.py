"""Which columns of a file are the source, the target and the other variables of the templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from datamodules.readers.rows import ReadOptions
from task_utils import Task
from utils.errors import UserError, shortened

# Names that mark a first line as a header when they stand at the source and the target column.
_SOURCE_NAMES = """source src input inputs text document sentence question query premise article context content title
    sentence1 x 입력 원문 문장"""
_TARGET_NAMES = """target tgt trg output outputs label labels answer answers summary translation class category
    response sentence2 y hypothesis 출력 번역 정답 라벨"""

_USUAL = {"source": {*_SOURCE_NAMES.split()}, "target": {*_TARGET_NAMES.split(), *_SOURCE_NAMES.split()}}
LONGEST_NAME, MOST_COLUMNS = 60, 100  # that are kept of the first row of a file


@dataclass(frozen=True)
class Wanted:
    """The columns asked for: names, or numbers from 1; `extra` are further names used by the templates."""

    source: str | int
    target: str | int
    extra: tuple[str, ...]
    may_lack: frozenset[str]  # variables that a file or a row may be without

    @property
    def names(self) -> list[str]:
        """Names that a header must hold."""
        pairs = [("source", self.source), ("target", self.target), *((name, name) for name in self.extra)]
        return [name for variable, name in pairs if isinstance(name, str) and variable not in self.may_lack]


def wanted_columns(task: Task, needed: frozenset[str], options: ReadOptions) -> Wanted:
    """The columns of the options, else of the task; a text of digits is a number.

    Raises `UserError` for the number 0 and for a source that is the target.
    """
    source = _column("-source_column", options.source_column) or task.source_column
    target = _column("-target_column", options.target_column) or task.target_column
    if source == target and options.target_required:
        raise UserError(f"-source_column and -target_column are both {source!r}")
    extra = tuple(sorted(needed - {"source", "target"}))
    without_target = options.keep_all or not options.target_required
    return Wanted(source, target, extra, frozenset(options.optional + ("target",) * without_target))


def _column(flag: str, value: str) -> str | int:
    if not value.isdecimal():
        return value
    if int(value) == 0:
        raise UserError(f"{flag} 0: columns are counted from 1")
    return int(value)


def is_header(cells: Sequence[str], wanted: Wanted, header: str, path: str) -> bool:
    """Whether a first line is a header.

    For `auto`: when it holds a name that is asked for, or usual names stand at the numbered columns (of a file of one
    column: at the source alone). Raises `UserError` when names are asked for and it holds none, or `header` is false.
    """
    names = wanted.names
    if header == "true":
        return True
    if header == "false":
        if names:
            raise UserError(f"{path}: column {names[0]!r} is asked for by name, but -header is false; give its number")
        return False
    optional = [wanted.target] if isinstance(wanted.target, str) else []
    if any(name in cells for name in (*names, *optional)):
        return True
    if names:
        flag = "-source_column" if names[0] == wanted.source else "-target_column"
        hint = f"; where no line names the columns, {flag} takes a number" if names[0] not in wanted.extra else ""
        raise UserError(f"{no_column(path, names[0], cells)}{hint}")
    assert isinstance(wanted.source, int)
    sources, targets = _SOURCE_NAMES.split(), _TARGET_NAMES.split()
    source = _cell(cells, wanted.source)
    if len(cells) == 1 or wanted.target == wanted.source:
        return source in sources
    target = _cell(cells, wanted.target) if isinstance(wanted.target, int) else None
    return source in sources and target in (*targets, *sources) and source != target


def _cell(cells: Sequence[str], number: int) -> str | None:
    return cells[number - 1].strip().lower() if number <= len(cells) else None


def first_cells(cells: Sequence[str]) -> list[str]:
    """What is kept of the first row of a file: the names of its columns, if it has any."""
    return [cell.strip()[:LONGEST_NAME] for cell in cells[:MOST_COLUMNS]]


def other_columns(
    places: Mapping[str, int],
    of_training: Mapping[str, list[str]],
    columns: Mapping[str, list[str]],
    named: Set[str],
    mixed: bool,
) -> list[str]:
    """A line for each file whose column at a place has another name than in the first training file.

    Two names of the usual ones mean the same; but not where the file has the name of the training at another place.

    Args:
        places: from 1, of the source and the target, those that were not asked for.
        of_training: the first row of each training file.
        columns: that of each file.
        named: the files whose first row is names.
        mixed: the task is one of several, for which no flag names columns.
    """
    first = next((path for path in of_training if path in named), None)
    if first is None:
        return []
    expected = {variable: _cell(of_training[first], place) for variable, place in places.items()}
    problems = []
    for path, cells in columns.items():
        names = [cell.lower() for cell in cells]
        if path not in named and not set(expected.values()) <= set(names):
            continue  # rows from the first line on
        for variable, name in expected.items():
            place, found = places[variable], _cell(cells, places[variable])
            if name is None or found in (None, name) or (name not in names and {found, name} <= _USUAL[variable]):
                continue
            by_name = cells[names.index(name)] if name in names else ""
            problems.append(
                f"{path}: its column {place}, the {variable}, is {found!r}, that of {first} {name!r}:"
                f" {_of_a_task(variable, by_name) if mixed else _by_flag(variable, by_name, place)}"
            )
    return problems


def _by_flag(variable: str, name: str, place: int) -> str:
    by_name = f"-{variable}_column {name} takes it by its name, " if name else ""
    return f"{by_name}-{variable}_column {place} by its place, whatever its name"


def _of_a_task(variable: str, name: str) -> str:
    return f"{variable}_column: {name} in a file of its task takes it by its name" if name else "give it the same name"


def no_column(path: str, name: str | int, columns: Sequence[str]) -> str:
    """The error line for a column that is not there."""
    listed = shortened([f"{number}={column}" for number, column in enumerate(columns, 1)])
    return f"{path}: no column {name!r}; columns there are: {listed or 'none'}"


def locate(wanted: Wanted, names: Sequence[str] | None, width: int, path: str) -> dict[str, int | None]:
    """0-based position of `source`, `target` and every extra column; None for a target that is not there.

    A target that may lack is not there either when the source is asked for at its place (unlabelled rows).

    `names` is None for a file without a header of `width` columns. Raises `UserError` naming each column that is
    missing, with those there are.
    """
    listed = list(names) if names is not None else [f"(column {number})" for number in range(1, width + 1)]
    problems = []
    found: dict[str, int | None] = {}
    for variable, column in (("source", wanted.source), ("target", wanted.target), *((e, e) for e in wanted.extra)):
        position: int | None = None
        if isinstance(column, int):
            later = names is None and variable in wanted.may_lack  # the first rows may be without it, later ones not
            position = column - 1 if column <= len(listed) or later else None
        elif names is not None and column in listed:
            position = listed.index(column)
            if listed.count(column) > 1:
                places = ", ".join(str(number) for number, name in enumerate(listed, 1) if name == column)
                problems.append(f"{path}: column {column!r} occurs more than once ({places}); give its number")
        if position is None and variable not in wanted.may_lack:
            problems.append(no_column(path, column, listed))
        found[variable] = position
    if problems:
        raise UserError(*problems)
    if "target" in wanted.may_lack and found["target"] == found["source"]:
        found["target"] = None
    return found
