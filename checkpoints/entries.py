"""What a checkpoint must hold, entry by entry, and the refusal of one that does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from checkpoints.format import CONTENT_KEY
from checkpoints.sharded import Rows
from models.adapters.rank_allocation import RANKS_KEY, SUMS
from models.loading import OF_ANOTHER_KIND, is_dense
from models.meter import Totals
from models.optimizers.settings import PLATEAU_COUNTS, PLATEAU_KEY, TRAINED_KEY
from utils.errors import UserError

LOG_KEY = "s2s_log"  # in a checkpoint: what was measured since the last log line, and of the epoch so far
MOST = 1 << 53  # of anything that is counted
MOST_THREADS = 1 << 12
Check = tuple[Callable[[Any], bool], str]  # whether a value may be, and what is expected


def refuse_wrong_entries(checkpoint: Mapping[str, Any], entries: Mapping[str, Check], place: str) -> None:
    """Refuse a checkpoint that lacks one of `entries` (names joined with dots), or has something else there."""
    for name, (may_be, expected) in entries.items():
        value: Any = checkpoint
        for key in name.split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise UserError(f"{place}: {OF_ANOTHER_KIND}: {name} is missing")
            value = value[key]
        if not may_be(value):
            raise UserError(f"{place}: {OF_ANOTHER_KIND}: {name} is {shown(value)}, not {expected}")


def shown(value: Any) -> str:
    """`value` in a few words, whatever it is."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    if isinstance(value, Mapping | list | tuple | set):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value[:60] if isinstance(value, str | bytes) else value)[:80]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST


def _is_number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= MOST)


def _of(keys: Callable[[Any], bool], values: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda found: isinstance(found, Mapping) and all(keys(key) and values(found[key]) for key in found)


def _list_of(values: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda found: isinstance(found, list) and all(map(values, found))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | float | bool) or _is_number(value)


def _is_meter(value: Any) -> bool:
    """`StepMeter.state`: six numbers, and of a mixture of experts the sums of its routers."""
    return isinstance(value, list) and len(value) >= 6 and all(map(_is_number, value))


def _is_totals(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and {field.name for field in fields(Totals)} == set(value)
        and all(map(_is_number, value.values()))
    )


COUNT: Check = (_is_count, "a count")
NUMBER: Check = (_is_number, "a number")
TEXT: Check = (_is_text, "text")
FLAG: Check = (lambda value: isinstance(value, bool), "true or false")
FIGURES: Check = (_of(_is_text, lambda value: isinstance(value, float | int)), "figures by name")
SETTINGS: Check = (_of(_is_text, _is_plain), "plain values by name")

MODEL_ENTRIES: dict[str, Check] = {  # what a checkpoint must hold to give its model
    "state_dict": (
        # The tensors in shards were checked when they were read.
        lambda value: _of(_is_text, is_dense)(value.whole if isinstance(value, Rows) else value),
        "dense tensors by name",
    ),
    f"{CONTENT_KEY}.model.model_config": TEXT,
    f"{CONTENT_KEY}.model.untied": FLAG,
    f"{CONTENT_KEY}.tokenizer": (lambda value: isinstance(value, Mapping), "files by name"),
}
RUN_ENTRIES: dict[str, Check] = {  # and to go on training
    f"{CONTENT_KEY}.task": (lambda value: isinstance(value, Mapping), "a task"),
    f"{CONTENT_KEY}.flags.max_epoch": COUNT,
    f"{CONTENT_KEY}.flags.seed": COUNT,
    f"{CONTENT_KEY}.monitor": TEXT,
    f"{CONTENT_KEY}.environment": (
        lambda value: SETTINGS[0](value) and _is_count(threads := value.get("threads", 0)) and threads <= MOST_THREADS,
        f"plain values by name with up to {MOST_THREADS} threads",
    ),
    "global_step": COUNT,
    "callbacks.Checkpointer.best_score": (
        lambda value: value is None or (isinstance(value, float | int) and not math.isnan(value)),
        "a score",
    ),
    "callbacks.Checkpointer.best_step": COUNT,
    "callbacks.Checkpointer.validations_without_gain": COUNT,
    "callbacks.Checkpointer.validation": FIGURES,
    "callbacks.Checkpointer.kept": (lambda value: isinstance(value, Mapping), "names of checkpoints by kind"),
    "optimizer_states": (
        lambda value: isinstance(value, list) and len(value) <= 1 and all(isinstance(one, Mapping) for one in value),
        "the state of an optimizer",
    ),
    "Seq2SeqDataModule.epoch": COUNT,
    "Seq2SeqDataModule.batches": COUNT,
    "Seq2SeqDataModule.batches_per_epoch": (lambda value: _is_count(value) and value > 0, "a number of batches"),
    "Seq2SeqDataModule.validation_pending": FLAG,
    "Seq2SeqDataModule.fingerprint": SETTINGS,
}
OPTIONAL_ENTRIES: dict[str, dict[str, Check]] = {  # those of an entry that not every checkpoint has
    LOG_KEY: {
        f"{LOG_KEY}.meters": (_list_of(_is_meter), "sums of each process"),
        f"{LOG_KEY}.epoch_totals": (_list_of(_is_totals), "sums of the epoch"),
        f"{LOG_KEY}.epoch_seconds": NUMBER,
        f"{LOG_KEY}.learning_rate": (lambda value: value is None or _is_number(value), "a rate"),
    },
    "MixedPrecision": {
        f"MixedPrecision.{name}": (lambda value: _is_number(value) and value >= 0, "a number")
        for name in ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
    },
    TRAINED_KEY: {TRAINED_KEY: (_of(_is_text, is_dense), "dense tensors by name")},
    RANKS_KEY: {f"{RANKS_KEY}.{kind}": (_of(_is_text, is_dense), "dense tensors by name") for kind in SUMS},
    PLATEAU_KEY: {f"{PLATEAU_KEY}.{name}": COUNT for name in PLATEAU_COUNTS},
}
