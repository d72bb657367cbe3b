"""Which process works on which chunk: files in the folder of parts, for network file systems too.

Each process has a file that it touches every few seconds. Its claim on a chunk is a second name of that file, and the
claims of a process whose file has grown old are taken over. After a long pause of a process two may hold one claim:
that costs time only, since both write the same part.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from prediction.parts import Chunks, part_path
from prediction.parts_folder import claim_path
from utils.errors import RunError
from utils.files import remove_path, take_name, write_json

BEAT_SECONDS = 5.0
DEAD_SECONDS = 60.0  # without a beat, by the clock of the file system
POLL_SECONDS = 0.2
CONTENT = {"name": str, "id": str, "place": str, "pid": int, "start": str}  # of the file of a process


class Presence:
    """A file that shows other processes that this one lives, while the block runs.

    On the same machine they see its end at once, by its number and start; elsewhere when the file is `DEAD_SECONDS`
    old.
    """

    def __init__(self, path: Path, **content: Any) -> None:
        self.path = path
        process = {"host": socket.gethostname(), "place": _place(), "pid": os.getpid(), "start": _start_of(os.getpid())}
        self.content: dict[str, Any] = {"name": path.name, "id": secrets.token_hex(8), **process, **content}
        self._over = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Presence:
        write_json(self.path, self.content)
        self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._beats.join()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(self.path)

    def update(self, **content: Any) -> None:
        """Let the file say more."""
        self.content |= content
        write_json(self.path, self.content)

    def now(self) -> float:
        """The time by the clock of the file system, in seconds.

        Raises:
            RunError: the file is gone: another run has taken over.
        """
        try:
            os.utime(self.path)
            return os.stat(self.path).st_mtime
        except OSError as error:
            raise RunError(
                f"{self.path} is gone: another run has taken over, or the file system cannot be reached ({error})"
            ) from error


def lives(path: Path, now: float, silence: float = DEAD_SECONDS) -> bool:
    """Whether the process whose `Presence` is `path` lives.

    Args:
        now: by the clock of the file system.
        silence: seconds without a beat after which one of another machine is dead.
    """
    content = read_presence(path)
    if content is None:
        return False
    here = content["place"] and content["place"] == _place()
    if here and _start_of(content["pid"]) != content["start"]:
        return False
    return bool(now - content["seen"] <= (DEAD_SECONDS if here else silence))


def read_presence(path: Path) -> dict[str, Any] | None:
    """What a `Presence` says, and when it was `seen`; None where there is none, or something else."""
    try:
        with open(path, encoding="utf-8") as file:  # opening asks the server, where `stat` may know an older time
            content, seen = json.load(file), os.fstat(file.fileno()).st_mtime
    except (OSError, ValueError):
        return None
    ours = isinstance(content, dict) and all(isinstance(content.get(name), kind) for name, kind in CONTENT.items())
    return {**content, "seen": seen} if ours else None


def _place() -> str:
    """Where the numbers of processes mean the same: this boot of this machine, and its name space of processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process of this machine started, in ticks of its kernel; empty when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


class Claims:
    """Chunks that this process works on, so that no other one does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.worker = Presence(folder / f"worker-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")

    def __enter__(self) -> Claims:
        self.worker.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.__exit__()

    def open_chunks(self, chunks: Chunks, waiting: Callable[[], None] | None = None) -> Iterator[int]:
        """Chunks without a part, each claimed before it is given, the one with the longest rows first.

        Args:
            waiting: called now and then while others work, until all parts are there; None = do not wait for others.
        """
        left = [*range(len(chunks))]
        while left := self._without_part(left):
            claimed = False
            for chunk in left:
                path = part_path(self.folder, chunk)
                # Another process may have ended a chunk between the first look and the claim.
                if not path.exists() and self._take(chunk) and not path.exists():
                    claimed = True
                    yield chunk
            if waiting is None:
                return
            if not claimed:
                waiting()
                time.sleep(POLL_SECONDS)

    def _without_part(self, chunks: list[int]) -> list[int]:
        there = set(os.listdir(self.folder))  # which asks the server, where single names may be known from earlier
        return [chunk for chunk in chunks if part_path(self.folder, chunk).name not in there]

    def _take(self, chunk: int) -> bool:
        claim = claim_path(self.folder, chunk)
        if take_name(self.worker.path, claim):
            return True
        owner = read_presence(claim)
        if owner is not None and lives(self.folder / owner["name"], self.worker.now()):
            return False
        remove_path(claim)
        return take_name(self.worker.path, claim)
