"""What files, columns and labels are called reaches the terminal as one readable line, and never without end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

from tests.documents import ROOT
from utils import console
from utils.console import complain, exit_with, give_up_if_full, run_command, tell
from utils.errors import UserError, shortened


def test_control_characters_are_shown_and_tables_stay(capsys: pytest.CaptureFixture[str]) -> None:
    tell("a\x1b[31m\r한글\\n\n  second line")
    assert capsys.readouterr().out == "a\\u001b[31m\\r한글\\n\n  second line\n"


def test_names_cannot_write_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    tell("task a\nerror: false")
    assert capsys.readouterr().out == "task a\\nerror: false\n"


def test_a_second_sigterm_interrupts_no_ending(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: list[str]) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError

    def complain_in_the_way(*lines: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        complain(*lines)

    monkeypatch.setattr(console, "complain", complain_in_the_way)
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(SystemExit) as caught:
            run_command(main)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    assert caught.value.code == 143
    assert capsys.readouterr().err == "terminated\n"


STOP = "import os, signal\n\ndef stop(name):\n    os.kill(os.getpid(), getattr(signal, name))\n\n"
OTHER = "try:\n    stop('{0}')\nexcept BaseException:\n    raise ValueError('no such part') from None\n"
TIDY = "try:\n    stop('{0}')\nfinally:\n    stop('{0}')\n"


@pytest.mark.parametrize(
    ("main", "code", "told"),
    [
        ("import others_SIGINT", 130, "interrupted\n"),
        ("import others_SIGTERM", 143, "terminated\n"),
        (OTHER.format("SIGINT"), 130, "interrupted\n"),
        (OTHER.format("SIGTERM"), 143, "terminated\n"),
        (TIDY.format("SIGINT"), 130, "interrupted\n"),
        (TIDY.format("SIGTERM"), 143, "terminated\n"),
        ("import atexit; atexit.register(stop, 'SIGINT')", 130, "interrupted\n"),
    ],
    ids=["import-int", "import-term", "other-int", "other-term", "twice-int", "twice-term", "exit"],
)
def test_a_signal_ends_a_command_in_one_line_wherever_it_comes(tmp_path: Path, main: str, code: int, told: str) -> None:
    """Also in an import, where a library makes another exception of it, and while the command tidies up."""
    for name in ("SIGINT", "SIGTERM"):
        (tmp_path / f"others_{name}.py").write_text(STOP + OTHER.format(name))
    body = f"{STOP}def main(_):\n{indent(main, '    ')}\n    return 0\n"
    start = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom utils.console import run_command\n"
    (tmp_path / "command.py").write_text(f"{start}{body}run_command(main)\n")
    done = subprocess.run([sys.executable, tmp_path / "command.py"], capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == (told, code)


def test_many_problems_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        exit_with(UserError(*(f"problem {number}\x07" for number in range(20_050))))
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert (lines[0], lines[50:]) == ("error: problem 0\\u0007", ["error: 20,000 more problems"])


def test_long_lists_of_names_are_cut() -> None:
    assert shortened(["a", "b"]) == "a, b"
    assert shortened([str(number) for number in range(1003)], 2) == "0, 1 and 1,001 more"
    assert shortened(["x" * 100]) == "x" * 60 + "..."


def test_a_stop_does_not_wait_for_a_reader_that_reads_no_more() -> None:
    reading, full = os.pipe()
    _, free = os.pipe()
    os.set_blocking(full, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(full, b"x" * 4096)
    os.set_blocking(full, True)
    give_up_if_full(full, free)
    assert os.write(full, b"terminated") == 10  # it would wait for ever
    assert os.path.samestat(os.fstat(full), os.stat(os.devnull))
    assert not os.path.samestat(os.fstat(free), os.stat(os.devnull))
    os.close(reading)


def test_a_mistake_keeps_its_exit_code_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, text: str) -> int:
            raise OSError(f"no space left for {text}")

    monkeypatch.setattr(sys, "stderr", Full())
    complain("a")
    with pytest.raises(SystemExit) as caught:
        exit_with(UserError("a mistake"))
    assert caught.value.code == 2
