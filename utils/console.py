"""Printing that outlives its reader: a closed pipe or a full disk behind standard output ends no run."""

from __future__ import annotations

import gc
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from utils.errors import (
    EXIT_INTERRUPTED,
    EXIT_RUN_ERROR,
    EXIT_TERMINATED,
    EXIT_USER_ERROR,
    RunError,
    Terminated,
    UserError,
)
from utils.escapes import printable
from utils.launch import check_environment, is_first_process

SECONDS_FOR_THE_FIRST = 10.0
STANDARD_STREAMS = (1, 2)
MOST_PROBLEMS = 50  # that are told
STOPS: dict[int, type[BaseException]] = {signal.SIGTERM: Terminated, signal.SIGINT: KeyboardInterrupt}
WORDS: dict[int, str] = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}


def prepare_streams() -> None:
    """Make standard output and error usable: never missing, and never an error for a letter they cannot show."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open for the whole process)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def tell(*lines: str) -> None:
    """Print lines at once; when standard output is gone, go on in silence."""
    try:
        for line in lines:
            print(_shown(line), flush=True)
    except OSError:
        silence()


def _shown(text: str) -> str:
    """`text` without the control characters that names of files, columns and labels may hold, line breaks among them.

    Only before an indented line, as our tables have, a line break stays one.
    """
    return "\n".join(map(printable, re.split(r"\n(?=  )", text)))


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: `1:03:20`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def say(*lines: str) -> None:
    """`tell`, once whatever the number of processes."""
    if is_first_process():
        tell(*lines)


def silence() -> None:
    """Give up standard output for good."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open for the rest of the process)


def give_up_if_full(*descriptors: int) -> None:
    """Send what is written to `descriptors` nowhere where a reader has stopped to read: a stop does not wait for it.

    A write that waits already is freed too, when the handler of a signal calls this.
    """
    with open(os.devnull, "wb") as nowhere:
        for descriptor in descriptors:
            with suppress(OSError, ValueError):
                if not select.select([], [descriptor], [], 0)[1]:
                    os.dup2(nowhere.fileno(), descriptor)


def complain(*lines: str) -> None:
    """Print lines on standard error; where that cannot be written, the exit code says it alone."""
    with suppress(OSError):
        for line in lines:
            print(_shown(line), file=sys.stderr, flush=True)


def exit_with(error: UserError) -> NoReturn:
    """Print the problems of `error` on standard error and leave with exit code 2."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        # Every process that torchrun started finds the same problems: the first one tells, and torchrun ends the
        # others while they wait. One that is not ended has a problem of its own, and tells it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SECONDS_FOR_THE_FIRST)
    complain(*(f"error: {problem}" for problem in error.problems[:MOST_PROBLEMS]))
    if len(error.problems) > MOST_PROBLEMS:
        complain(f"error: {len(error.problems) - MOST_PROBLEMS:,} more problems")
    sys.exit(EXIT_USER_ERROR)


class CommandSignals:
    """SIGTERM and Ctrl-C as an exception, so that workers end and temporary files go; a second Ctrl-C leaves at once.

    So does the first signal during an import, where nothing is to be tidied up: many a library swallows an exception
    there, or makes another of it.

    Args:
        at_once: leave at once on any signal; so it is when the command is over.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.received = 0
        self.at_once = at_once
        self._process = os.getpid()

    def install(self) -> None:
        """Take over both signals; a Ctrl-C that nohup or a shell's & has switched off stays so."""
        signal.signal(signal.SIGTERM, self._handle)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._handle)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Within it, whatever exception comes up after a signal is that of the signal."""
        try:
            yield
        except BaseException as error:
            if self.received:
                raise STOPS[self.received] from error
            raise
        finally:
            self.at_once = True

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received and signum == signal.SIGTERM:
            return  # `timeout` and `scancel` send it twice: what tidies up goes on to its end
        give_up_if_full(*STANDARD_STREAMS)
        if os.getpid() == self._process and (self.received or self.at_once or _imports(frame)):
            with suppress(OSError):
                os.write(STANDARD_STREAMS[-1], f"{WORDS[signum]}\n".encode())
            os._exit(128 + signum)
        self.received = signum
        raise STOPS[signum]


def _imports(frame: FrameType | None) -> bool:
    """Whether the code that runs is part of an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def leave_on_signals() -> None:
    """SIGTERM and Ctrl-C end this process in one line: for a script, which then imports the rest."""
    CommandSignals(at_once=True).install()


def run_command(main: Callable[[list[str]], int]) -> NoReturn:
    """Run `main(argv)` as a command: a `UserError` becomes plain lines and exit code 2, a `RunError` exit code 1."""
    prepare_streams()
    signals = CommandSignals()
    signals.install()
    try:
        with signals.ending():
            check_environment()
            code = main(sys.argv[1:])
    except UserError as error:
        exit_with(error)
    except ModuleNotFoundError as error:
        exit_with(_missing_package(error))
    except KeyboardInterrupt:
        complain(WORDS[signal.SIGINT])
        sys.exit(EXIT_INTERRUPTED)
    except Terminated:
        complain(WORDS[signal.SIGTERM])
        sys.exit(EXIT_TERMINATED)
    except BrokenPipeError:  # the reader of our output has gone, and wanted no more than it got
        silence()
        sys.exit(EXIT_RUN_ERROR)
    except RunError as error:
        complain(f"error: {error}")
        sys.exit(EXIT_RUN_ERROR)
    finally:
        gc.freeze()  # else the interpreter goes through all that the libraries imported before it ends: a second
    sys.exit(code)


def _missing_package(error: ModuleNotFoundError) -> UserError:
    """The way out for a command that was started without its environment; raises `error` if it is a bug of ours."""
    name = (error.name or "").partition(".")[0]
    root = Path(__file__).resolve().parent.parent
    if not name or (root / name).exists() or (root / f"{name}.py").exists():
        raise error
    requirements = root / "requirements.txt"
    environment = root / ".venv" / "bin" / "activate"
    way_out = f"source {environment}" if environment.exists() else f"{sys.executable} -m pip install -r {requirements}"
    return UserError(f"the package {name} is not installed for {sys.executable}; first run: {way_out}")
