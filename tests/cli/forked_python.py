"""A `python` for shell scripts: what it runs of ours is a fork, with the standard streams of the script."""

from __future__ import annotations

import json
import shlex
import socket
import sys
import threading
from pathlib import Path

from tests.cli.forked import ForkedCommands

ASK = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as commands:
    commands.connect(sys.argv[1])
    request = [sys.argv[2:], os.getcwd(), os.getpid(), dict(os.environ)]
    commands.sendall(json.dumps(request).encode() + b"\\n")
    sys.exit(int(commands.makefile().readline()))
"""


def write_python(path: Path, commands: ForkedCommands, timeout: float) -> None:
    """Write a `python` that asks this process, as long as it is there, for forks of `commands`."""
    place, ask = path.with_name("commands.socket"), path.with_name("ask.py")
    ask.write_text(ASK, encoding="utf-8")
    python = shlex.quote(sys.executable)
    lines = [
        "#!/bin/sh",
        'case "$1" in',
        f'[a-z]*.py) exec {python} -S -E {shlex.quote(str(ask))} {shlex.quote(str(place))} "$@" ;;',
        f'*) exec {python} "$@" ;;',
        "esac",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place))
    listener.listen()

    def answer(asked: socket.socket) -> None:
        with asked, asked.makefile("rw", encoding="utf-8") as lines:
            words, folder, process, environment = json.loads(lines.readline())
            given, output, error = (Path(f"/proc/{process}/fd/{stream}") for stream in range(3))
            started = commands.start(words, Path(folder), output, error, environment, given)
            print(commands.wait(started, timeout), file=lines, flush=True)

    def listen() -> None:
        while True:
            threading.Thread(target=answer, args=[listener.accept()[0]], daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
