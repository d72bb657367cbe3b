"""Commands of the project as forks of one process that has imported the libraries: each starts seconds earlier.

A fork is a process of its own, with its own exit code and output, and runs the script as `python SCRIPT` does.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from tests.cli.command import ROOT, environment


class ForkedCommands:
    """A context whose `run` runs `python SCRIPT FLAGS` in a folder."""

    def __enter__(self) -> ForkedCommands:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__], cwd=ROOT, env=environment(), text=True, **pipes
        )
        return self

    def run(self, words: list[str], folder: Path, output: Path) -> int:
        """The exit code; standard output and standard error are appended to the file `output`."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps([words, str(folder), str(output)]), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def __exit__(self, *error: object) -> None:
        self._server.communicate()


def serve() -> None:
    """Run the commands of standard input, one JSON line each, and answer with their exit codes."""
    import datasets  # noqa: F401
    import pytorch_lightning  # noqa: F401
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    from transformers import BartForConditionalGeneration, T5ForConditionalGeneration  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(words: list[str], folder: str, output: str) -> NoReturn:
    """Be the process `python WORDS` in `folder`."""
    os.chdir(folder)
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
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
