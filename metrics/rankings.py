"""Metrics of retrieval: where the right passages stand among all, ranked by the cosines of their vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from metrics.registry import NATS, PAIRS, PASSAGES, Metric, register

register(
    Metric("mrr@10", PASSAGES, "mean of 1 / rank of the right passage, and of 0 where that is beyond 10"),
    Metric("recall@1", PASSAGES, "share of the queries whose right passage comes first"),
    Metric("recall@10", PASSAGES, "share of the queries whose right passage is among the first 10"),
    Metric(
        "val_contrastive_loss",
        PAIRS,
        "loss of retrieval beside that of the texts: mean over the queries of the validation rows, each against all"
        " their passages",
        higher_is_better=False,
        scale=NATS,
    ),
)

CUTS = (1, 5, 10, 20, 100)
DEPTH = 10  # of MRR and nDCG


def ranking_figures(
    relevant: Sequence[Mapping[str, int]], found: Sequence[Sequence[str]], depth: int
) -> dict[str, float]:
    """Means over queries, each from 0 to 1, as `trec_eval` has them (`recip_rank`, `ndcg_cut`, `recall`, `success`).

    `mrr@10`: 1 / rank of the first relevant passage, 0 beyond 10. `ndcg@10`: gains grade / log2(rank + 1), divided by
    those of the best order of all relevant passages. `recall@k`: share of the relevant passages among the first k.
    `success@k`: whether any is there, DPR's top-k accuracy.

    Args:
        relevant: of each query the grades of passages by id; 0 and less is irrelevant. A query with nothing else
            counts as 0.
        found: their ids, best first.
        depth: how many passages were looked for; figures beyond it are left out.
    """
    sums: dict[str, float] = {}
    for grades, ids in zip(relevant, found, strict=True):
        for name, value in _of_query(grades, ids, [cut for cut in CUTS if cut <= depth], depth).items():
            sums[name] = sums.get(name, 0.0) + value
    return {name: value / len(relevant) for name, value in sums.items()}


def _of_query(grades: Mapping[str, int], ids: Sequence[str], cuts: Sequence[int], depth: int) -> dict[str, float]:
    total = sum(grade > 0 for grade in grades.values())
    ranks = [rank for rank, name in enumerate(ids, 1) if grades.get(name, 0) > 0]
    figures = {}
    if depth >= DEPTH:
        figures["mrr@10"] = 1 / ranks[0] if ranks and ranks[0] <= DEPTH else 0.0
        best = sorted(grades.values(), reverse=True)
        figures["ndcg@10"] = _gain([grades.get(name, 0) for name in ids]) / (_gain(best) or 1)
    hits = {cut: sum(rank <= cut for rank in ranks) for cut in cuts}
    figures |= {f"recall@{cut}": count / (total or 1) for cut, count in hits.items()}
    return figures | {f"success@{cut}": float(count > 0) for cut, count in hits.items()}


def _gain(grades: Sequence[int]) -> float:
    return sum(max(grade, 0) / math.log2(rank + 1) for rank, grade in enumerate(grades[:DEPTH], 1))
