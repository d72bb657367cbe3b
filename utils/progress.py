"""Progress on the terminal: a bar where there is one, plain lines where the output is a file or a pipe."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from typing import Any

from tqdm import tqdm

from utils.console import tell

BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
NARROW = 100  # cells of a terminal in which the figures have no room beside the rate


class ProgressLine:
    """One phase of the work, e.g. `[Epoch 0] [TRAIN]: 12%|###  | 520/4387 [02:31<20:56, 3.08it/s, loss=2.56]`.

    Args:
        unit: what is counted, `it` (optimizer steps) or `row`.
    """

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "it", enabled: bool = True) -> None:
        self.title = title
        self.total = total
        self.initial = done
        self.done = done
        self.unit = unit
        self.enabled = enabled
        self.began = time.monotonic()
        self.is_terminal = sys.stdout.isatty()
        self.bar: Any = None
        if enabled and self.is_terminal:
            narrow = shutil.get_terminal_size().columns < NARROW
            bar_format = BAR_FORMAT.replace(", {rate_fmt}", "") if narrow else BAR_FORMAT
            self.bar = tqdm(
                total=total, initial=done, desc=title, unit=unit, file=sys.stdout, bar_format=bar_format,
                dynamic_ncols=True, leave=True,
            )  # fmt: skip

    def advance_to(self, done: int) -> None:
        """Move on to `done` units; redraws a bar a few times a second at most, prints nothing else."""
        if self.bar is not None:
            self.bar.update(done - self.done)
        self.done = done

    def report(self, **figures: str) -> None:
        """Show `figures` (already formatted) beside the bar, or print one line."""
        if not self.enabled:
            return
        if self.bar is not None:
            self.bar.set_postfix(figures)
        else:
            tell(self.line(**figures))

    def note(self, *lines: str) -> None:
        """Print lines above the bar."""
        if not self.enabled or not lines:
            return
        if self.bar is not None:
            self.bar.clear()
        tell(*lines)
        if self.bar is not None:
            self.bar.refresh()

    def conclude(self, **figures: str) -> None:
        """End the bar, and show figures that may be too many to stand beside it: below it, or on its plain line."""
        if self.bar is None:
            self.report(**figures)
            return
        self.close()
        words = ", ".join(f"{name}={value}" for name, value in figures.items())
        width = shutil.get_terminal_size().columns
        tell(*textwrap.wrap(words, width, initial_indent="  ", subsequent_indent="  ", break_long_words=False))

    def line(self, **figures: str) -> str:
        """The progress as text."""
        return str(
            tqdm.format_meter(
                n=self.done,
                total=self.total,
                initial=self.initial,
                elapsed=time.monotonic() - self.began,
                prefix=self.title,
                unit=self.unit,
                postfix=", ".join(f"{name}={value}" for name, value in figures.items()),
                bar_format=BAR_FORMAT.replace("{bar}", "{bar:20}"),
                ascii=False,
            )
        )

    def close(self) -> None:
        """End the bar's line."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
