"""Checkpoints of a small model: as they lie on the disk, and as they are seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import ByT5Tokenizer

from checkpoints.format import CONTENT_KEY
from checkpoints.saved_run import Position, SavedModel, SavedRun, Scores, Tensors
from models.loading import describe, from_config
from models.tokenizers import pack_tokenizer
from task_utils import get_task
from tests.small_configs import config_of


def whole_checkpoint() -> dict[str, Any]:
    model = from_config(config_of("bart"), seed=1)
    return {
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        CONTENT_KEY: {
            "format_version": 1,
            "model": describe(model),
            "tokenizer": pack_tokenizer(ByT5Tokenizer()),
            "task": get_task("seq2seq").to_dict(),
            "label_map": None,
            "flags": {"max_epoch": 1, "seed": 1},
            "environment": {"threads": 1},
            "monitor": "val_loss",
        },
        "epoch": 1,
        "global_step": 5,
        "pytorch-lightning_version": "2.6.6",
        "callbacks": {
            "Checkpointer": {
                "best_score": None,
                "best_step": 0,
                "validations_without_gain": 0,
                "validation": {},
                "kept": {"best": [], "step": [], "hour": []},
            },
        },
        "loops": {"fit_loop": {}},
        "optimizer_states": [],
        "lr_schedulers": [],
        "Seq2SeqDataModule": {
            "epoch": 1,
            "batches": 0,
            "batches_per_epoch": 5,
            "validation_pending": False,
            "fingerprint": {},
        },
    }


def saved_run(
    path: Path = Path("a.ckpt"),
    state: Mapping[str, Any] | None = None,
    tensors: Tensors | None = None,
    global_step: int = 5,
    kept: Mapping[str, Any] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
) -> SavedRun:
    """A run after its first epoch, with these parts."""
    return SavedRun(
        path=path,
        model=SavedModel(f"-resume_checkpoint {path}", {}, {}, state or {}, tensors or Tensors({})),
        global_step=global_step,
        position=Position(1, 0, 5, False, fingerprint or {}),
        scores=Scores(None, 0, 0, {}, kept or {"best": [], "step": [], "hour": []}),
        monitor="val_loss",
        environment={},
        log=None,
        scaler=None,
    )
