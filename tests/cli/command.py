"""Runs `train.py`, `inference.py` and scripts as real processes, from the root of the repository."""

from __future__ import annotations

import atexit
import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.cli.forked import ForkedCommands
from tests.cli.forked_python import write_python

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT = 240  # seconds
COVERAGE = "COVERAGE_PROCESS_CONFIG"  # what coverage measures in a process that is started (its option `patch`)
SCRIPTS = (
    "train.py",
    "inference.py",
    "export.py",
    "analyze.py",
    "serve.py",
    "select_rows.py",
    "embed.py",
    "train_tokenizer.py",
    "tune.py",
    "pretrain.py",
    "-c",
)


@dataclass(frozen=True)
class Result:
    """How a process ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The problems told, without their `error: `."""
        return [line.removeprefix("error: ") for line in self.err.splitlines() if line.startswith("error: ")]


def environment(**more: str) -> dict[str, str]:
    """No network, one thread, `python` is this interpreter, and no coverage: it adds half to the start of a process."""
    given = {name: value for name, value in os.environ.items() if name != COVERAGE}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**given, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PATH": path, **more}


READ_AT_IMPORT = ("OMP", "MKL", "KMP", "GOMP", "HF_", "PYTHON", "LD_", "TORCH", "CUDA", "FAULT", "VENV", "PATH")

REAL = {"OMP_NUM_THREADS": "1"}  # as `env`: no fork, but processes that import the libraries themselves, as a user's do


def run(*command: str | Path, env: Mapping[str, str] | None = None) -> Result:
    """Run to the end; `python train.py` and its like as forks, unless `env` has what libraries read on their import.

    In scripts of bash, too.
    """
    words = [str(part) for part in command]
    usual = not any(name.startswith(READ_AT_IMPORT) for name in env or {})
    if words[0] in (sys.executable, "python") and words[1] in SCRIPTS and usual:
        return run_forked(words[1:], environment(**(env or {})))
    given = dict(env or {})
    if words[0] == "bash" and "PATH" not in given:
        given["PATH"] = f"{python_of_forks().parent}{os.pathsep}{environment()['PATH']}"
    done = subprocess.run(words, cwd=ROOT, env=environment(**given), capture_output=True, text=True, timeout=TIMEOUT)
    return Result(done.returncode, done.stdout, done.stderr)


@functools.cache
def forked_commands() -> ForkedCommands:
    """The process that all tests of this worker fork their commands from."""
    measured = {COVERAGE: os.environ[COVERAGE]} if COVERAGE in os.environ else {}
    commands = ForkedCommands(ROOT, environment(**measured))
    atexit.register(commands.close)
    return commands


@functools.cache
def python_of_forks() -> Path:
    """A `python` for shell scripts that gives forks."""
    folder = Path(tempfile.mkdtemp(prefix="python-"))
    atexit.register(shutil.rmtree, folder)
    write_python(folder / "python", forked_commands(), TIMEOUT)
    return folder / "python"


def run_forked(words: list[str], env: Mapping[str, str], folder: Path = ROOT, given: Path = Path(os.devnull)) -> Result:
    """`python WORDS` in `folder`, to the end, with `given` on its standard input."""
    with tempfile.TemporaryDirectory() as place:
        output, error = Path(place) / "stdout", Path(place) / "stderr"
        code = forked_commands().wait(forked_commands().start(words, folder, output, error, env, given), TIMEOUT)
        return Result(code, output.read_text(encoding="utf-8"), error.read_text(encoding="utf-8"))


@contextmanager
def talking(words: list[str], place: Path) -> Iterator[tuple[int, BinaryIO, BinaryIO]]:
    """`python WORDS` with pipes: its process id, its standard input and output; its errors go to `place/stderr`."""
    place.mkdir()
    for name in ("stdin", "stdout"):
        os.mkfifo(place / name)
    streams = place / "stdout", place / "stderr"
    process = forked_commands().start(words, ROOT, *streams, environment(), place / "stdin")
    with open(place / "stdout", "rb") as answers, open(place / "stdin", "wb", buffering=0) as lines:
        yield process, lines, answers


def train(*flags: str | Path | int | float, env: Mapping[str, str] | None = None) -> Result:
    """`python train.py FLAGS`."""
    return run(sys.executable, "train.py", *map(str, flags), env=env)


def train_ok(*flags: str | Path | int | float) -> Result:
    """`python train.py FLAGS`, which must end well."""
    result = train(*flags)
    assert result.code == 0, result.out + result.err
    return result


def infer(*flags: str | Path | int | float, env: Mapping[str, str] | None = None) -> Result:
    """`python inference.py FLAGS`."""
    return run(sys.executable, "inference.py", *map(str, flags), env=env)


def infer_ok(*flags: str | Path | int | float, env: Mapping[str, str] | None = None) -> Result:
    """`python inference.py FLAGS`, which must end well."""
    result = infer(*flags, env=env)
    assert result.code == 0, result.out + result.err
    return result


def printed_command(out: str) -> list[str]:
    """The words of the command that a stopped run printed, below the line that ends so."""
    lines = out.splitlines()
    told = next(index for index, line in enumerate(lines) if line.endswith("; this resumes it:"))
    return shlex.split(lines[told + 1])


def train_until(flags: list[str], line: str, signum: signal.Signals, whole_group: bool = False) -> Result:
    """`start_until` with `train.py`."""
    return start_until("train.py", flags, line, signum, whole_group)


def start_until(script: str, flags: list[str], line: str, signum: signal.Signals, whole_group: bool = False) -> Result:
    """Start, send `signum` when a line of the output contains `line`, and wait for the end."""
    waiting = True

    def told(process: int, text: str) -> None:
        nonlocal waiting
        if waiting and line in text:
            (os.killpg if whole_group else os.kill)(process, signum)
            waiting = False

    return run_and_read([script, *flags], environment(), told)


def run_and_read(
    words: list[str], env: Mapping[str, str], told: Callable[[int, str], None] = lambda *_: None
) -> Result:
    """`python WORDS` to the end of all its processes; its standard error goes to its output.

    `told` gets its process id and each line of the output as it is printed.
    """
    commands = forked_commands()
    seen = []
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "output"
        os.mkfifo(output)
        process = commands.start(words, ROOT, output, output, env)

        def read() -> None:
            with open(output, encoding="utf-8") as lines:
                for text in lines:
                    seen.append(text)
                    told(process, text)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        code = commands.wait(process, TIMEOUT)
        reader.join(TIMEOUT)
        left = reader.is_alive()
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        assert not left, f"the command has ended with code {code}, and left a process behind: {seen}"
    return Result(code, "".join(seen), "")


def listing(folder: Path) -> dict[str, int]:
    """Every file and folder below `folder`, with the time of its last change in nanoseconds."""
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def make_environment(folder: Path, python: str = "") -> None:
    """What run_scripts/environment.sh would install into `folder`; its `python` is a shell script of that line."""
    python = python or f'exec {shlex.quote(str(python_of_forks()))} "$@"'
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text(f"#!/bin/sh\n{python}\n")
    (folder / "bin" / "python").chmod(0o755)
    (folder / "bin" / "activate").write_text(f"PATH={shlex.quote(str(folder / 'bin'))}:$PATH\n")
    requirements = (ROOT / "requirements.txt").read_bytes() * 2
    number = subprocess.run(["cksum"], input=requirements, capture_output=True, check=True).stdout.split()[0]
    (folder / f"installed-{number.decode()}").touch()
