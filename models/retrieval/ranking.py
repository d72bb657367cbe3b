"""A validation of retrieval: each query of the validation rows ranks all their passages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ROWS_AT_ONCE = 1024  # queries whose scores are alive at a time
CUTS = (1, 10)  # of recall


def compared(queries: Tensor, passages: Tensor) -> Tensor:
    """(queries, passages) fp32 inner products, under autocast as well: of vectors at length 1 their cosines."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries.float() @ passages.float().T


class RankingMeter:
    """The vectors of a validation, and what the ranks of the right passages come to.

    Every query meets all different passages of the validation rows, on however many processes and in batches of
    whatever size: only another passage of the very same query is left out. A passage with the same score as the right
    one stands before it.

    Args:
        temperature: of the loss.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self._parts: list[tuple[Tensor, ...]] = []  # of every batch: queries, passages, keys of both

    def add_batch(self, batch: Mapping[str, Any], queries: Tensor, passages: Tensor) -> None:
        """Keep the (rows, width) vectors of a batch without hard negatives."""
        rows = batch["num_rows"]
        self._parts.append((queries[:rows], passages[:rows], batch["query_keys"][:rows], batch["passage_keys"][:rows]))

    def figures(self, device: torch.device, world_size: int) -> dict[str, float]:
        """The figures of a validation; every rank must call it, and waits for the device."""
        own = [torch.cat(parts).to(device) for parts in zip(*self._parts, strict=True)]
        every = [_of_all_ranks(part, world_size) for part in own] if world_size > 1 else own
        queries, _, query_keys, passage_keys = own
        _, passages, all_query_keys, all_passage_keys = every
        firsts, columns = _firsts(all_passage_keys)
        candidates, keys = passages[firsts], all_passage_keys[firsts]
        sums = torch.zeros(3 + len(CUTS), dtype=torch.float64, device=device)
        for start in range(0, len(queries), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            sums += self._sums(
                compared(queries[rows], candidates),
                torch.searchsorted(keys, passage_keys[rows].contiguous()),
                _same_queries(query_keys[rows], all_query_keys, columns, len(keys)),
            )
        if world_size > 1:
            torch.distributed.all_reduce(sums)
        count, loss, reciprocal, *found = sums.tolist()
        recalls = {f"recall@{cut}": value / count for cut, value in zip(CUTS, found, strict=True)}
        return {"val_loss": loss / count, "mrr@10": reciprocal / count, **recalls}

    def _sums(self, scores: Tensor, places: Tensor, excluded: Tensor) -> Tensor:
        """Of some queries: their number, loss, reciprocal ranks and hits; `excluded` holds their right passages too."""
        own = scores.gather(1, places.unsqueeze(1))
        others = scores.masked_fill(excluded.scatter(1, places.unsqueeze(1), True), -torch.inf)
        ranks = 1 + (others >= own).sum(1)
        scaled = torch.cat((others, own), 1) / self.temperature
        losses = torch.logsumexp(scaled, 1) - scaled[:, -1]
        reciprocal = (1.0 / ranks) * (ranks <= 10)
        figures = [torch.ones_like(losses), losses, reciprocal, *((ranks <= cut) for cut in CUTS)]
        return torch.stack([figure.double().sum() for figure in figures])


def _firsts(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the first of equal keys, by rising key; and for every key the place of its equals among these."""
    found, columns = torch.unique(keys, return_inverse=True)
    order = torch.argsort(columns, stable=True)
    starts = torch.searchsorted(columns[order], torch.arange(len(found), device=keys.device))
    return order[starts], columns


def _same_queries(keys: Tensor, all_keys: Tensor, columns: Tensor, candidates: int) -> Tensor:
    """(queries, candidates) whether a passage answers another row of the same query."""
    same = torch.zeros(len(keys), candidates, dtype=torch.bool, device=keys.device)
    row, place = (keys.unsqueeze(1) == all_keys).nonzero(as_tuple=True)
    same[row, columns[place]] = True
    return same


def _of_all_ranks(rows: Tensor, world_size: int) -> Tensor:
    """The rows of all ranks, however many each has."""
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(world_size)]
    torch.distributed.all_gather(counts, count)
    sizes = [int(size) for size in counts]
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
