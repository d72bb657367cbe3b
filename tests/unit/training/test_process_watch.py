"""The watch over the processes that the first one started; the dead are real."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.command import ROOT
from training.process_watch import ProcessWatch, first_dead
from utils.errors import RunError, UserError

WAITS_FOR_THE_DEAD = """
import subprocess, time
from training import process_watch

process_watch.SECONDS_TO_NOTICE = 0.1
commands = ["exec sleep 60", "kill -9 $$"]
process_watch.ProcessWatch([subprocess.Popen(["sh", "-c", command]) for command in commands]).start()
time.sleep(60)
"""
DIED = (
    "process 2 of 3 was ended by SIGKILL (out of memory, perhaps); what was saved is whole, and -resume_checkpoint last"
    " goes on from it"
)


def shell(*commands: str) -> list[subprocess.Popen[bytes]]:
    return [subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE) for command in commands]


def test_first_process_that_waits_for_a_dead_one_ends_in_plain_words() -> None:
    """As in a collective that never returns: Lightning's watch would end it with SIGKILL and no word."""
    done = subprocess.run(
        [sys.executable, "-c", WAITS_FOR_THE_DEAD], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {DIED}\n")


def test_error_that_comes_of_a_dead_process_is_told_as_that() -> None:
    """The process that was ended by a signal is named, not the one that failed when its connection broke."""
    processes = shell("exit 1", "kill -9 $$")
    for process in processes:
        process.wait()
    watch = ProcessWatch(processes)
    watch.start()
    with pytest.raises(RunError) as told:
        watch.end_all(RuntimeError("connection closed by peer"))
    assert str(told.value) == DIED


def test_process_that_fails_by_itself_is_named_with_its_code() -> None:
    failed, waiting = shell("exit 2", "read line")
    failed.wait()
    watch = ProcessWatch([failed, waiting])
    watch.start()
    with pytest.raises(
        RunError, match=r"^process 1 of 3 ended with code 2; it told why above; what was saved is whole"
    ):
        watch.end_all(RuntimeError("connection closed by peer"))
    assert waiting.wait() == -9


@pytest.mark.parametrize("error", [RunError("the disk is full"), UserError("-gpus 3"), KeyboardInterrupt()])
def test_error_of_the_first_process_ends_the_others(error: BaseException) -> None:
    processes = shell("read line", "read line")
    watch = ProcessWatch(processes)
    watch.start()
    watch.end_all(error)
    watch.join(5)
    assert [process.wait() for process in processes] == [-9, -9]
    assert watch.died is None


def test_ended_well_or_running_is_not_dead() -> None:
    ended, running = shell("exit 0", "read line")
    ended.wait()
    assert first_dead([ended, running]) is None
    running.kill()
    running.wait()
    assert first_dead([ended, running]) == (2, -9)
