"""Trackio, for which Lightning has no logger."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from training.loggers.base import PROJECT, SAMPLE_COLUMNS, Samples, Start, curves


class Trackio:
    """Goes to TRACKIO_SPACE_ID or TRACKIO_SERVER_URL, else to Trackio's folder on this machine (TRACKIO_DIR)."""

    trackio: Any
    run: Any

    def start(self, start: Start) -> str:
        import trackio

        self.trackio = trackio
        name = start.run_id or f"{start.name}-{uuid4().hex[:8]}"  # Trackio goes on by the name
        self.run = trackio.init(
            os.environ.get("TRACKIO_PROJECT", PROJECT),
            name,
            config=dict(start.settings),
            resume="allow" if start.run_id else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return name

    def scalars(self, step: int, phase: str, figures: Mapping[str, float]) -> None:
        self.run.log(curves(phase, figures), step=step)

    def samples(self, step: int, name: str, samples: Samples) -> None:
        table = self.trackio.Table(list(SAMPLE_COLUMNS), [list(sample) for sample in samples])
        self.run.log({name: table}, step=step)

    def file(self, path: Path) -> None:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", f"{self.run.name}-{path.name}")  # the letters that Trackio takes
        self.trackio.log_artifact(path, name=name, type="file")

    def close(self, succeeded: bool) -> None:
        del succeeded
        self.run.finish()
