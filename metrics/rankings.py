"""Metrics of retrieval: where the right passages stand among all, ranked by the cosines of their vectors."""

from __future__ import annotations

from metrics.registry import PASSAGES, Metric, register

register(
    Metric("mrr@10", PASSAGES, "mean of 1 / rank of the right passage, and of 0 where that is beyond 10"),
    Metric("recall@1", PASSAGES, "share of the queries whose right passage comes first"),
    Metric("recall@10", PASSAGES, "share of the queries whose right passage is among the first 10"),
)
