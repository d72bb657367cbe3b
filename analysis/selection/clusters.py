"""Rows by the vectors of the encoder: those far from all others, and those that stand for many (scikit-learn)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.selection.registry import VECTORS, Candidate, Rows, Strategy, register
from datamodules.splits import evenly_spaced

ROWS_OF_A_CLUSTER, MOST_CLUSTERS = 50, 100  # among which outliers are looked for
LEAST_ROWS = 5  # of a cluster that others may be far from
PASSES = 3  # over all rows
ROWS_AT_ONCE = 4096
DISTANCES_AT_ONCE = 2**22


def outliers(rows: Rows, count: int) -> Iterator[Candidate]:  # noqa: ARG001
    """The distance from the nearest centre of up to 100 clusters, one for 50 rows.

    Clusters of fewer than 5 rows do not count: a row that is alone would be its own centre.
    """
    vectors = _vectors(rows)
    centres = _clusters(vectors, max(1, min(MOST_CLUSTERS, len(vectors) // ROWS_OF_A_CLUSTER)), rows.seed)
    sizes = np.zeros(len(centres), np.int64)
    for _, cluster, _ in _nearest(vectors, centres):
        sizes[cluster] += 1
    centres = centres[sizes >= min(LEAST_ROWS, sizes.max())]
    for row, _, distance in _nearest(vectors, centres):
        yield Candidate(row, distance, f"distance {distance:.4f} from the nearest cluster")


def representatives(rows: Rows, count: int) -> Iterator[Candidate]:
    """The row nearest to each of `count` cluster centres; large clusters first. An empty cluster gives none."""
    vectors = _vectors(rows)
    centres = _clusters(vectors, min(count, len(vectors)), rows.seed)
    sizes = np.zeros(len(centres), np.int64)
    nearest: dict[int, tuple[float, int]] = {}
    for row, cluster, distance in _nearest(vectors, centres):
        sizes[cluster] += 1
        nearest[cluster] = min(nearest.get(cluster, (np.inf, row)), (distance, row))
    for cluster, (distance, row) in nearest.items():
        reason = f"nearest (distance {distance:.4f}) to the centre of {sizes[cluster]:,} rows"
        yield Candidate(row, float(sizes[cluster]), reason)


def _vectors(rows: Rows) -> np.ndarray:
    assert rows.vectors is not None  # what `VECTORS` stands for
    return rows.vectors


def _clusters(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count, width) centres by k-means in mini-batches (Sculley 2010), in `PASSES` passes over the rows."""
    from sklearn.cluster import MiniBatchKMeans

    at_once = max(ROWS_AT_ONCE, count)  # the first batch must hold a row for each centre
    found = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=at_once)
    found.partial_fit(vectors[evenly_spaced(len(vectors), at_once)])  # centres begin all over the input
    for start in [*range(0, len(vectors), at_once)] * PASSES:
        found.partial_fit(vectors[start : start + at_once])
    centres: np.ndarray = found.cluster_centers_
    return centres


def _nearest(vectors: np.ndarray, centres: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Every row with its nearest centre, and how far that is."""
    from sklearn.metrics.pairwise import euclidean_distances

    at_once = max(1, DISTANCES_AT_ONCE // len(centres))
    for start in range(0, len(vectors), at_once):
        distances = euclidean_distances(vectors[start : start + at_once], centres)
        found = distances.argmin(axis=1)
        for place, cluster in enumerate(found.tolist()):
            yield start + place, cluster, round(float(distances[place, cluster]), 6)


register(
    Strategy("outliers", VECTORS, outliers),
    Strategy("diversity", VECTORS, representatives),
)
