"""`best/`, `last/` and exports: from_pretrained folders with the state of the training beside the weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.saved_run import DIGEST_KEY, TASKS_KEY, SavedRun
from models.adapters.folder import write_adapter
from models.adapters.tuning import adapter_of
from models.adapters.tuning import state as state_of
from models.architectures import architecture
from models.special_tokens import adds_no_end
from models.switch import modeling_switch_t5
from utils.files import STATE_NAME, write_folder, write_json

WEIGHTS_SUFFIX = ".safetensors"
CODE_NAME = Path(modeling_switch_t5.__file__).name  # tells transformers of layers of ours
END_TOKEN_NAME = "end_token.txt"
END_TOKEN_NOTE = """\
The tokenizer of this model adds no end token. The model was trained on sources that end with `{token}`, and
`inference.py` appends it. With plain `transformers`, append it too:

    inputs = tokenizer([text + tokenizer.eos_token for text in texts], padding=True, return_tensors="pt")
"""
DESCRIBED = ("task", "label_map", TASKS_KEY, "flags")  # of a checkpoint's content, in the state as well


@dataclass(frozen=True)
class Exported:
    """Where the training stood: the numbers in training_state.json."""

    epoch: int
    micro_batches_of_epoch: int
    global_step: int
    monitor: str
    best_score: float | None
    best_step: int
    validation: Mapping[str, float]  # figures of the latest validation


def write_export(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    exported: Exported,
    description: Mapping[str, Any],
    weights: Mapping[str, Any] | None = None,
) -> None:
    """Swap `folder` for one with this model, tokenizer and state.

    Args:
        weights: those of `model`, which trains on meanwhile; None takes them from it.

    Raises:
        RunError: the disk refused; the folder is as it was before.
    """
    state = training_state(exported, description)
    needed = weight_bytes(weights) if weights else model_bytes(model)
    write_folder(folder, lambda target: fill_folder(target, model, tokenizer, state, weights), needed=needed)


def training_state(exported: Exported, description: Mapping[str, Any]) -> dict[str, Any]:
    """The content of training_state.json: where the training stood, and the `DESCRIBED` parts of the description."""
    return {**asdict(exported), **{key: description[key] for key in DESCRIBED if key in description}}


def fill_folder(
    target: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state: Mapping[str, Any],
    weights: Mapping[str, Any] | None = None,
) -> None:
    """Write weights, config, generation config and tokenizer into `target`, and `state` if there is any.

    Of a model with an adapter the weights and the config are those of the adapter, as `peft` writes them.

    Beside a model with layers of ours lies the file that tells transformers of them.

    Where the tokenizer puts no end token behind a source, a text file says how others give the model what it was
    trained on: `train.py` and `inference.py` append the token themselves.
    """
    adapter = adapter_of(model)
    if adapter is None:
        model.save_pretrained(target, state_dict=weights)
        if architecture(model.config.model_type).experts:
            shutil.copyfile(modeling_switch_t5.__file__, target / CODE_NAME)
    else:
        write_adapter(target, model, weights)
        model.generation_config.save_pretrained(target)
        state = {**state, DIGEST_KEY: adapter.digest} if state else state
    tokenizer.save_pretrained(target)
    if state:
        write_json(target / STATE_NAME, state)
    if adds_no_end(tokenizer):
        (target / END_TOKEN_NAME).write_text(END_TOKEN_NOTE.format(token=tokenizer.eos_token), encoding="utf-8")


def model_bytes(model: PreTrainedModel) -> int:
    """About what the weights take on the disk: of an adapter, where the model has one."""
    return weight_bytes(state_of(model) if adapter_of(model) else model.state_dict())


def weight_bytes(weights: Mapping[str, Any]) -> int:
    """About what weights take on the disk."""
    return sum(value.nbytes for value in weights.values())


def exported_at(run: SavedRun) -> Exported:
    """Where the training stood at a checkpoint."""
    scores = run.scores
    return Exported(
        epoch=run.position.epoch,
        micro_batches_of_epoch=run.position.batches,
        global_step=run.global_step,
        monitor=run.monitor,
        best_score=scores.best_score,
        best_step=scores.best_step,
        validation=scores.validation,
    )
