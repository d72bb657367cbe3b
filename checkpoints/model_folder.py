"""`best/`, `last/` and exports: from_pretrained folders with the state of the training beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.format import MODEL_ENTRIES, model_weights, read_checkpoint
from checkpoints.run_folder import CONTENT_KEY, exported_step, validated_checkpoint
from generation.decoder import DecodingOptions, generation_config
from models.loading import from_checkpoint
from models.tokenizers import unpack_tokenizer
from utils.console import tell
from utils.files import STATE_NAME, write_folder, write_json

DESCRIBED = ("task", "label_map", "flags")  # of a checkpoint's content, in the state as well


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
) -> None:
    """Swap `folder` for one with this model, tokenizer and state.

    Raises:
        RunError: the disk refused; the folder is as it was before.
    """
    state = training_state(exported, description)
    write_folder(folder, lambda target: fill_folder(target, model, tokenizer, state), needed=model_bytes(model))


def training_state(exported: Exported, description: Mapping[str, Any]) -> dict[str, Any]:
    """The content of training_state.json: where the training stood, and the `DESCRIBED` parts of the description."""
    return {**asdict(exported), **{key: description[key] for key in DESCRIBED}}


def fill_folder(
    target: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, state: Mapping[str, Any]
) -> None:
    """Write weights, config, generation config and tokenizer into `target`, and `state` if there is any."""
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    if state:
        write_json(target / STATE_NAME, state)


def model_bytes(model: PreTrainedModel) -> int:
    """About what the weights take on the disk."""
    return sum(value.nbytes for value in model.state_dict().values())


def exported_at(checkpoint: Mapping[str, Any]) -> Exported:
    """Where the training stood at a checkpoint with all `RUN_ENTRIES`."""
    position, state = checkpoint["Seq2SeqDataModule"], checkpoint["callbacks"]["Checkpointer"]
    return Exported(
        epoch=position["epoch"],
        micro_batches_of_epoch=position["batches"],
        global_step=checkpoint["global_step"],
        monitor=checkpoint[CONTENT_KEY]["monitor"],
        best_score=state["best_score"],
        best_step=state["best_step"],
        validation=state["validation"],
    )


def complete_exports(folder: Path, checkpoint: Mapping[str, Any], finished: bool) -> None:
    """Write what a kill between a checkpoint and its `best/` (when `finished`, also `last/`) left undone.

    Args:
        checkpoint: the one that is resumed.
    """
    state = checkpoint["callbacks"]["Checkpointer"]
    best_step, step = state["best_step"], checkpoint["global_step"]
    if best_step and exported_step(folder, "best") != best_step:
        origin = Path(checkpoint["path"]).parent.parent  # another folder, when the run goes on in a new one
        path = validated_checkpoint(folder, best_step) or validated_checkpoint(origin, best_step)
        if best_step == step:
            export_checkpoint(folder / "best", checkpoint)
        elif path is not None:
            export_checkpoint(folder / "best", read_checkpoint(path, needed=MODEL_ENTRIES))
    if finished and exported_step(folder, "last") != step:
        export_checkpoint(folder / "last", checkpoint)


def export_checkpoint(folder: Path, checkpoint: Mapping[str, Any]) -> None:
    """Make `folder` what the run would have exported at this checkpoint, and say so."""
    content = checkpoint[CONTENT_KEY]
    model = from_checkpoint(content["model"], model_weights(checkpoint), str(folder))
    tokenizer = unpack_tokenizer(content["tokenizer"], str(folder))
    model.generation_config = generation_config(model, tokenizer, DecodingOptions())
    write_export(folder, model, tokenizer, exported_at(checkpoint), content)
    tell(f"{folder} was not finished: written anew from the checkpoint of optimizer step {checkpoint['global_step']}")
