"""Figures of rankings, worked out by hand; those of `trec_eval` for the same."""

from __future__ import annotations

import math
from typing import Any

import pytest

from metrics.rankings import ranking_figures
from tests.official_scorers import golden_cases


def test_figures_of_three_queries() -> None:
    """The relevant ones at ranks 2 and 3 (and one not found), at rank 11, and graded ones at ranks 1 and 2."""
    relevant = [{"a": 1, "b": 1, "lost": 1, "no": 0}, {"k": 1}, {"x": 1, "y": 3, "bad": -1}]
    found = [["no", "a", "b"], [*map(str, range(10)), "k"], ["x", "y", "bad"]]
    figures = ranking_figures(relevant, found, depth=20)
    log3 = math.log2(3)
    first = (1 / log3 + 1 / 2) / (1 + 1 / log3 + 1 / 2)
    third = (1 + 3 / log3) / (3 + 1 / log3)
    assert figures == pytest.approx(
        {
            "mrr@10": (1 / 2 + 0 + 1) / 3,
            "ndcg@10": (first + 0 + third) / 3,
            "recall@1": (0 + 0 + 1 / 2) / 3,
            "recall@5": (2 / 3 + 0 + 1) / 3,
            "recall@10": (2 / 3 + 0 + 1) / 3,
            "recall@20": (2 / 3 + 1 + 1) / 3,
            "success@1": 1 / 3,
            "success@5": 2 / 3,
            "success@10": 2 / 3,
            "success@20": 1.0,
        },
        abs=1e-12,
    )
    assert list(ranking_figures(relevant, found, depth=5)) == ["recall@1", "recall@5", "success@1", "success@5"]


OFFICIAL = {"ndcg@10": "ndcg_cut_10"} | {
    f"{name}@{cut}": f"{name}_{cut}"
    for name, cuts in (("recall", (1, 5, 10, 20)), ("success", (1, 5, 10)))
    for cut in cuts
}


def test_trec_eval() -> None:
    """Of equal scores the last id by its bytes comes first; queries without judgements or results do not count."""

    def ids(scores: dict[str, float]) -> list[str]:
        by_id = sorted(scores, key=str.encode, reverse=True)
        return sorted(by_id, key=lambda name: -scores[name])

    for case in golden_cases("retrieval"):
        relevant, scores = case["references"], case["predictions"]
        queries = [query for query in relevant if query in scores]
        expected: dict[str, Any] = case["expected"]["trec_eval"]
        assert len(queries) == expected["queries_evaluated"], case["id"]
        if not queries:
            continue
        found = [ids(scores[query]) for query in queries]
        figures = ranking_figures([relevant[query] for query in queries], found, depth=100)
        official = {name: expected["mean"][key] for name, key in OFFICIAL.items()}
        assert {name: figures[name] for name in OFFICIAL} == pytest.approx(official, abs=1e-9), case["id"]
        if all(query in scores and any(grade > 0 for grade in relevant[query].values()) for query in relevant):
            assert figures["mrr@10"] == pytest.approx(case["expected"]["ms_marco_mrr_at_10"], abs=1e-9), case["id"]
