"""Where the time of a training step goes: `-profile N` traces N optimizer steps and tells what each part took."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from pytorch_lightning.profilers import Profiler
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from checkpoints.run_folder import PROFILE_FOLDER, TRACE_NAME
from training.signals import TrainingStopped
from utils.console import tell
from utils.files import write_folder
from utils.tables import format_table

WARM_UP = 5  # optimizer steps before the trace: memory is found and kernels are chosen in them
OF_PROFILER = 2  # the last of these, in which the profiler gets ready
ACTIONS = {  # of Lightning -> the part of a step
    "train_dataloader_next": "data",
    "batch_to_device": "data",
    "training_step": "forward",
    "backward": "backward",
    "optimizer_step": "optimizer",
}
PARTS = ("data", "forward", "backward", "optimizer", "waiting", "other")
PREFIX = "step: "  # of the parts in the trace
CALLS = ("cuda", "cuLaunch")  # of the program that put work on the GPU; each has the id of its kernel
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
Range = tuple[float, float, str]  # microseconds, part


class StepProfile(Profiler):
    """Listens to Lightning's actions; traces `steps` optimizer steps after the warm-up, once, and computes nothing.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        super().__init__()
        self.folder = folder
        self.steps = steps
        self.seen = 0  # optimizer steps of this process that are done
        self.traced: profile | None = None  # once there is a trace
        self.open: list[tuple[str, Any]] = []  # actions that go on, with their ranges in the trace
        self.stepped = False
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else PyTorch's tracer tells where it begins and ends
        self.profiler: profile | None = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])],
            schedule=schedule(wait=WARM_UP - OF_PROFILER, warmup=OF_PROFILER, active=steps, repeat=1),
            on_trace_ready=self.keep,
        )
        self.profiler.start()

    def keep(self, traced: profile) -> None:
        """Called by the profiler when its steps are traced, or when it is stopped among them."""
        self.traced = traced

    def start(self, action_name: str) -> None:
        action = action_name.rpartition(".")[2]
        if self.profiler is None or action not in ACTIONS:
            return
        if not self.open and action == "train_dataloader_next":
            self._enter("whole", "other")
        if self.open:  # else of a validation
            self._enter(action, ACTIONS[action])

    def _enter(self, action: str, part: str) -> None:
        entered: Any = record_function(PREFIX + part)
        entered.__enter__()
        self.open.append((action, entered))

    def stop(self, action_name: str) -> None:
        action = action_name.rpartition(".")[2]
        if self.profiler is None or not self.open:
            return
        self.stepped = self.stepped or action == "optimizer_step"
        if action == self.open[-1][0]:
            self._leave()
        elif action_name.startswith("[LightningModule]") and action == "on_train_batch_end":
            self._leave()
            self.seen += self.stepped
            if self.stepped:
                self.profiler.step()
            self.stepped = False
            if self.seen == WARM_UP + self.steps:
                self.end()

    def _leave(self) -> None:
        self.open.pop()[1].__exit__(None, None, None)

    def __enter__(self) -> StepProfile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """`end`, unless an error ends the run."""
        if error is None or isinstance(error, TrainingStopped):
            self.end()

    def end(self) -> None:
        """Write the trace, also of fewer steps than were asked for, and tell what it holds.

        Raises:
            RunError: the disk refused.
        """
        if self.profiler is None:
            return
        self.seen += self.stepped  # the run was stopped after it
        while self.open:
            self._leave()
        profiler, self.profiler = self.profiler, None
        profiler.stop()
        count = self.seen - WARM_UP
        if self.traced is None or count < 1:
            tell(f"-profile {self.steps}: no step was traced, since only {self.seen} followed; {WARM_UP} are a warm-up")
            return
        trace, traced = self.folder / PROFILE_FOLDER, self.traced
        events: Any = traced.events  # it has no type
        write_folder(trace, lambda folder: traced.export_chrome_trace(str(folder / TRACE_NAME)))
        fewer = f" (-profile {self.steps} asked for more)" if count < self.steps else ""
        tell(
            f"where the time of a step went, {count} steps after a warm-up of {WARM_UP}{fewer}; {trace / TRACE_NAME} is"
            " for https://ui.perfetto.dev or chrome://tracing",
            *part_table(events(), count),
        )


def part_table(events: Iterable[Any], steps: int) -> list[str]:
    """Lines with the milliseconds a step of each part, and its share.

    In the program's time, "waiting" is for the GPU, and "other" is Lightning, logs and saves. In the GPU's, it is idle.
    """
    events = list(events)
    ranges = [
        (event.time_range.start, event.time_range.end, part)
        for event in events
        if event.device_type.name == "CPU" and (part := part_of(event.name))
    ]
    changes = timeline(ranges)
    program = times(changes)
    columns = {"program": program}
    kernels = [event for event in events if event.device_type.name == "CUDA" and not event.is_user_annotation]
    if kernels:
        calls = {event.id: event.time_range.start for event in events if event.name.startswith(CALLS)}
        launched = [(calls.get(kernel.id), kernel.time_range.elapsed_us()) for kernel in kernels]
        columns["GPU"] = device_times(changes, launched)
    whole = sum(program.values()) or 1.0
    heads = [title for name in columns for title in (f"{name}, ms", "share")]
    rows = [[part] for part in (*PARTS, "step")]
    for column in columns.values():
        for row, spent in zip(rows, [*(column[part] for part in PARTS), sum(column.values())], strict=True):
            row += [f"{spent / 1e3 / steps:.1f}", f"{spent / whole:.0%}"]
    return format_table(["", *heads], rows)


def part_of(name: str) -> str:
    """The part of a step that an event of the trace is, or empty."""
    return "waiting" if name in WAITS else name.removeprefix(PREFIX) if name.startswith(PREFIX) else ""


def timeline(ranges: Iterable[Range]) -> list[tuple[float, str]]:
    """(moment, innermost part from then on), in order; no part is empty. The ranges of a part lie within others."""
    points = [point for start, end, part in ranges for point in ((start, 1, -end, part), (end, 0, -start, part))]
    inside: list[str] = []
    changes = []
    for moment, opens, _, part in sorted(points):
        if opens:
            inside.append(part)
        else:
            inside.pop()
        changes.append((moment, inside[-1] if inside and inside[0] == "other" else ""))
    return changes


def times(changes: Sequence[tuple[float, str]]) -> Counter[str]:
    """Microseconds of each part."""
    found: Counter[str] = Counter()
    for (moment, part), (after, _) in pairwise(changes):
        found[part] += after - moment  # type: ignore[assignment]
    del found[""]
    return found


def device_times(changes: Sequence[tuple[float, str]], launched: Iterable[tuple[float | None, float]]) -> Counter[str]:
    """Microseconds in which the device worked on what each part launched; in the rest, "waiting", it is idle.

    Args:
        launched: of every kernel, when it was launched (None = unknown: "other") and the microseconds that it took.
    """
    found: Counter[str] = Counter()
    moments = [moment for moment, _ in changes]
    for moment, spent in launched:
        at = 0 if moment is None else bisect_right(moments, moment)
        part = "other" if moment is None else changes[at - 1][1] if at else ""
        if part:  # else of a validation
            found["other" if part == "waiting" else part] += spent  # type: ignore[assignment]
    found["waiting"] = max(0, sum(times(changes).values()) - sum(found.values()))
    return found
