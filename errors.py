"""The errors that a user can cause and mend: shown as plain lines, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

EXIT_RUN_ERROR = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """A mistake of the user, told in one line each: what is wrong, where, the choices, the way out."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: tuple[str, ...] = problems


class RunError(Exception):
    """A run that cannot go on for a reason the flags did not show (a NaN loss, a full disk); exit code 1."""


def raise_if_any(problems: Iterable[str]) -> None:
    """Raise one `UserError` that holds every problem; do nothing when there is none."""
    found = tuple(problems)
    if found:
        raise UserError(*found)


def exit_with(error: UserError) -> NoReturn:
    """Print the problems of `error` on standard error and leave with exit code 2."""
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def run_command(main: Callable[[list[str]], int]) -> NoReturn:
    """Run `main(argv)` as a command: a `UserError` becomes plain lines and exit code 2, a `RunError` exit code 1."""
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        exit_with(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_RUN_ERROR)
    sys.exit(code)
