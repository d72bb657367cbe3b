"""Exact search: the passages whose vectors have the largest inner products with those of queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from utils.errors import UserError
from utils.progress import ProgressLine

SCORES_ON_CPU = 2**22  # of a block, 16 MB: larger ones leave the cache
SCORES_ON_GPU = 2**24
QUERIES_AT_ONCE = 1024
LOW = 0xFFFFFFFF  # the lower half of a key


@dataclass(frozen=True)
class Found:
    """The rows of the corpus that were found for each query, best first, and their scores: (queries, k)."""

    rows: np.ndarray
    scores: np.ndarray


def distinct_rows(ids: Sequence[str]) -> np.ndarray:
    """The first row of each id."""
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        first.setdefault(name, row)
    return np.fromiter(first.values(), np.int64, len(first))


def search(
    queries: Sequence[np.ndarray], corpus: np.ndarray, ids: Sequence[str], k: int, device: torch.device
) -> Found:
    """The `k` passages (all, where there are fewer) with the highest scores for each query.

    The inner products are fp32. Passages of one score stand in the falling order of their ids, byte by byte, as
    `trec_eval` has it; rows with one id are one passage, of which the first counts. In memory are the blocks that are
    compared, and `k` passages for each query.

    Raises:
        UserError: a vector of the corpus that is not finite.
    """
    taken = distinct_rows(ids)
    order = places_by_id([ids[row] for row in taken.tolist()])
    rows = max(k, (SCORES_ON_CPU if device.type == "cpu" else SCORES_ON_GPU) // QUERIES_AT_ONCE)
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    progress = ProgressLine("[SEARCH]", len(taken), unit="passage", enabled=True)
    for start in range(0, len(taken), rows):
        block = torch.from_numpy(corpus[taken[start : start + rows]].astype(np.float32)).to(device)
        if not bool(torch.stack(block.aminmax()).isfinite().all()):
            raise UserError("-corpus: a vector is not finite; make the vectors again with embed.py")
        places = torch.from_numpy(order[start : start + rows]).to(device)
        parts = []
        for first in range(0, len(queries), QUERIES_AT_ONCE):
            wanted = np.stack([queries[row] for row in range(first, min(first + QUERIES_AT_ONCE, len(queries)))])
            scores = torch.from_numpy(wanted.astype(np.float32)).to(device) @ block.T
            parts.append(_with_block(best[first : first + QUERIES_AT_ONCE], scores, places, k))
        best = torch.cat(parts)
        progress.advance_to(min(start + rows, len(taken)))
    progress.report()
    progress.close()
    row_at = np.empty_like(order)
    row_at[order] = taken
    return Found(row_at[LOW - (best & LOW).cpu().numpy()], _scores(best >> 32).cpu().numpy())


def places_by_id(ids: Sequence[str]) -> np.ndarray:
    """(rows,) where each row stands among all by its id, the last by the bytes of UTF-8 first."""
    order = pc.sort_indices(pa.array(ids, pa.large_string()), sort_keys=[("", "descending")]).to_numpy()
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places


def _highest(keys: Tensor, k: int) -> Tensor:
    return keys.topk(min(k, keys.shape[1]), 1).values


def _with_block(best: Tensor, scores: Tensor, places: Tensor, k: int) -> Tensor:
    """The keys of the `k` best passages of `best` and of a block, of which few have a score that is high enough."""
    if best.shape[1] < k:
        return _highest(torch.cat((best, _keys(scores, places)), 1), k)
    rows, columns = (scores >= _scores(best[:, -1:] >> 32)).nonzero(as_tuple=True)
    counts = rows.bincount(minlength=len(scores))
    within = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    keys = best.new_full((len(scores), int(counts.max())), torch.iinfo(torch.int64).min)
    keys[rows, within] = _keys(scores[rows, columns], places[columns])
    return _highest(torch.cat((best, keys), 1), k)


def _keys(scores: Tensor, places: Tensor) -> Tensor:
    """Numbers that are ordered as the scores, and where these are the same by falling place."""
    bits = (scores + 0.0).view(torch.int32).to(torch.int64)  # of -0.0 the sum is 0.0
    rising = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    return (rising << 32) | (LOW - places)


def _scores(rising: Tensor) -> Tensor:
    """The scores whose keys begin so."""
    bits = torch.where(rising >= 0, rising, rising ^ 0x7FFFFFFF)
    return bits.to(torch.int32).view(torch.float32)
