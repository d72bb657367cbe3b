"""Commands of the project as forks of one process that has imported the libraries: each starts seconds earlier.

A fork is a process of its own, with its own exit code and output, and runs the script as `python SCRIPT` does.
"""

from __future__ import annotations

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

START_TIMEOUT = 240.0  # seconds; the first one imports the libraries
END_TIMEOUT = 60.0
RUNNING = 1000  # no exit code


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

    def run(
        self, words: list[str], folder: Path, output: Path, error: Path, environment: Mapping[str, str], timeout: float
    ) -> int:
        """The exit code of `python WORDS` in `folder`, as `subprocess` has it; what it prints goes to two files."""
        return self.wait(self.start(words, folder, output, error, environment), timeout)

    def start(self, words: list[str], folder: Path, output: Path, error: Path, environment: Mapping[str, str]) -> int:
        """Start `python WORDS` in a session of its own; its process id."""
        return self._answer(["start", words, str(folder), str(output), str(error), dict(environment)], START_TIMEOUT)

    def wait(self, process: int, timeout: float) -> int:
        """The exit code of a started process.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds; the process and its children are killed.
        """
        until = time.monotonic() + timeout
        while (code := self._answer(["ended", process], START_TIMEOUT)) == RUNNING:
            if time.monotonic() > until:
                os.killpg(process, signal.SIGKILL)
                raise subprocess.TimeoutExpired(str(process), timeout)
            time.sleep(0.01)
        return code

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


def become(words: list[str], folder: str, output: str, error: str, environment: dict[str, str]) -> NoReturn:
    """Be the process `python WORDS` in `folder`."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in ((1, output), (2, error)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    streams = [open(fd, mode, encoding="utf-8", closefd=False) for fd, mode in enumerate("rww")]  # noqa: SIM115
    sys.stdin, sys.stdout, sys.stderr = streams
    sys.argv = words
    code = 1
    try:
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
