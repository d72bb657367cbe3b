"""Rows whose label looks wrong: confident learning (Northcutt, Jiang and Chuang 2021, sections 3.1 and 3.2)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.selection.registry import ONE_LABEL, Candidate, Rows, Strategy, register


def by_confident_learning(rows: Rows, count: int) -> Iterator[Candidate]:  # noqa: ARG001
    """Rows that count off the diagonal of the confident joint, by the normalized margin.

    A row is confident of a label whose probability is at least the mean that this label has over the rows which are
    given it; of several such labels the likeliest. Where that is another label than the given one, the row is a
    candidate; its score is p(that label) - p(given label). A label that no row is given is never confident.
    """
    number = {text: label for label, text in enumerate(rows.texts)}
    sums, given = np.zeros(len(number)), np.zeros(len(number), np.int64)
    for row, shares in rows.all_probabilities():
        if (reference := rows.reference(row)) is not None:
            sums[number[reference]] += shares[number[reference]]
            given[number[reference]] += 1
    least = [total / rows_given if rows_given else np.inf for total, rows_given in zip(sums, given, strict=True)]
    for row, shares in rows.all_probabilities():
        if (reference := rows.reference(row)) is None:
            continue
        told = number[reference]
        confident = [label for label, share in enumerate(shares) if share >= least[label]]
        label = max(confident, key=shares.__getitem__, default=told)
        if label != told:
            reason = f"labelled {reference} ({shares[told]:.4f}), looks like {rows.texts[label]} ({shares[label]:.4f})"
            yield Candidate(row, shares[label] - shares[told], reason)


register(Strategy("label-errors", ONE_LABEL, by_confident_learning, needs_references=True))
