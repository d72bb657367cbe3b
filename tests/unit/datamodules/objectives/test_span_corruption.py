"""Span corruption: the lengths of the T5 code, noise that depends on seed and sample alone, and nothing lost."""

from __future__ import annotations

import re

import numpy as np
import pytest

from datamodules.objectives.frames import Frame
from datamodules.objectives.noise import random_parts
from datamodules.objectives.span_corruption import SpanCorruption, one_span_count
from tests.documents import text_of

EOS = 1
END = Frame.of([], [EOS])
FIRST_SENTINEL = 31_999
SENTINELS = np.arange(FIRST_SENTINEL, FIRST_SENTINEL - 600, -1).astype(np.int32)
HIGHEST = FIRST_SENTINEL - 600  # ids of ordinary tokens are below


def span_corruption(density: float = 0.15, mean_length: float = 3.0, random_roll: bool = False) -> SpanCorruption:
    return SpanCorruption(SENTINELS, END, END, density, mean_length, random_roll)


def restored(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The raw tokens: the spans of the target put where the source has their sentinels."""
    assert source[-1] == target[-1] == EOS
    spans = np.split(target[:-1], np.flatnonzero(target[:-1] >= HIGHEST))[1:]
    by_sentinel = {int(span[0]): span[1:].tolist() for span in spans}
    tokens: list[int] = []
    for token in source[:-1].tolist():
        tokens += by_sentinel.pop(token) if token >= HIGHEST else [token]
    assert not by_sentinel
    return np.array(tokens)


# Raw length / target length / spans by (mean length, density), from `random_spans_helper` of the T5 code.
LONGEST = (128, 256, 512, 1024, 2048)
TABLE = {
    (3, 0.15): "141/29/7 284/58/14 568/114/28 1137/229/57 2274/456/114",
    (8, 0.15): "146/26/3 293/51/6 588/100/11 1178/200/22 2357/399/44",
    (20, 0.15): "148/24/1 298/48/2 597/95/4 1193/189/9 2387/377/18",
    (3, 0.5): "190/128/32 382/256/64 766/512/128 1534/1024/256 3070/2048/512",
    # There 3638/2048/228 and 4030/2048/32: it takes a token off the row and does not count its spans again.
    (8, 0.5): "226/128/14 454/256/28 908/512/57 1818/1024/114 3638/2047/227",
    (64, 0.5): "250/128/2 502/256/4 1006/512/8 2014/1024/16 4030/2047/31",
    # There 149/23/0, but the noise mask has one span at least.
    (64, 0.15): "148/24/1 299/47/1 600/92/1 1200/184/3 2401/367/6",
}


@pytest.mark.parametrize(("mean_length", "density"), TABLE)
def test_lengths_are_those_of_the_t5_code(mean_length: int, density: float) -> None:
    objective = span_corruption(density, mean_length)
    for longest, told in zip(LONGEST, TABLE[mean_length, density].split(), strict=True):
        raw, target, spans = map(int, told.split("/"))
        assert objective.raw_length(longest) == raw
        assert objective.sentinels_needed(raw) == spans
        ids = np.arange(100, 100 + raw).astype(np.uint16)
        sources, targets = objective.lengths(np.array([raw, raw]), np.array([5, 6]), seed=1)
        for place, sample in enumerate((5, 6)):
            corrupted = objective.apply(ids, sample, seed=1)
            assert [len(part) for part in corrupted] == [sources[place], target] == [sources[place], targets[place]]
            assert len(corrupted[0]) <= longest
            assert restored(*corrupted).tolist() == ids.tolist()


def test_a_row_in_full() -> None:
    source, target = span_corruption().apply(np.arange(10, 30, dtype=np.uint16), sample=3, seed=7)
    assert source.tolist() == [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 31999, 1]
    assert target.tolist() == [31999, 27, 28, 29, 1]
    source, target = span_corruption(0.3, 2).apply(np.arange(10, 30, dtype=np.uint16), sample=3, seed=7)
    assert source.tolist() == [10, 11, 31999, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 31998, 27, 28, 31997, 1]
    assert target.tolist() == [31999, 12, 13, 31998, 24, 25, 26, 31997, 29, 1]
    rolled = span_corruption(0.3, 2, random_roll=True)
    source, target = rolled.apply(np.arange(10, 30, dtype=np.uint16), sample=0, seed=7)
    assert source.tolist() == [31999, 11, 12, 13, 14, 31998, 17, 18, 31997, 22, 23, 24, 25, 26, 27, 28, 29, 1]
    assert target.tolist() == [31999, 10, 31998, 15, 16, 31997, 19, 20, 21, 1]


@pytest.mark.parametrize("random_roll", [False, True])
def test_short_rows_and_all_lengths_are_told_exactly_and_restored(random_roll: bool) -> None:
    generator = np.random.default_rng(0)
    for density, mean_length in ((0.15, 3.0), (0.5, 1.0), (0.9, 2.0), (0.15, 64.0)):
        objective = span_corruption(density, mean_length, random_roll)
        raw_lengths = np.array([*range(40), *generator.integers(40, 700, 60)])
        samples = generator.integers(0, 2**40, len(raw_lengths))
        sources, targets = objective.lengths(raw_lengths, samples, seed=3)
        for raw, sample, *told in zip(raw_lengths, samples, sources, targets, strict=True):
            ids = generator.integers(3, HIGHEST, raw).astype(np.uint16)
            corrupted = objective.apply(ids, int(sample), seed=3)
            assert [len(part) for part in corrupted] == told
            assert restored(*corrupted).tolist() == ids.tolist()


def test_noise_depends_on_seed_and_sample_alone() -> None:
    objective, ids = span_corruption(), np.arange(100, 668)
    rows = {(seed, sample): objective.apply(ids, sample, seed)[0].tobytes() for seed in (1, 2) for sample in range(50)}
    assert len(set(rows.values())) == 100
    for seed, sample in ((2, 49), (1, 0)):
        assert span_corruption().apply(ids, sample, seed)[0].tobytes() == rows[seed, sample]


def test_with_random_roll_each_place_is_noise_equally_often() -> None:
    """Without it the first token of a row never is noise and the last always, as in the T5 code."""
    raw, count = 568, 4000
    noise, spans = one_span_count(raw, 0.15, 3.0)
    assert (noise, spans) == (85, 28)
    plain = sum(span_corruption().noise_mask(raw, sample, 1).astype(int) for sample in range(count)) / count
    assert plain[0] == 0.0
    assert plain[-1] == 1.0
    told = {1: 0.06, 2: 0.09, 3: 0.11, -5: 0.27, -4: 0.35, -3: 0.48, -2: 0.68}
    assert {place: round(plain[place], 2) for place in told} == pytest.approx(told, abs=0.015)
    rolled = span_corruption(random_roll=True)
    masks = [rolled.noise_mask(raw, sample, 1) for sample in range(count)]
    assert {int(mask.sum()) for mask in masks} == {85}
    share = np.mean(masks, axis=0)
    expected = noise / raw  # a standard deviation is 0.0056
    assert share[0] == pytest.approx(expected, abs=0.017)
    assert share[-1] == pytest.approx(expected, abs=0.017)
    assert np.abs(share - expected).max() < 0.028


def test_random_roll_never_makes_a_row_too_long() -> None:
    """A span that is cut in two costs a token in source and target: there is room for it."""
    objective = span_corruption(random_roll=True)
    raw = objective.raw_length(512, 114)
    assert raw == 563  # of 568
    sources, targets = objective.lengths(np.full(1000, raw), np.arange(1000), seed=0)
    assert set(targets) == {113, 114}
    assert sources.max() <= 512
    assert objective.sentinels_needed(raw) == 29


def test_every_division_is_equally_likely() -> None:
    """Of 5 items into 3 parts there are 6."""
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**64, (6000, 4), dtype=np.uint64)
    found = [tuple(random_parts(5, 3, row).tolist()) for row in bits]
    counts = {parts: found.count(parts) for parts in set(found)}
    assert sorted(counts) == [(1, 1, 3), (1, 2, 2), (1, 3, 1), (2, 1, 2), (2, 2, 1), (3, 1, 1)]
    assert all(880 < count < 1120 for count in counts.values())


@pytest.mark.parametrize("page", ["docs/pretraining.md", "docs/pretraining.ko.md"])
def test_the_table_of_the_pages_is_that_of_the_code(page: str) -> None:
    rows = re.findall(r"^\| (\d+) \| ([\d,]+ / .*) \|$", text_of(page), re.MULTILINE)
    assert [longest for longest, _ in rows] == ["256", "512", "1024", "2048"]
    for longest, cells in rows:
        made = [span_corruption(0.15, 3.0), span_corruption(0.15, 20.0), span_corruption(0.5, 3.0)]
        for objective, cell in zip(made, cells.split(" | "), strict=True):
            raw = objective.raw_length(int(longest))
            noise, spans = one_span_count(raw, objective.density, objective.mean_length)
            assert cell == f"{raw:,} / {noise + spans + 1:,} / {spans}"
