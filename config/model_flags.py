"""Flags of `train.py` of the model and how it is tuned. No torch import."""

from __future__ import annotations

import dataclasses

from config.parser import flag, free

FREEZABLE = ("embedding", "encoder", "decoder")
OF_A_MODEL = {"init_model": "its layers are taken"}


@dataclasses.dataclass(frozen=True)
class TrainModelFlags:
    """Model"""

    init_model: str = flag(
        "", "Pretrained model to start from: a folder or a hub name; or give -config_path.", resume="if given"
    )
    config_path: str = flag(
        "",
        "Train from scratch: a model config (JSON) or the name of a preset in configs/, e.g. bart-mini.",
        resume="if given",
        excludes={"init_model": "give pretrained weights or a config"},
    )
    encoder_layers: int = flag(
        0,
        "Layers of the encoder of -init_model to begin with, evenly spaced from the first to the last; 0 = all.",
        minimum=0,
        resume="if given",
        needs=OF_A_MODEL,
    )
    decoder_layers: int = flag(
        0,
        "Layers of its decoder to begin with, evenly spaced from the first to the last; 0 = all.",
        minimum=0,
        resume="if given",
        needs=OF_A_MODEL,
    )
    tokenizer: str = flag(
        "", "Tokenizer folder or hub name, or 'bytes' (ByT5's); empty = that of the model or preset.", resume="if given"
    )
    tuning_method: str = flag("finetune", "How the weights are tuned.", choices=("finetune",))
    freeze: tuple[str, ...] = flag(
        (),
        "Part that is not trained: embedding, encoder or decoder.",
        metavar="PART",
        resume="optimizer",
        choices=FREEZABLE,
    )
    gradient_checkpointing: bool = free(
        False, "Recompute activations in the backward pass: less memory, about a third slower."
    )
