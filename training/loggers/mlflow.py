"""MLflow, through Lightning's logger; mlflow-skinny is enough."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.run_folder import TRACKERS_FOLDER
from training.loggers.base import PROJECT, SAMPLE_COLUMNS, Samples, Start, curves


class Mlflow:
    """Goes to MLFLOW_TRACKING_URI, else to files in trackers/mlruns."""

    logger: Any

    def start(self, start: Start) -> str:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # the store that needs no more than mlflow-skinny
        from pytorch_lightning.loggers import MLFlowLogger

        for name in ("mlflow", "pytorch_lightning.loggers.mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        store = (start.folder / TRACKERS_FOLDER / "mlruns").absolute().as_uri()
        self.logger = MLFlowLogger(
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
            run_name=start.name,
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or store,
            run_id=start.run_id or None,
        )
        if start.run_id:
            self.logger.experiment.update_run(start.run_id, status="RUNNING")
        else:  # MLflow changes no parameter
            self.logger.log_hyperparams(dict(start.settings))
        return str(self.logger.run_id)

    def scalars(self, step: int, phase: str, figures: Mapping[str, float]) -> None:
        self.logger.log_metrics({_allowed(name): value for name, value in curves(phase, figures).items()}, step)

    def samples(self, step: int, name: str, samples: Samples) -> None:
        table = {"columns": list(SAMPLE_COLUMNS), "data": [list(sample) for sample in samples]}
        self.logger.experiment.log_dict(self.logger.run_id, table, f"{name}/step{step}.json")

    def file(self, path: Path) -> None:
        self.logger.experiment.log_artifact(self.logger.run_id, path)

    def close(self, succeeded: bool) -> None:
        self.logger.finalize("success" if succeeded else "failed")


def _allowed(name: str) -> str:
    """The name of a figure in the letters that MLflow takes; the name of a task may have others."""
    return re.sub(r"[^\w/. -]", lambda letter: f"u{ord(letter[0]):x}", name, flags=re.ASCII)
