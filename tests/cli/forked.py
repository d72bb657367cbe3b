"""Commands of the project as forks of one process that has imported the libraries: each starts seconds earlier.

A fork is a process of its own, with its own exit code and output, and runs the script as `python SCRIPT` does.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from tests.cli.fork_children import fork_children

START_TIMEOUT = 240.0  # seconds; the first one imports the libraries
END_TIMEOUT = 60.0
RUNNING = 1000  # no exit code
START_OTHERS = ("benchmarks/korean_tasks.py",)


class ForkedCommands:
    """A process whose forks run `python SCRIPT FLAGS`; several threads may ask for some at once.

    Args:
        folder: where it is started; below it lie the modules of the project.
        environment: of the process; the libraries are imported with it.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, dict(environment)
        self._server: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()  # a request and its answer; tests run two commands at once

    def start(
        self,
        words: list[str],
        folder: Path,
        output: Path,
        error: Path,
        environment: Mapping[str, str],
        given: Path = Path(os.devnull),
    ) -> int:
        """Start `python WORDS` in `folder`, in a session of its own; its process id.

        `given` is its standard input; what it prints is appended to `output` and `error`.
        """
        streams = [str(given), str(output), str(error)]
        return self._answer(["start", words, str(folder), streams, dict(environment)], START_TIMEOUT)

    def wait(self, process: int, timeout: float) -> int:
        """The exit code of a started process, as `subprocess` has it.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds; the process and its children are killed.
        """
        until = time.monotonic() + timeout
        while (code := self.ended(process)) is None:
            if time.monotonic() > until:
                os.killpg(process, signal.SIGKILL)
                raise subprocess.TimeoutExpired(str(process), timeout)
            time.sleep(0.01)
        return code

    def ended(self, process: int) -> int | None:
        """The exit code of a started process, to be asked for until there is one."""
        code = self._answer(["ended", process], START_TIMEOUT)
        return None if code == RUNNING else code

    def _answer(self, request: list[Any], timeout: float) -> int:
        with self._turn:
            return self._answer_alone(request, timeout)

    def _answer_alone(self, request: list[Any], timeout: float) -> int:
        if self._server is None or self._server.poll() is not None:
            command = [sys.executable, "-m", __name__]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._server = subprocess.Popen(command, cwd=self._folder, env=self._environment, text=True, **pipes)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        if not select.select([self._server.stdout], [], [], timeout)[0]:
            self._server.kill()
            self._server = None  # what it would answer now is to an old question: the next command gets another
            raise subprocess.TimeoutExpired(str(request[1]), timeout)
        return int(self._server.stdout.readline())

    def close(self) -> None:
        """End the process."""
        if self._server is not None:
            try:
                self._server.communicate(timeout=END_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._server.kill()


def serve() -> None:
    """Run the commands of standard input, one JSON line each, and answer with their exit codes."""
    import datasets  # noqa: F401
    import pytorch_lightning  # noqa: F401
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    from transformers import BartForConditionalGeneration, T5ForConditionalGeneration  # noqa: F401

    for line in sys.stdin:
        what, *arguments = json.loads(line)
        if what == "ended":
            process, status = os.waitpid(*arguments, os.WNOHANG)
            print(os.waitstatus_to_exitcode(status) if process else RUNNING, flush=True)
            continue
        child = os.fork()
        if child == 0:
            become(*arguments)
        print(child, flush=True)


def become(words: list[str], folder: str, streams: list[str], environment: dict[str, str]) -> NoReturn:
    """Be the process `python WORDS` in `folder`."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor in (1, 2, 0):
        how = os.O_WRONLY | os.O_CREAT | os.O_APPEND if descriptor else os.O_RDONLY
        opened = os.open(streams[descriptor], how)
        os.dup2(opened, descriptor)
        os.close(opened)
    if "-cpu_processes" in words or words[0] in START_OTHERS:
        fork_children(run_to_the_end)
    run_to_the_end(words)


def run_to_the_end(words: list[str]) -> NoReturn:
    """`python WORDS` in the folder, with the standard streams and the environment that this process has."""
    streams = [open(fd, mode, encoding="utf-8", closefd=False) for fd, mode in enumerate("rww")]  # noqa: SIM115
    sys.stdin, sys.stdout, sys.stderr = streams
    code = 1
    try:
        if any(name.startswith("FAULT_") for name in os.environ):
            importlib.import_module("tests.faults.events")
        if "-c" in words:
            program, *flags = words[words.index("-c") + 1 :]
            sys.argv = ["-c", *flags]
            exec(program, {"__name__": "__main__"})
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)  # as Python does
        else:
            code = left.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
