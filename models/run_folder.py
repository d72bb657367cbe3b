"""Names of the files of a run, and whether a folder holds one. No torch import."""

from __future__ import annotations

import os
from pathlib import Path

CHECKPOINT_FOLDER = "saved_checkpoints"
LAST_NAME = "last.ckpt"
STEP_LOG = "metrics.jsonl"
EPOCH_LOG = "log.json"
CONFIG_NAME = "config.json"
STATE_NAME = "training_state.json"
TEST_REPORT = "test_report.json"
CACHE_FOLDER = "cache"
RUN_NAMES = (
    CONFIG_NAME,
    CHECKPOINT_FOLDER,
    "best",
    "last",
    STEP_LOG,
    EPOCH_LOG,
    TEST_REPORT,
    "lightning_logs",
    CACHE_FOLDER,
)


def newest_checkpoint(folder: Path) -> Path:
    """`last.ckpt` of a run's folder."""
    return folder / CHECKPOINT_FOLDER / LAST_NAME


def holds_run(folder: Path) -> bool:
    """Whether `folder` already holds the files of a run."""
    names = (CONFIG_NAME, CHECKPOINT_FOLDER, "best", "last", STEP_LOG, EPOCH_LOG)
    return any(os.path.lexists(folder / name) for name in names)
