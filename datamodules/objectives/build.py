"""The objective of the flags, for a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import ByT5Tokenizer

from config.flags.objective import ObjectiveFlags
from datamodules.objectives.frames import frames
from datamodules.objectives.inverse_cloze import PREFIXES, InverseCloze
from datamodules.objectives.mixed import MixedObjectives
from datamodules.objectives.mlm import MaskedLM
from datamodules.objectives.packing import PackedDocuments, packed
from datamodules.objectives.pieces import Pieces
from datamodules.objectives.prefix_lm import PrefixLM
from datamodules.objectives.protocol import Objective
from datamodules.objectives.sentence_order import CHOICE, LABELS, PREFIX, SentenceOrder
from datamodules.objectives.sentinels import check_sentinels, sentinel_ids
from datamodules.objectives.span_corruption import SpanCorruption
from datamodules.objectives.text_infilling import TextInfilling
from datamodules.objectives.ul2 import MODES, ul2
from utils.errors import UserError, raise_if_any

DENSITY, INFILLED = 0.15, 0.3  # of the tokens, of BART's words
MEAN_LENGTH, MEAN_BYTES = 3.0, 20.0  # of spans of tokens, of ByT5's bytes


def build_objective(
    flags: ObjectiveFlags, tokenizer: Any, max_source: int, max_target: int = 0
) -> Objective | PackedDocuments:
    """The objective of rows whose sources and targets are that long at most; `max_target` 0 = as a source.

    Raises:
        UserError: too few sentinels, no room for a row, no mask, or modes that the tokenizer does not know.
    """
    if 0.0 < flags.mean_span_length < 1.0:
        raise UserError(f"-mean_span_length {flags.mean_span_length}: a span has one token at least; give 1 or more")
    of_text = _objective(flags, tokenizer, max_source)
    if flags.sentence_order:
        order = _sentence_order(tokenizer, max_source)
        rates = (1.0 - flags.sentence_order, flags.sentence_order)
        of_text = MixedObjectives((of_text, order), rates, CHOICE)
    packs = flags.pack_documents
    objective = packed(of_text, tokenizer.eos_token_id) if packs else of_text
    if objective.raw_length(max_source, max_target) < 2:
        target = f" and -max_target_length {max_target}" if max_target else ""
        raise UserError(
            f"-objective {flags.objective}: -max_seq_length {max_source}{target} leave no room for two tokens of text"
            " beside the special tokens; give larger ones"
        )
    check_sentinels(objective, flags.objective, len(sentinel_ids(tokenizer)), max_source, max_target)
    return objective


def build_cloze(flags: ObjectiveFlags, tokenizer: Any, max_query: int, max_passage: int) -> InverseCloze:
    """What makes a query and its passage, that long at most, of a row of another objective.

    Raises:
        UserError: no room for a text.
    """
    cloze = _inverse_cloze(tokenizer, max_query)
    window = cloze.raw_length(max_query, max_passage)
    if window < 2:
        raise UserError(
            f"-inverse_cloze_weight {flags.inverse_cloze_weight}: -max_query_length {max_query} and -max_passage_length"
            f" {max_passage} leave no room for two tokens of text beside the prefixes and special tokens; give larger"
            " ones"
        )
    return replace(cloze, window=window)


def _objective(flags: ObjectiveFlags, tokenizer: Any, max_source: int) -> Objective:
    sentinels, around = sentinel_ids(tokenizer), frames(tokenizer)
    density = flags.noise_density or (INFILLED if flags.objective == "infilling" else DENSITY)
    bytes_ = isinstance(tokenizer, ByT5Tokenizer)
    mean_length = flags.mean_span_length or (MEAN_BYTES if bytes_ else MEAN_LENGTH)
    match flags.objective:
        case "span_corruption":
            return SpanCorruption(sentinels, *around, density, mean_length, flags.random_roll)
        case "ul2":
            return ul2(sentinels, around, _modes(tokenizer), _rates(flags.mode_rates), flags.random_roll)
        case "prefix_lm":
            return PrefixLM(*around)
        case "inverse_cloze":
            return _inverse_cloze(tokenizer, max_source)
        case "mlm" | "encoder_mlm" as name:
            mask, ordinary = _mask(name, tokenizer), Pieces.of(tokenizer).ordinary
            return MaskedLM(mask, ordinary, *around, density, encoder_alone=name == "encoder_mlm")
        case "infilling":
            masks = flags.random_masks, flags.permute_sentences
            mask = _mask("infilling", tokenizer)
            return TextInfilling(Pieces.of(tokenizer), mask, *around, density, mean_length, *masks)
    raise ValueError(f"no objective {flags.objective}")


def _inverse_cloze(tokenizer: Any, max_query: int) -> InverseCloze:
    prefixes = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in PREFIXES)
    query, passage = (side.behind_tokens(ids) for side, ids in zip(frames(tokenizer), prefixes, strict=True))
    return InverseCloze(Pieces.of(tokenizer), tokenizer.eos_token_id, query, passage, max_query - len(query))


def _sentence_order(tokenizer: Any, max_source: int) -> SentenceOrder:
    source, target = frames(tokenizer)
    prefix, *labels = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (PREFIX, *LABELS))
    if any(tokenizer.unk_token_id in ids for ids in (prefix, *labels)):
        raise UserError(
            f"-sentence_order: the tokenizer does not know all of {PREFIX!r}, {LABELS[0]!r} and {LABELS[1]!r}, in which"
            " it asks and answers; train one with these characters"
        )
    source = source.behind_tokens(prefix)
    no, yes = (np.array(ids, np.int32) for ids in labels)
    room = max_source - len(source) - 1
    return SentenceOrder(Pieces.of(tokenizer), (no, yes), tokenizer.eos_token_id, source, target, room)


def _mask(name: str, tokenizer: Any) -> int:
    """The mask of `tokenizer`, else its first sentinel."""
    if tokenizer.mask_token_id is not None:
        return int(tokenizer.mask_token_id)
    sentinels = sentinel_ids(tokenizer)
    if not len(sentinels):
        raise UserError(
            f"-objective {name}: the tokenizer has neither a mask_token nor <extra_id_0>; train one that has, or give"
            " -objective prefix_lm"
        )
    return int(sentinels[0])


def _modes(tokenizer: Any) -> dict[str, list[int]]:
    """Ids in front of the sources of UL2's modes.

    Raises:
        UserError: a mode that holds an unknown token, by which it would be like another.
    """
    modes = {mode: tokenizer(text, add_special_tokens=False)["input_ids"] for mode, text in MODES.items()}
    raise_if_any(
        f"-objective ul2: the tokenizer does not know all of {MODES[mode]}, which stands in front of the sources of"
        f" mode {mode}; train one with these characters"
        for mode, ids in modes.items()
        if tokenizer.unk_token_id in ids
    )
    return modes


def _rates(rates: tuple[str, ...]) -> Mapping[str, float] | None:
    """-mode_rates by mode, 0 for those not named; None without any."""
    if not rates:
        return None
    by_mode: dict[str, float] = {}
    for text in rates:
        mode, _, rate = text.partition(":")
        if mode in by_mode:
            raise UserError(f"-mode_rates {text}: {mode} has a rate already; give one for each mode")
        if mode not in MODES or not re.fullmatch(r"\d{1,6}(\.\d*)?|\.\d+", rate):
            raise UserError(f"-mode_rates {text!r}: expected R, X or S, a colon and a rate from 0 on, e.g. R:0.4")
        by_mode[mode] = float(rate)
    if not any(by_mode.values()):
        raise UserError(f"-mode_rates {' '.join(rates)}: all are 0; give one that is not")
    return dict.fromkeys(MODES, 0.0) | by_mode
