"""Rows with tokens that the training rows seldom have, or that the tokenizer does not know."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from analysis.selection.registry import TOKENS, Candidate, Rows, Strategy, register

SHOWN = 3


def by_rare_pieces(rows: Rows, count: int) -> Iterator[Candidate]:  # noqa: ARG001
    """The mean surprise of the tokens of a row, in nats, under the frequencies of tokens in the training rows.

    One is added to every count; a token that the tokenizer does not know counts as one that never occurs.
    """
    counts = np.zeros(0, np.int64)
    for ids in rows.trained():
        found = np.bincount(ids, minlength=len(counts))
        counts = found + np.pad(counts, (0, len(found) - len(counts)))
    if rows.unknown_id is not None and rows.unknown_id < len(counts):
        counts[rows.unknown_id] = 0
    total = math.log(counts.sum() + len(counts) + 1)
    surprise = total - np.log(counts + 1.0)
    for row in range(rows.count):
        ids = rows.source_ids(row).astype(np.int64)
        known = np.minimum(ids, len(counts) - 1)
        surprises = np.where(ids < len(counts), surprise[known], total) if len(counts) else np.full(len(ids), total)
        rarest = dict.fromkeys(int(ids[place]) for place in np.argsort(-surprises, kind="stable"))
        pieces = ", ".join(_piece(rows, token, counts) for token in list(rarest)[:SHOWN])
        yield Candidate(row, float(surprises.mean()), f"rarest pieces, with their count in training: {pieces}")


def _piece(rows: Rows, token: int, counts: np.ndarray) -> str:
    times = int(counts[token]) if token < len(counts) else 0
    return f"{'unknown' if token == rows.unknown_id else repr(rows.piece(token))} {times:,}"


register(Strategy("rare-pieces", TOKENS, by_rare_pieces))
