"""Flags of `train.py -task retrieval`: vectors, and the loss that compares them. No torch import."""

from __future__ import annotations

import dataclasses

from config.parser import flag, free

FIXED_ROWS = "the loss compares the rows of an optimizer step, whose number must not change; give -batch_size"


@dataclasses.dataclass(frozen=True)
class RetrievalFlags:
    """Retrieval"""

    pooling: str = flag(
        "mean",
        "The vector of a text: mean = of the encoder's states; decoder = the decoder's state at its start token.",
        choices=("mean", "decoder"),
        resume="optimizer",  # the mean trains no decoder
    )
    contrastive_temperature: float = flag(
        0.05, "The cosines of query and passages are divided by it in the loss.", minimum=0.001, maximum=10.0
    )
    negative_column: tuple[str, ...] = free(
        (),
        "Column of a passage that does not answer the row's query (a hard negative), by name or number; may be empty in"
        " some rows; may repeat.",
        metavar="COLUMN",
    )
