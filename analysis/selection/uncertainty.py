"""Rows whose label the model is unsure of, by its label probabilities; and rows drawn at random, to compare with."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from analysis.selection.registry import ONE_LABEL, SEVERAL_LABELS, TOKENS, Candidate, Rows, Strategy, register


def by_margin(rows: Rows, count: int) -> Iterator[Candidate]:  # noqa: ARG001
    """Less between the two likeliest labels (Scheffer et al. 2001)."""
    for row, shares in rows.all_probabilities():
        second, first = sorted(range(len(shares)), key=lambda label: (shares[label], -label))[-2:]
        margin = shares[first] - shares[second]
        reason = f"{rows.texts[first]} {shares[first]:.4f}, {rows.texts[second]} {shares[second]:.4f}"
        yield Candidate(row, 1 - margin, f"margin {margin:.4f}: {reason}")


def by_entropy(rows: Rows, count: int) -> Iterator[Candidate]:  # noqa: ARG001
    """More entropy of the label probabilities, in nats."""
    for row, shares in rows.all_probabilities():
        entropy = -sum(share * math.log(share) for share in shares if share > 0)
        yield Candidate(row, entropy, f"entropy {entropy:.4f} nats of at most {math.log(len(shares)):.4f}")


def by_rarity(rows: Rows, count: int) -> Iterator[Candidate]:  # noqa: ARG001
    """(1 - p) / (K * share) of the likeliest label: p is its probability, K the number of labels, and share its mean
    probability over all rows, so that labels the model seldom expects count more."""
    means = np.zeros(len(rows.texts))
    for _, shares in rows.all_probabilities():
        means += shares
    means /= max(rows.count, 1)
    for row, shares in rows.all_probabilities():
        label = max(range(len(shares)), key=shares.__getitem__)
        score = (1 - shares[label]) / (len(shares) * float(means[label]))
        reason = f"{rows.texts[label]} {shares[label]:.4f}, a label of {means[label]:.4f} of all rows"
        yield Candidate(row, score, reason)


def by_threshold(rows: Rows, count: int) -> Iterator[Candidate]:  # noqa: ARG001
    """A label close to its threshold, where rows may have several: the closest one decides."""
    for row, shares in rows.all_probabilities():
        distances = [abs(share - least) for share, least in zip(shares, rows.thresholds, strict=True)]
        label = min(range(len(distances)), key=distances.__getitem__)
        reason = f"{rows.texts[label]} {shares[label]:.4f}, threshold {rows.thresholds[label]:.4g}"
        yield Candidate(row, 1 - distances[label], reason)


def at_random(rows: Rows, count: int) -> Iterator[Candidate]:  # noqa: ARG001
    """Every row as likely as any other; what is drawn depends on -seed and the number of rows."""
    draw = np.random.Generator(np.random.PCG64(rows.seed))
    for row, score in enumerate(draw.random(rows.count).tolist()):
        yield Candidate(row, score, "drawn at random")


register(
    Strategy("margin", ONE_LABEL, by_margin),
    Strategy("entropy", ONE_LABEL, by_entropy),
    Strategy("rare-class", ONE_LABEL, by_rarity),
    Strategy("threshold", SEVERAL_LABELS, by_threshold),
    Strategy("random", TOKENS, at_random),
)
