"""What a logger takes from a run, and the names under which the trackers show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

KEYS = ("step", "epoch", "phase")  # of a line in metrics.jsonl; the rest are figures
PROJECT = "seq2seq"  # in which a tracker puts the run, unless its own variable of the environment names another
SAMPLE_COLUMNS = ("source", "reference", "prediction")

Samples = Sequence[tuple[str, str, str]]  # as SAMPLE_COLUMNS


@dataclass(frozen=True)
class Start:
    """What a logger begins with, or goes on with after a resume.

    Args:
        folder: of the run.
        run_id: what `start` gave in an earlier process of this run; empty = there was none.
        settings: the flags, as hyper-parameters.
        first_step: the first optimizer step whose figures come again; earlier ones stay.
        lines: of metrics.jsonl, those that stay. A logger that gives no id, or begins anew, is given all of them by
            `scalars` as well.
    """

    folder: Path
    run_id: str
    settings: Mapping[str, Any]
    first_step: int
    lines: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """That of the folder."""
        return self.folder.absolute().name


class RunLogger(Protocol):
    """Shows a run's figures. Only the first process has one."""

    def start(self, start: Start) -> str:
        """Begin, or go on; returns the id by which a resumed run goes on."""

    def scalars(self, step: int, phase: str, figures: Mapping[str, float]) -> None:
        """Take figures of `phase`, "train" or "valid", at an optimizer step."""

    def samples(self, step: int, name: str, samples: Samples) -> None:
        """Take some predictions of a validation."""

    def file(self, path: Path) -> None:
        """Take a file of the run, which is whole."""

    def close(self, succeeded: bool) -> None:
        """End; nothing is taken any more."""


def figures_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a line of metrics.jsonl."""
    return {name: value for name, value in line.items() if name not in KEYS}


def shared_name(name: str) -> str:
    """The name that a figure has in training and in validation alike: `TASK/val_loss` is `TASK/loss`."""
    task, slash, figure = name.rpartition("/")
    return f"{task}{slash}{figure.removeprefix('val_')}"


def curves(phase: str, figures: Mapping[str, float]) -> dict[str, float]:
    """The figures by names that put training and validation side by side: loss/train, loss/valid, TASK/loss/valid."""
    return {f"{shared_name(name)}/{phase}": value for name, value in figures.items()}
