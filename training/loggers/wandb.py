"""Weights & Biases, through Lightning's logger."""

from __future__ import annotations

import os
from collections.abc import Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from checkpoints.run_folder import TRACKERS_FOLDER
from training.loggers.base import PROJECT, SAMPLE_COLUMNS, Samples, Start, curves
from utils.console import tell

SECONDS = 20  # to log in, to begin, and to end: W&B waits in its own hook at the exit as well


class Wandb:
    """Goes online with a login or WANDB_MODE only; else the run lies in trackers/wandb for `wandb sync`."""

    logger: Any

    def start(self, start: Start) -> str:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb
        from pytorch_lightning.loggers import WandbLogger

        folder = (start.folder / TRACKERS_FOLDER).absolute()
        asked = bool(os.environ.get("WANDB_MODE")) or has_login()
        if not asked:
            tell(f"-logger wandb: no login, so the run stays in {folder / 'wandb'}; wandb sync uploads it")
        settings = wandb.Settings(
            console="off",
            init_timeout=SECONDS,
            login_timeout=SECONDS,
            finish_timeout=SECONDS,
            finish_timeout_raises=True,
        )
        self.logger = WandbLogger(
            name=os.environ.get("WANDB_NAME", start.name),
            save_dir=folder,
            id=start.run_id or None,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            mode=None if asked else "offline",
            settings=settings,
        )
        self.logger.log_hyperparams(dict(start.settings))
        return str(self.logger.experiment.id)

    def scalars(self, step: int, phase: str, figures: Mapping[str, float]) -> None:
        self.logger.log_metrics(curves(phase, figures), step)

    def samples(self, step: int, name: str, samples: Samples) -> None:
        self.logger.log_table(name, columns=list(SAMPLE_COLUMNS), data=[list(sample) for sample in samples], step=step)

    def file(self, path: Path) -> None:
        self.logger.experiment.save(path, base_path=path.parent, policy="now")

    def close(self, succeeded: bool) -> None:
        self.logger.experiment.finish(exit_code=0 if succeeded else 1)


def has_login() -> bool:
    """Whether a key of W&B is there: in the environment, or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC") or Path.home() / ".netrc").authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False
