"""The figures as one table, trackers/metrics.csv of the run: a row for each step and phase, a column for each figure.

Lightning's own CSV logger deletes the table of a run that is resumed.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from checkpoints.run_folder import TRACKERS_FOLDER
from training.loggers.base import Samples, Start, shared_name
from utils.files import write_file

CSV_NAME = "metrics.csv"


class CsvTable:
    """Begins the table anew in every process, with what stays of metrics.jsonl.

    A figure that was not there before is a new column, for which the whole table is written.
    """

    path: Path
    columns: list[str]

    def start(self, start: Start) -> str:
        self.path = start.folder / TRACKERS_FOLDER / CSV_NAME
        self.columns = ["step", "phase"]
        self._write([])
        return ""

    def scalars(self, step: int, phase: str, figures: Mapping[str, float]) -> None:
        row = _row(step, phase, figures)
        if row.keys() <= set(self.columns):
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        else:
            with open(self.path, encoding="utf-8", newline="") as file:
                rows: list[dict[str, Any]] = list(csv.DictReader(file))
            self._write([*rows, row])

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.columns = list(dict.fromkeys([*self.columns, *(name for row in rows for name in row)]))
        text = StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(rows)
        write_file(self.path, lambda file: file.write(text.getvalue().encode("utf-8", "backslashreplace")))

    def samples(self, step: int, name: str, samples: Samples) -> None:
        """A table of figures holds no texts."""

    def file(self, path: Path) -> None:
        """The files of the run lie beside the table."""

    def close(self, succeeded: bool) -> None:
        """Every row is in the file."""


def _row(step: int, phase: str, figures: Mapping[str, float]) -> dict[str, Any]:
    return {"step": step, "phase": phase, **{shared_name(name): value for name, value in figures.items()}}
