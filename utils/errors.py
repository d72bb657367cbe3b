"""The errors that a user can cause and mend: shown as plain lines, exit code 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

EXIT_RUN_ERROR = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class UserError(Exception):
    """A mistake of the user, told in one line each: what is wrong, where, the choices, the way out."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: tuple[str, ...] = problems


class Terminated(BaseException):
    """SIGTERM outside of training: the stack unwinds, so that workers end and temporary files go."""


class RunError(Exception):
    """A run that cannot go on for a reason the flags did not show (a NaN loss, a full disk); exit code 1."""


class SharedError(RunError):
    """What every rank raises at the same step, so that the first one tells it for all."""


class NotFiniteError(SharedError):
    """NaN or infinity in training."""


def raise_if_any(problems: Iterable[str]) -> None:
    """Raise one `UserError` that holds every problem; do nothing when there is none."""
    found = tuple(problems)
    if found:
        raise UserError(*found)


def closest(word: str, choices: Sequence[str]) -> str:
    """` (did you mean NAME?)` of the choice that looks most like `word`; empty when none does."""
    matches = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.5)
    return f" (did you mean {matches[0]}?)" if matches else ""


def shortened(names: Sequence[str], count: int = 20) -> str:
    """The first `count` names, each cut to 60 letters, and how many there are more."""
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(name if len(name) <= 60 else f"{name[:60]}..." for name in names[:count]) + more


@contextmanager
def errors_at(place: str) -> Iterator[None]:
    """Errors raised inside become a `UserError` whose lines begin with `place`."""
    try:
        yield
    except UserError as error:
        raise UserError(*(f"{place}: {problem}" for problem in error.problems)) from None
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None


def error_reason(error: Exception) -> str:
    """What `error` says, in one line; a line that ends in a colon is joined with the next, which holds the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].endswith(":"):
        return " ".join(lines[:2])
    return (
        lines[0] if isinstance(error, ValueError | OSError | AssertionError) else f"{type(error).__name__}: {lines[0]}"
    )


def first_line(error: BaseException) -> str:
    """What `error` says first; with the next line, which holds the reason, where the first ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


@contextmanager
def nothing_kept_on_user_error(folder: Path) -> Iterator[None]:
    """Remove what the block made below `folder`, and the folders above it, when it raises a `UserError`."""
    before = {folder, *folder.rglob("*")}
    missing = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        yield
    except UserError:
        for path in sorted(folder.rglob("*"), key=lambda path: len(path.parts), reverse=True):
            if path not in before:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise
