"""Processes that a forked command starts, as forks too: of one that stays as it was before the command began.

A rank of a training and a worker of a prediction are started as `python SCRIPT` and by multiprocessing's `spawn`; both
begin without anything of their parent but its environment, and import the libraries, which takes seconds.
"""

from __future__ import annotations

import _posixsubprocess
import ctypes
import fcntl
import json
import os
import posix
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NoReturn

PR_SET_CHILD_SUBREAPER = 36  # of prctl(2): an orphan of this process's children becomes its own child
HIGH = 500  # no descriptor that is handed on has such a number
LONGEST = 1 << 20  # bytes of a request
STANDARD = (0, 1, 2)
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # by the one that stays; they are for the command

Run = Callable[[list[str]], NoReturn]


def fork_children(run: Run) -> None:
    """From here on, what this process starts as `python SCRIPT` or `spawn` is a fork that calls `run(words)`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = os.getpid()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.fork() == 0:
        ours.close()
        _stay(theirs, command, run)
    theirs.close()
    fork_exec = _posixsubprocess.fork_exec

    def start(arguments: Any, programs: Any, close: Any, kept: Any, folder: Any, env: Any, *rest: Any) -> int:
        words = [os.fsdecode(word) for word in arguments]
        if words[0] != sys.executable or not (words[1].endswith(".py") or words[-1] == "--multiprocessing-fork"):
            return int(fork_exec(arguments, programs, close, kept, folder, env, *rest))
        given = rest[0], rest[3], rest[5]  # the ends of pipes that are its standard streams, or -1
        streams = [end if end != -1 else stream for stream, end in zip(STANDARD, given, strict=True)]
        numbers = [*STANDARD, *(number for number in kept if number not in rest[6:8])]
        names = dict(os.environ) if env is None else dict(os.fsdecode(pair).split("=", 1) for pair in env)
        mask = [int(signum) for signum in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
        place = os.getcwd() if folder is None else os.fsdecode(folder)
        request = json.dumps([words[1:], numbers, names, mask, place]).encode()
        socket.send_fds(ours, [request], [*streams, *numbers[len(STANDARD) :]])
        return int(ours.recv(LONGEST))

    _posixsubprocess.fork_exec = start
    subprocess._fork_exec = start  # type: ignore[attr-defined]


def _stay(requests: socket.socket, command: int, run: Run) -> NoReturn:
    """Fork for the command as long as it is there."""
    handlers = {signum: signal.signal(signum, signal.SIG_IGN) for signum in IGNORED}
    while True:
        request, descriptors, *_ = socket.recv_fds(requests, LONGEST, 64)
        if not request:
            posix._exit(0)  # `os._exit` may write down what coverage found
        told, tell = os.pipe()
        between = os.fork()
        if between == 0:  # it ends at once, so that its child becomes one of the command
            if (child := os.fork()) != 0:
                os.write(tell, str(child).encode())
                posix._exit(0)
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
            for descriptor in (requests.detach(), told, tell):
                os.close(descriptor)
            _begin(json.loads(request), descriptors, command, run)
        os.close(tell)
        os.waitpid(between, 0)
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(os.read(told, 32))
        os.close(told)


def _begin(request: list[Any], descriptors: list[int], command: int, run: Run) -> NoReturn:
    """Be the process that was asked for."""
    words, numbers, names, mask, folder = request
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, HIGH) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(high, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    while os.getppid() != command and _is_there(command):
        pass  # for microseconds
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(names)
    run(words)


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
