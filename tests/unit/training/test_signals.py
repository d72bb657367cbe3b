"""Signals that a run gets while its output is blocked, or with its terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.cli.command import ROOT
from training.signals import StopSignal

TALKS_INTO_A_FULL_PIPE = """
from training.signals import StopSignal
from utils.console import tell

stop = StopSignal(talk=True)
stop.install()
print("ready", flush=True)
while not stop.received:
    tell("x" * 4000)
"""


def test_sigterm_ends_a_run_whose_output_nobody_reads() -> None:
    command = [sys.executable, "-c", TALKS_INTO_A_FULL_PIPE]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        try:
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(("before", "received"), [(signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, 0)])
def test_a_closed_terminal_stops_the_run_unless_nohup_says_otherwise(before: signal.Handlers, received: int) -> None:
    kept = signal.signal(signal.SIGHUP, before)
    stop = StopSignal(talk=False)
    try:
        stop.install()
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received == received
        stop.release()
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, kept)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
