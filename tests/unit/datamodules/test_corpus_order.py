"""The order of samples: a permutation of every epoch, a mix at its rates, and the same from any number on."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.corpus.order import BLOCK, Cuts, Mix, permuted
from utils.errors import UserError

PERMUTED = [437924461910, 573450138991, 858076831724, 105318353107, 865844782467, 265181955670]
STARTS = [658, 80178, 65978, 13722, 29108, 89251]
MIXED = ([0, 0, 0, 0, 0, 0], [41023, 17948, 5893, 26771, 14424, 89945])


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 1000, 65_537])
def test_a_permutation_takes_every_number_once(count: int) -> None:
    numbers = np.arange(count)
    found = permuted(numbers, count, (1, 2))
    assert sorted(found.tolist()) == numbers.tolist()
    assert permuted(numbers[::-1], count, (1, 2)).tolist() == found[::-1].tolist()
    if count > 16:
        assert (found == permuted(numbers, count, (1, 3))).mean() < 0.1


def test_a_permutation_is_as_random_as_one_should_be() -> None:
    count = 50_000
    found = permuted(np.arange(count), count, (7,))
    assert abs(np.corrcoef(np.arange(count), found)[0, 1]) < 0.02
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert np.bincount(found[:10_000] * 10 // count).tolist() == pytest.approx([1000] * 10, abs=150)


def test_the_order_stays_what_it_is_in_saved_runs() -> None:
    """A change here would train resumed runs on other text."""
    assert permuted(np.arange(6), 10**12, (1, 2, 3)).tolist() == PERMUTED
    assert Cuts(100_000, 568, 1).starts(np.array([0, 1, 2, 174, 175, 10**9])).tolist() == STARTS
    corpora, numbers = Mix.of("ab", [0.75, 0.25], 5).places(np.array([0, 1, 2, 3, 4, 70_000]))
    assert (corpora.tolist(), numbers.tolist()) == MIXED


@pytest.mark.parametrize(("tokens", "length"), [(100_000, 568), (1136, 568), (1135, 568), (568, 568), (3, 568), (5, 1)])
def test_an_epoch_cuts_the_stream_without_overlap_and_within_it(tokens: int, length: int) -> None:
    cuts = Cuts(tokens, length, seed=3)
    firsts = []
    for epoch in range(3):
        numbers = np.arange(cuts.samples) + epoch * cuts.samples
        starts = np.sort(cuts.starts(numbers))
        assert starts[0] >= 0
        assert starts[-1] + min(length, tokens) <= tokens
        assert set(np.diff(starts).tolist()) <= {length}
        firsts.append(int(starts[0]))
    assert tokens - cuts.samples * length < 2 * length
    if tokens > 2 * length > 2:
        assert len(set(firsts)) == 3  # every epoch begins elsewhere


def test_samples_of_any_numbers_are_those_of_the_whole_sequence() -> None:
    cuts, mix = Cuts(10_000, 100, seed=3), Mix.of("ab", [2, 1], seed=3)
    numbers = np.arange(1000)
    picked = np.array([999, 5, 100, 101, 5])
    assert cuts.starts(picked).tolist() == cuts.starts(numbers)[picked].tolist()
    assert [part.tolist() for part in mix.places(picked)] == [part[picked].tolist() for part in mix.places(numbers)]


def test_a_mix_keeps_its_rates_and_takes_every_sample_of_a_corpus_in_turn() -> None:
    mix = Mix.of(["a", "b", "c"], [0.5, 0.3, 0.2], seed=1)
    corpora, numbers = mix.places(np.arange(2 * BLOCK))
    assert np.bincount(corpora).tolist() == [2 * share for share in mix.shares]
    assert np.bincount(corpora[:1000]).tolist() == pytest.approx([500, 300, 200], abs=50)
    for corpus in range(3):
        own = numbers[corpora == corpus]
        assert sorted(own.tolist()) == [*range(len(own))]
        first = own[: mix.shares[corpus]]  # a block is used up before the next begins
        assert first.max() == mix.shares[corpus] - 1
    with pytest.raises(UserError, match=r"-corpus b: of 65,536 samples none is of it at rate 1e-09; raise the rate"):
        Mix.of(["a", "b"], [1.0, 1e-9], seed=1)
