"""Which ids mark the spans: `<extra_id_0>`, `<extra_id_1>` and so on, and those of ByT5."""

from __future__ import annotations

from itertools import count, takewhile
from typing import Any

import numpy as np
from transformers import ByT5Tokenizer

from config.flags.train_tokenizer import MOST_SENTINELS
from datamodules.objectives.packing import PackedDocuments
from datamodules.objectives.protocol import Ids, Objective, largest_fitting
from utils.errors import UserError

BYTES = 259  # ids of ByT5's pad, </s>, <unk> and the 256 bytes
NEVER_IN_TEXT = range(BYTES - 1, 0xF4 + 3, -1)  # the bytes FF to F5, which no UTF-8 text has
NAMES = ("▁<extra_id_{}>", "<extra_id_{}>")  # the first where they are pieces of the SentencePiece model: mT5's


def sentinel_ids(tokenizer: Any) -> Ids:
    """All sentinels of the vocabulary, in the order of use.

    Google trained ByT5 with the ids of the bytes that are in no text, from 258 down; the library's ByT5 tokenizer calls
    others `<extra_id_0>` and on, from 259 up. We take the first kind first, then the second.
    """
    if isinstance(tokenizer, ByT5Tokenizer):
        return np.array([*NEVER_IN_TEXT, *range(BYTES, len(tokenizer))], np.int32)
    vocabulary = tokenizer.get_vocab()
    for name in NAMES:
        known = list(takewhile(lambda id_: id_ is not None, map(vocabulary.get, map(name.format, count()))))
        if known:
            return np.array(known, np.int32)
    return np.zeros(0, np.int32)


def check_sentinels(
    objective: Objective | PackedDocuments, name: str, available: int, max_source: int, max_target: int = 0
) -> None:
    """Refuse rows with more spans than there are sentinels: the ids below them are those of ordinary tokens.

    Raises:
        UserError: how many are needed, how many there are, and the ways out.
    """

    def needed(length: int) -> int:
        return objective.sentinels_needed(objective.raw_length(length, max_target))

    most = needed(max_source)
    if most <= available:
        return
    way_out = "an objective that needs none"
    if available:
        shorter = largest_fitting(lambda length: needed(length) <= available)
        way_out = "a larger -mean_span_length, or " if name == "span_corruption" else ""
        way_out += f"-max_seq_length {shorter} or less"
    train = f"train one with train_tokenizer.py -sentinels {most}, or " if most <= MOST_SENTINELS else ""
    raise UserError(
        f"-objective {name}: rows of -max_seq_length {max_source} need {most} sentinels (<extra_id_0> to"
        f" <extra_id_{most - 1}>), the tokenizer has {available or 'none'}; {train}give {way_out}"
    )
