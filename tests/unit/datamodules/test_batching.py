"""Batch plans: every row exactly once, the same steps on any arrangement of devices, budgets kept, nothing random."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.batching import BatchOptions, BatchPlan, evaluation_plan, training_plan
from training.lightning_loop import at_step_boundary

length_pairs = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 25)), min_size=1, max_size=120)
row_options = st.builds(
    BatchOptions,
    batch_size=st.integers(1, 9),
    accumulate=st.integers(1, 4),
    pad_to_multiple_of=st.sampled_from([1, 8]),
)
token_options = st.builds(
    BatchOptions,
    max_tokens=st.integers(1, 600),
    accumulate=st.integers(1, 4),
    pad_to_multiple_of=st.sampled_from([1, 8]),
)
any_options = st.one_of(row_options, token_options)
world_sizes = st.integers(1, 5)


def arrays(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([s for s, _ in pairs], np.int32), np.array([t for _, t in pairs], np.int32)


def steps(plan: BatchPlan) -> list[list[int]]:
    """The rows of each optimizer step, all ranks, as they lie in the plan's waves."""
    found: list[list[int]] = [[] for _ in range(plan.num_steps)]
    for index in range(plan.batches_per_rank):
        for rank in range(plan.world_size):
            found[plan.step_of(index)].extend(plan.batch(rank, index).tolist())
    return found


def nsmc_like_lengths(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Source lengths in UTF-8 bytes as in NSMC (median about 70, cut at 420), targets `positive` / `negative`."""
    random = np.random.default_rng(7)
    source = np.clip(random.lognormal(4.25, 0.75, rows), 2, 420).astype(np.int32)
    return source, np.full(rows, 9, np.int32)


def rank_batches(plan: BatchPlan, rank: int) -> list[list[int]]:
    """The rows of each micro-batch of `rank`, in order."""
    return [plan.batch(rank, index).tolist() for index in range(plan.batches_per_rank)]


def digest(plan: BatchPlan) -> str:
    """A hash of the whole plan: equal digests mean equal batches in equal order on every rank."""
    state = hashlib.blake2b(f"{plan.world_size} {plan.accumulate}".encode(), digest_size=16)
    for array in (plan.rows, plan.offsets, plan.step_target_tokens, plan.padded_tokens):
        state.update(len(array).to_bytes(8, "little") + array.astype("<i8").tobytes())
    return state.hexdigest()


def check_each_row_once(plan: BatchPlan, rows: int) -> None:
    seen = [row for rank in range(plan.world_size) for batch in rank_batches(plan, rank) for row in batch]
    assert sorted(seen) == list(range(rows))


def check_sizes(plan: BatchPlan, source: np.ndarray, target: np.ndarray, options: BatchOptions) -> None:
    """Every micro-batch keeps to its size; the statistics agree with a count by hand."""
    multiple, oversized = options.pad_to_multiple_of, 0
    for index in range(plan.batches_per_rank):
        for rank in range(plan.world_size):
            rows = plan.batch(rank, index)
            assert rows.dtype == np.int64
            number = index * plan.world_size + rank
            widths = [-(-int(lengths[rows].max(initial=0)) // multiple) * multiple for lengths in (source, target)]
            assert plan.padded_tokens[number] == len(rows) * sum(widths)
            assert plan.tokens[number] == source[rows].sum() + target[rows].sum()
            if options.batch_size:
                assert len(rows) <= options.batch_size
            elif len(rows) * sum(widths) > options.max_tokens:
                assert len(rows) == 1
                oversized += 1
    assert plan.oversized_rows == oversized


@given(length_pairs, any_options, world_sizes, st.integers(0, 3), st.integers(0, 2**40))
def test_training_plan_holds_each_row_once_in_equal_ranks_within_budget(pairs, options, world_size, epoch, seed):
    source, target = arrays(pairs)
    plan = training_plan(source, target, options, seed, epoch, world_size)
    check_each_row_once(plan, len(pairs))
    check_sizes(plan, source, target, options)
    assert plan.step_target_tokens.tolist() == [int(target[rows].sum()) for rows in steps(plan)]
    trainer: Any = SimpleNamespace(
        accumulate_grad_batches=options.accumulate, num_training_batches=plan.batches_per_rank
    )
    ends = [index for index in range(plan.batches_per_rank) if at_step_boundary(trainer, index)]
    assert [plan.step_of(index) for index in ends] == list(range(plan.num_steps))
    assert ends[:-1] == [(step + 1) * options.accumulate - 1 for step in range(plan.num_steps - 1)]


@given(length_pairs, any_options, world_sizes)
def test_evaluation_plan_holds_each_row_once_longest_first(pairs, options, world_size):
    source, target = arrays(pairs)
    plan = evaluation_plan(source, target, options, world_size)
    check_each_row_once(plan, len(pairs))
    check_sizes(plan, source, target, options)
    assert plan.num_steps == plan.batches_per_rank
    in_order = [row for step in steps(plan) for row in step]
    keys = [(-int(source[row]), -int(target[row]), row) for row in in_order]
    assert keys == sorted(keys)


@given(length_pairs, any_options, world_sizes)
def test_empty_batches_only_where_a_step_has_too_few_rows(pairs, options, world_size):
    source, target = arrays(pairs)
    for plan in (
        training_plan(source, target, options, 5, 0, world_size),
        evaluation_plan(source, target, options, world_size),
    ):
        for step in range(plan.num_steps):
            first = step * plan.accumulate
            indices = range(first, min(first + plan.accumulate, plan.batches_per_rank))
            sizes = [len(plan.batch(rank, index)) for index in indices for rank in range(world_size)]
            if 0 in sizes:
                assert step == plan.num_steps - 1
                assert max(sizes) == 1


@given(length_pairs, any_options, world_sizes)
def test_plan_is_a_pure_function(pairs, options, world_size):
    source, target = arrays(pairs)
    np.random.seed(len(pairs))
    first = training_plan(source, target, options, 3, 1, world_size)
    np.random.seed(0)
    second = training_plan(source.astype(np.int64), target.copy(), replace(options), 3, 1, world_size)
    assert digest(first) == digest(second)
    assert steps(first) == steps(second)


@given(length_pairs, any_options, world_sizes)
def test_number_of_steps_is_the_same_in_every_epoch(pairs, options, world_size):
    plans = [training_plan(*arrays(pairs), options, 11, epoch, world_size) for epoch in range(5)]
    assert len({(plan.num_steps, plan.batches_per_rank) for plan in plans}) == 1


@given(length_pairs, st.integers(0, 3), st.permutations([1, 2, 3, 4]), st.integers(0, 9))
def test_arrangement_of_devices_does_not_change_the_steps(pairs, epoch, split, seed):
    """batch 24 = batch 2 x accumulate 3 x 4 ranks = ...: the same rows in the same order of steps."""
    source, target = arrays(pairs)
    whole = training_plan(source, target, BatchOptions(batch_size=24), seed, epoch, 1)
    batch_size, accumulate, world_size = [size for size in split if size != 1]
    for options, ranks in (
        (BatchOptions(batch_size=batch_size, accumulate=accumulate), world_size),
        (BatchOptions(batch_size=24 // world_size), world_size),
        (BatchOptions(batch_size=24 // accumulate, accumulate=accumulate), 1),
    ):
        plan = training_plan(source, target, options, seed, epoch, ranks)
        assert steps(plan) == steps(whole)
        assert plan.step_target_tokens.tolist() == whole.step_target_tokens.tolist()


def test_eight_times_four_is_thirty_two_is_eight_on_four_ranks():
    source, target = nsmc_like_lengths(1003)
    plans = [
        training_plan(source, target, BatchOptions(batch_size=32), 123456, 2, 1),
        training_plan(source, target, BatchOptions(batch_size=8, accumulate=4), 123456, 2, 1),
        training_plan(source, target, BatchOptions(batch_size=8), 123456, 2, 4),
    ]
    assert steps(plans[0]) == steps(plans[1]) == steps(plans[2])
    assert [plan.num_steps for plan in plans] == [32, 32, 32]
    assert [plan.batches_per_rank for plan in plans] == [32, 31 * 4 + 2, 32]  # the last step has 11 rows: two waves


@given(length_pairs, row_options, world_sizes)
def test_all_but_the_last_step_are_full(pairs, options, world_size):
    plan = training_plan(*arrays(pairs), options, 1, 0, world_size)
    step_rows = options.batch_size * options.accumulate * world_size
    sizes = [len(rows) for rows in steps(plan)]
    assert sizes[:-1] == [step_rows] * (plan.num_steps - 1)
    assert sizes[-1] == len(pairs) - step_rows * (plan.num_steps - 1)
    last_wave = (plan.num_steps - 1) * options.accumulate
    short = [
        len(plan.batch(rank, index)) for index in range(last_wave, plan.batches_per_rank) for rank in range(world_size)
    ]
    assert max(short) - min(short) <= 1


def test_epochs_differ_in_steps_and_in_their_order():
    source, target = nsmc_like_lengths(2000)
    options = BatchOptions(batch_size=16)
    first, second = (training_plan(source, target, options, 1, epoch, 1) for epoch in (0, 1))
    other_seed = training_plan(source, target, options, 2, 0, 1)
    assert len({digest(first), digest(second), digest(other_seed)}) == 3
    as_sets = [{frozenset(rows) for rows in steps(plan)} for plan in (first, second)]
    assert len(as_sets[0] & as_sets[1]) < 30  # of 125: rows of equal length are dealt anew
    means = [source[rows].mean() for rows in steps(first)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3  # lengths are not in order through the epoch


@pytest.mark.parametrize("options", [BatchOptions(batch_size=32), BatchOptions(max_tokens=2560)])
def test_short_step_is_taken_from_anywhere_in_the_sorted_order(options):
    source, target = nsmc_like_lengths(1010)
    last_means = [source[steps(training_plan(source, target, options, 0, epoch, 2))[-1]].mean() for epoch in range(40)]
    assert min(last_means) < 50
    assert max(last_means) > 120


@pytest.mark.parametrize("world_size", [1, 8])
def test_padding_share_below_three_percent_on_review_lengths(world_size):
    source, target = nsmc_like_lengths(20_000)
    plan = training_plan(source, target, BatchOptions(batch_size=32), 0, 0, world_size)
    assert plan.padding_share() < 0.03
    shuffled = np.random.default_rng(0).permutation(20_000).reshape(-1, 32)
    random_share = 1 - source.sum() / (source[shuffled].max(axis=1) * 32).sum()
    assert random_share > 0.5  # what random batches would waste


def test_tokens_budget_counts_rows_that_alone_exceed_it():
    source, target = np.array([3, 90, 4, 5, 80]), np.array([2, 20, 2, 2, 20])
    plan = training_plan(source, target, BatchOptions(max_tokens=21), 0, 0, 1)
    assert plan.oversized_rows == 2
    assert Counter(tuple(sorted(batch)) for batch in rank_batches(plan, 0)) == Counter([(0, 2, 3), (4,), (1,)])
    assert Counter(plan.padded_tokens.tolist()) == Counter([21, 100, 110])


def test_evaluation_deals_the_longest_first_and_splits_the_last_wave():
    source = np.array([5, 9, 7, 1, 3, 8, 2])
    plan = evaluation_plan(source, np.zeros(7, np.int64), BatchOptions(batch_size=2, accumulate=3), 2)
    batches = [[plan.batch(rank, index).tolist() for rank in range(2)] for index in range(plan.batches_per_rank)]
    assert batches == [[[1, 5], [2, 0]], [[4, 6], [3]]]
    plan = evaluation_plan(source[:5], np.zeros(5, np.int64), BatchOptions(batch_size=4), 4)
    assert [plan.batch(rank, 0).tolist() for rank in range(4)] == [[1], [2], [0, 4], [3]]
    empty = evaluation_plan(source[:0], source[:0], BatchOptions(max_tokens=4), 3)
    assert (empty.batches_per_rank, empty.num_steps, empty.padding_share()) == (0, 0, 0.0)


def test_fewer_rows_than_ranks_leaves_empty_batches():
    plan = training_plan(np.array([4, 4]), np.array([2, 3]), BatchOptions(batch_size=8), 0, 0, 4)
    assert [len(plan.batch(rank, 0)) for rank in range(4)] == [1, 1, 0, 0]
    assert plan.step_target_tokens.tolist() == [5]


def test_plan_stays_the_same_between_releases():
    """A resume depends on it: a change of this digest needs a refusal to resume older checkpoints."""
    source, target = np.arange(50, dtype=np.int64) * 7 % 23 + 1, np.arange(50, dtype=np.int64) % 4 + 1
    plan = training_plan(source, target, BatchOptions(batch_size=4, accumulate=2), 123456, 1, 2)
    assert digest(plan) == "4a34bdb34cb3694ddb653da3fb0b1ecb"


def test_plan_cannot_be_changed_and_refuses_positions_outside():
    plan = training_plan(np.arange(1, 9), np.arange(1, 9), BatchOptions(batch_size=2), 0, 0, 2)
    with pytest.raises(ValueError, match="read-only"):
        plan.batch(0, 0)[0] = 1
    for rank, index in ((2, 0), (-1, 0), (0, 2), (0, -1)):
        with pytest.raises(IndexError):
            plan.batch(rank, index)


@pytest.mark.slow
@pytest.mark.parametrize("options", [BatchOptions(batch_size=32), BatchOptions(max_tokens=8192, pad_to_multiple_of=8)])
def test_two_million_rows_are_planned_in_seconds(options):
    source, target = nsmc_like_lengths(2_000_000)
    begin = time.process_time()
    training_plan(source, target, options, 0, 0, 8)
    assert time.process_time() - begin < 6  # about 1 s on an idle core
