"""Seconds of the exact search of `embed.py -corpus` against those of indexes of FAISS, and what these find of it.

    python benchmarks/search_speed.py -passages 100000                        # a minute
    python benchmarks/search_speed.py -index IVF1024,Flat:8:32:64 HNSW32:64   # the numbers: nprobe, or efSearch
    python benchmarks/search_speed.py -index Flat                             # FAISS' own exact search

Vectors are made up: 2,000 clusters, `-spread` wide in 32 directions. Seconds are CPU time, on one thread, which other
work on the machine disturbs least. Indexes need `pip install faiss-cpu`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_CBWR": "AUTO,STRICT"}

import numpy as np  # noqa: E402
import torch  # noqa: E402

from prediction.vectors.search import search  # noqa: E402

CLUSTERS, DIRECTIONS, NOISE = 2000, 32, 0.4
AT_ONCE = 65_536  # vectors that an index is given
MANY = 20_000  # queries of a large job


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def made_up(width: int, spread: float, *counts: int) -> list[np.ndarray]:
    """Vectors of length 1 of one mixture."""
    draw = np.random.Generator(np.random.PCG64(1))
    centres = unit(draw.standard_normal((CLUSTERS, width), np.float32))
    directions = draw.standard_normal((DIRECTIONS, width), np.float32) / np.sqrt(DIRECTIONS * width, dtype=np.float32)
    made = [np.empty((count, width), np.float32) for count in counts]
    for vectors in made:
        for start in range(0, len(vectors), AT_ONCE):
            rows = min(AT_ONCE, len(vectors) - start)
            own = draw.standard_normal((rows, DIRECTIONS), np.float32) @ directions * np.float32(spread)
            own += draw.standard_normal((rows, width), np.float32) * np.float32(NOISE / width**0.5)
            vectors[start : start + rows] = unit(centres[draw.integers(0, CLUSTERS, rows)] + own)
    return made


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return call(), time.process_time() - start


def built(faiss: Any, kind: str, corpus: np.ndarray, sample: int) -> Any:
    """An index of the corpus, trained on `sample` vectors for each of its lists."""
    index = faiss.index_factory(corpus.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        rows = min(len(corpus), sample * getattr(index, "nlist", 256))
        index.train(corpus[np.sort(np.random.Generator(np.random.PCG64(1)).choice(len(corpus), rows, False))])
    for start in range(0, len(corpus), AT_ONCE):
        index.add(corpus[start : start + AT_ONCE])
    return index


def effort(index: Any, value: int) -> None:
    """Set how much of the index a query looks at."""
    if hasattr(index, "nprobe"):
        index.nprobe = value
    elif hasattr(index, "hnsw"):
        index.hnsw.efSearch = value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-passages", type=int, default=1_000_000)
    parser.add_argument("-width", type=int, default=128)
    parser.add_argument("-queries", type=int, default=1000)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("-spread", type=float, default=1.0)
    parser.add_argument("-sample", type=int, default=40, help="vectors for each list that an index is trained on")
    parser.add_argument("-index", nargs="*", default=[], metavar="KIND[:EFFORT...]")
    given = parser.parse_args()
    torch.set_num_threads(1)
    corpus, queries = made_up(given.width, given.spread, given.passages, given.queries)
    ids = [str(row) for row in range(given.passages)]
    exact, seconds = timed(lambda: search(queries, corpus, ids, given.k, torch.device("cpu")))
    print(f"exact search, {given.queries:,} queries among {given.passages:,} x {given.width}: {seconds:.1f} s")
    faiss = importlib.import_module("faiss") if given.index else None
    if faiss:
        faiss.omp_set_num_threads(1)
    for kind, *efforts in (text.split(":") for text in given.index):
        index, making = timed(lambda kind=kind: built(faiss, kind, corpus, given.sample))
        for value in efforts or ["0"]:
            effort(index, int(value))
            (_, rows), own = timed(lambda index=index: index.search(queries, given.k))
            pairs = zip(rows.tolist(), exact.rows.tolist(), strict=True)
            recall = np.mean([len(set(found) & set(best)) / len(best) for found, best in pairs])
            jobs = [seconds * more / (making + own * more) for more in (1, MANY / given.queries)]
            print(
                f"{kind}:{value}: built in {making:.1f} s, {given.queries / own:,.0f} queries/s, recall@{given.k}"
                f" {recall:.3f}; exact / (build + search): {jobs[0]:.2f}, of {MANY:,} queries {jobs[1]:.2f}"
            )


if __name__ == "__main__":
    main()
