"""The processes of one machine die together: a watch over those that the first process started.

Lightning's own watch kills the first process without a word when another one has died.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from utils.errors import EXIT_RUN_ERROR, RunError, UserError

PARENT_VARIABLE = "S2S_PARENT"  # the process id of the first process, for those that it starts
PR_SET_PDEATHSIG = 1  # of prctl(2)
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_TO_NOTICE = 10.0  # that the first process has to fail by itself, and to end a save, before it is ended
SECONDS_TO_DIE = 3.0  # between the closing of a process's connections and its end


def die_with_the_first() -> None:
    """Have the kernel kill this process when the one that started it dies, however early; call it at once."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before
        os._exit(EXIT_RUN_ERROR)


class ProcessWatch(threading.Thread):
    """Remembers the first process that died; ends the others, and this one should it wait for the dead for ever.

    Args:
        processes: of local ranks 1, 2, ...
    """

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        super().__init__(daemon=True, name="process-watch")
        self.processes = processes
        self.died: tuple[int, int] | None = None  # local rank and exit code
        self._found = threading.Event()
        self._off = threading.Event()

    def run(self) -> None:
        while not self._off.wait(SECONDS_BETWEEN_LOOKS):
            self.died = first_dead(self.processes)
            if self.died is None:
                continue
            self._found.set()
            self._kill()
            if not self._off.wait(SECONDS_TO_NOTICE):
                # The first process waits in a collective, or for a disk: only from outside can it be ended.
                print(f"error: {self.words()}", file=sys.stderr, flush=True)
                os._exit(EXIT_RUN_ERROR)
            return

    def switch_off(self) -> None:
        """Look no more: from here on processes may end."""
        self._off.set()

    def end_all(self, error: BaseException) -> None:
        """Kill the processes, since they may wait in a collective for this one, which fails with `error`.

        Raises:
            RunError: one of them had died by itself, and `error` came of it.
        """
        if self.processes and isinstance(error, Exception) and not isinstance(error, RunError | UserError):
            self._found.wait(SECONDS_TO_DIE)
        self.switch_off()
        self._kill()
        if self.died is not None:
            raise RunError(self.words()) from error

    def words(self) -> str:
        """Which process died, and how."""
        rank, code = self.died or (0, 0)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}; it told why above"
        if code == -signal.SIGKILL:
            how += " (out of memory, perhaps)"
        return (
            f"process {rank} of {len(self.processes) + 1} {how}; what was saved is whole, and -resume_checkpoint last"
            " goes on from it"
        )

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()


def first_dead(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """(local rank, exit code) of a process that failed; None when all run or ended well.

    Of several, one that a signal ended comes first: the others fail when the connection to it breaks.
    """
    codes = [(rank, process.poll()) for rank, process in enumerate(processes, 1)]
    failed = [(rank, code) for rank, code in codes if code]
    return min(failed, key=lambda entry: (entry[1] > 0, entry[0]), default=None)
