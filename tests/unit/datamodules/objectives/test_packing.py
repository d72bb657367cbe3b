"""Documents of a row are corrupted each by itself: exact lengths, nothing lost, no row longer than its text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from datamodules.objectives.frames import Frame
from datamodules.objectives.mlm import MaskedLM
from datamodules.objectives.packing import PackedDocuments, packed
from datamodules.objectives.prefix_lm import PrefixLM
from datamodules.objectives.protocol import Objective
from datamodules.objectives.span_corruption import SpanCorruption
from tests.unit.datamodules.objectives.test_span_corruption import END, EOS, SENTINELS, restored
from utils.errors import UserError


def corpus_rows(raw_length: int, count: int, mean: float) -> list[np.ndarray]:
    """Cuts of a stream of documents of 1 token and more, the end token behind each."""
    generator = np.random.default_rng(0)
    stream = generator.integers(3, 30_000, raw_length * count).astype(np.uint16)
    stream[np.cumsum(1 + generator.geometric(1 / mean, len(stream) // 2)) % len(stream)] = EOS
    return list(stream.reshape(count, raw_length))


@pytest.mark.parametrize("mean", [2, 12, 300])
@pytest.mark.parametrize(
    "objective",
    [
        SpanCorruption(SENTINELS, END, END),
        SpanCorruption(SENTINELS, END, END, 0.4, 1.0, random_roll=True),
        PrefixLM(END, END),
        MaskedLM(31_999, np.arange(3, 100, dtype=np.int32), END, END),
    ],
    ids=["spans", "rolled", "prefix", "mlm"],
)
def test_lengths_are_exact_and_no_row_is_too_long(objective: Objective, mean: int) -> None:
    rows_of = packed(objective, EOS)
    raw = rows_of.raw_length(129)
    assert raw == 128
    rows, samples = corpus_rows(raw, 60, mean), np.arange(60) + 2**33
    sources, targets = rows_of.lengths(rows, samples, seed=5)
    assert max(sources.max(), targets.max()) <= 129
    for number, row in enumerate(rows):
        source, target = rows_of.apply(row, int(samples[number]), seed=5)
        assert (len(source), len(target)) == (sources[number], targets[number])
        pieces = np.split(row, np.flatnonzero(row == EOS) + 1)
        texts = [piece[piece != EOS].tolist() for piece in pieces if (piece != EOS).any()]
        parts = [np.split(side, np.flatnonzero(side == EOS)[:-1] + 1) for side in (source, target)]
        assert len(parts[0]) == len(parts[1]) == len(texts)
        if isinstance(objective, SpanCorruption):
            assert [restored(*part).tolist() for part in zip(*parts, strict=True)] == texts
        elif isinstance(objective, PrefixLM):
            assert [[*one[:-1], *two[:-1]] for one, two in zip(*parts, strict=True)] == texts
        else:
            assert [part[:-1].tolist() for part in parts[1]] == texts


def test_the_documents_of_a_row_have_noise_of_their_own() -> None:
    rows_of: Any = PackedDocuments(SpanCorruption(SENTINELS, Frame.of([], [EOS]), END, 0.4, 1.0), EOS)
    row = np.array([*range(10, 30), EOS] * 6)
    source, _ = rows_of.apply(row, 7, 0)
    parts = {tuple(part.tolist()) for part in np.split(source, np.flatnonzero(source == EOS)[:-1] + 1)}
    assert len(parts) == 6
    assert [len(side) for side in rows_of.apply(np.array([EOS, EOS]), 7, 0)] == [0, 0]
    assert [side.tolist() for side in rows_of.lengths([np.array([EOS]), row], np.array([1, 7]), 0)] == [
        [0, 126],
        [0, 102],
    ]


def test_too_much_noise_is_refused() -> None:
    with pytest.raises(UserError) as refused:
        packed(SpanCorruption(SENTINELS, END, END, 0.5), EOS)
    assert str(refused.value) == (
        "-pack_documents: with -noise_density 0.5 a short document may be longer than its text; give 0.4 or less"
    )
