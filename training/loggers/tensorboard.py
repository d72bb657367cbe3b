"""TensorBoard, in lightning_logs/ of the run."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from training.loggers.base import SAMPLE_COLUMNS, Samples, Start, figures_of


class TensorBoard:
    """Writes the event files. Raises `OSError` where the disk refuses: the run cannot be saved there either."""

    writer: SummaryWriter

    def start(self, start: Start) -> str:
        """TensorBoard drops whole steps only, so that it is given anew what stays of a step whose validation goes."""
        threading.excepthook = _thread_failed
        self.writer = SummaryWriter(str(start.folder / "lightning_logs"), purge_step=start.first_step)
        for line in start.lines:
            if line["step"] >= start.first_step:
                self.scalars(line["step"], str(line.get("phase")), figures_of(line))
        return ""

    def scalars(self, step: int, phase: str, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(f"{phase}/{name}", value, step)

    def samples(self, step: int, name: str, samples: Samples) -> None:
        self.writer.add_text(f"valid/{name}", samples_table(samples), step)

    def file(self, path: Path) -> None:
        """TensorBoard shows no files."""

    def flush(self) -> None:
        self.writer.flush()

    def close(self, succeeded: bool) -> None:
        del succeeded
        self.writer.close()


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, except of TensorBoard's: the next call of its writer raises the same error."""
    told_later = isinstance(failure.exc_value, OSError) and type(failure.thread).__module__.startswith("tensorboard")
    if not told_later:
        threading.__excepthook__(failure)


def samples_table(samples: Samples) -> str:
    """A Markdown table of (source, reference, prediction)."""

    def cell(text: str) -> str:
        return text[:200].replace("|", "\\|").replace("\n", " ")

    rows = [f"| {' | '.join(map(cell, sample))} |" for sample in samples]
    return "\n".join([f"| {' | '.join(SAMPLE_COLUMNS)} |", "| --- | --- | --- |", *rows])
