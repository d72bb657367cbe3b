"""Exact search in blocks against sorting everything, and the files that say what is relevant."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from prediction.vectors import search as searching
from prediction.vectors.relevance import read_qrels
from prediction.vectors.search import search
from utils.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("k", "step"), [(3, 1), (40, 1), (3, 997)])
def test_what_is_found_is_what_sorting_gives(k: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole numbers, so that sums are exact; small ones, so that most scores are those of several passages, and large
    ones; ids repeat."""
    monkeypatch.setattr(searching, "SCORES_ON_CPU", 10 * k)
    monkeypatch.setattr(searching, "QUERIES_AT_ONCE", 4)
    draw = np.random.Generator(np.random.PCG64(k))
    corpus = draw.integers(-2, 3, (60, 4)).astype(np.float32)
    corpus[7] = -corpus[8]  # a score of -0.0 too
    corpus += np.arange(60)[:, None] * (step - 1)
    queries = draw.integers(-2, 3, (9, 4)).astype(np.float32)
    queries[0] = 0.0
    ids = [f"{row % 50}" if row % 2 else f"가{row % 50}" for row in range(60)]
    found = search(list(queries), corpus, ids, k, CPU)
    first = [row for row in range(60) if ids.index(ids[row]) == row]
    for query, rows, scores in zip(queries, found.rows.tolist(), found.scores.tolist(), strict=True):
        own = corpus @ query
        by_id = sorted(first, key=lambda row: ids[row].encode(), reverse=True)
        expected = sorted(by_id, key=lambda row: -own[row])[:k]
        assert rows == expected
        assert scores == own[expected].tolist()


def test_a_single_query_reads_the_corpus_in_blocks_too() -> None:
    corpus = np.zeros((40_000, 256), np.float32)
    corpus[31_234, 5] = 1.0
    ids = [str(row) for row in range(len(corpus))]
    tracemalloc.start()
    try:
        found = search([corpus[31_234]], corpus, ids, 1, CPU)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found.rows.tolist(), found.scores.tolist()) == ([[31_234]], [[1.0]])
    assert most < corpus.nbytes / 2


def test_a_vector_that_is_not_finite_is_told() -> None:
    corpus = np.ones((3, 2), np.float16)
    corpus[1, 1] = np.nan
    with pytest.raises(UserError, match="-corpus: a vector is not finite"):
        search([np.ones(2, np.float32)], corpus, ["a", "b", "c"], 2, CPU)


def test_qrels_of_trec_and_of_beir(tmp_path: Path) -> None:
    trec, beir, wrong = (tmp_path / name for name in ("trec", "beir.tsv", "wrong"))
    trec.write_text("q1 0 d1 1\nq1 0 d2 0\n\nq2 Q0 d1 2\n")
    assert read_qrels(trec, "-qrels") == {"q1": {"d1": 1, "d2": 0}, "q2": {"d1": 2}}
    beir.write_text("query-id\tcorpus-id\tscore\nq 1\td 1\t1\n")
    assert read_qrels(beir, "-qrels") == {"q 1": {"d 1": 1}}
    wrong.write_text("q1 0 d1 1\nq1 d2 much\n")
    with pytest.raises(UserError, match=r"-qrels: line 2: .*not 'q1 d2 much'"):
        read_qrels(wrong, "-qrels")
    for line in ("q1 0 d1 much", "q1 0 d1 --1"):
        wrong.write_text(f"{line}\nq2 0 d1 1\n")
        with pytest.raises(UserError, match=rf"-qrels: line 1: .*not '{line}'"):
            read_qrels(wrong, "-qrels")
    wrong.write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(UserError, match="holds no judgement"):
        read_qrels(wrong, "-qrels")
