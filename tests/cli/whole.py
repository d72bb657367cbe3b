"""The flags of the run that nobody stops (the fixture `whole_run`), and of those that are compared with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def flags_of(folder: Path, letters: Path, **changes: Any) -> dict[str, Any]:
    """100 rows in batches of 8, 2 to an optimizer step: 7 steps an epoch, the last one short; dropout on."""
    flags = {
        "train_data": f"{letters / 'train.tsv'}:2",
        "valid_data": letters / "valid.tsv",
        "config_path": folder / "bart.json",
        "save_path": folder / "run",
        "cache_dir": folder / "cache",
        "batch_size": 8,
        "grad_acc": 2,
        "max_epoch": 2,
        "learning_rate": 2e-3,
        "valid_check_interval": 0.4,
        "valid_generate_rows": 10,
        "save_every": 2,
        "save_last_k": 20,
        "log_every": 4,
    }
    return {**flags, **changes}
