"""The errors that a user can cause and mend: shown as plain lines, exit code 2, no traceback."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from console import prepare_streams, silence

EXIT_RUN_ERROR = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
SECONDS_FOR_THE_FIRST = 10.0


class UserError(Exception):
    """A mistake of the user, told in one line each: what is wrong, where, the choices, the way out."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: tuple[str, ...] = problems


class Terminated(BaseException):
    """SIGTERM outside of training: the stack unwinds, so that workers end and temporary files go."""


class RunError(Exception):
    """A run that cannot go on for a reason the flags did not show (a NaN loss, a full disk); exit code 1."""


class NotFiniteError(RunError):
    """NaN or infinity in training: found on every rank at the same step, so that the first one tells it for all."""


def raise_if_any(problems: Iterable[str]) -> None:
    """Raise one `UserError` that holds every problem; do nothing when there is none."""
    found = tuple(problems)
    if found:
        raise UserError(*found)


@contextmanager
def errors_at(place: str) -> Iterator[None]:
    """Errors raised inside become a `UserError` whose lines begin with `place`."""
    try:
        yield
    except UserError as error:
        raise UserError(*(f"{place}: {problem}" for problem in error.problems)) from None
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None


def exit_with(error: UserError) -> NoReturn:
    """Print the problems of `error` on standard error and leave with exit code 2."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        # Every process that torchrun started finds the same problems: the first one tells, and torchrun ends the
        # others while they wait. One that is not ended has a problem of its own, and tells it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SECONDS_FOR_THE_FIRST)
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def run_command(main: Callable[[list[str]], int]) -> NoReturn:
    """Run `main(argv)` as a command: a `UserError` becomes plain lines and exit code 2, a `RunError` exit code 1."""
    prepare_streams()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        exit_with(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Terminated:
        print("terminated", file=sys.stderr)
        sys.exit(EXIT_TERMINATED)
    except BrokenPipeError:  # the reader of our output has gone, and wanted no more than it got
        silence()
        sys.exit(EXIT_RUN_ERROR)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_RUN_ERROR)
    finally:
        gc.freeze()  # else the interpreter goes through all that the libraries imported before it ends: a second
    sys.exit(code)


def _terminate(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise Terminated
