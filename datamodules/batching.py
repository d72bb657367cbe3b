"""Which rows form which batch, on which rank, in which order: a pure function of its arguments.

    permute the rows by (seed, epoch); sort them by length, ties in the permuted order
    cut the sorted rows into optimizer steps, a step into micro-batches
    shuffle the steps (the one short step goes last)
    micro-batch i * world_size + r of a step is micro-batch i of rank r

Every rank computes the same plan, so no collective is needed, and a position in the plan is all that a resume needs.
The random bits come straight from PCG64, whose stream NumPy keeps fixed between releases; `Generator.permutation`
carries no such promise and would let a resume on another NumPy train on other batches.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BatchOptions:
    """How large a batch is: `batch_size` rows a device, or `max_tokens` padded tokens a device; the other one is 0."""

    batch_size: int = 0  # rows in a micro-batch
    max_tokens: int = 0  # padded source + target tokens in a micro-batch
    accumulate: int = 1  # micro-batches of each rank in an optimizer step
    pad_to_multiple_of: int = 1  # tokens; both padded lengths are rounded up to it


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The batches of one epoch for every rank. All arrays are read-only; the statistics are per micro-batch.

    Micro-batch `index` of `rank` is number `index * world_size + rank` in `offsets`, `tokens` and `padded_tokens`.
    Each optimizer step takes `accumulate` micro-batches of each rank; the last step may take fewer. A micro-batch
    is empty only where a step has fewer rows than micro-batches: `collate` makes it a batch with loss 0.
    """

    world_size: int
    accumulate: int
    num_steps: int
    batches_per_rank: int  # micro-batches, the same number for each rank
    rows: IntArray = field(repr=False)  # (rows,) indices into the lengths, in the order of execution
    offsets: IntArray = field(repr=False)  # (micro-batches + 1,) where each micro-batch begins in `rows`
    step_target_tokens: IntArray = field(repr=False)  # (num_steps,) target tokens without padding, all ranks
    tokens: IntArray = field(repr=False)  # (micro-batches,) source + target tokens without padding
    padded_tokens: IntArray = field(repr=False)  # (micro-batches,) source + target tokens with padding
    oversized_rows: int = 0  # rows longer than max_tokens, each a batch of its own

    def batch(self, rank: int, index: int) -> IntArray:
        """Give the rows of micro-batch `index` of `rank` (may be empty). Raises IndexError when there is none."""
        if not (0 <= index < self.batches_per_rank and 0 <= rank < self.world_size):
            raise IndexError(f"no micro-batch {index} of rank {rank} in a plan of {self.batches_per_rank} a rank")
        number = index * self.world_size + rank
        return self.rows[self.offsets[number] : self.offsets[number + 1]]

    def step_of(self, index: int) -> int:
        """Give the optimizer step that micro-batch `index` of each rank belongs to."""
        return index // self.accumulate

    def step_rows(self, step: int) -> IntArray:
        """Give the rows of an optimizer step on all ranks."""
        size = self.accumulate * self.world_size
        end = min((step + 1) * size, len(self.offsets) - 1)
        return self.rows[self.offsets[step * size] : self.offsets[end]]

    def largest_batch(self, rank: int) -> int:
        """Give the micro-batch of `rank` with the most padded tokens."""
        return int(self.padded_tokens[rank :: self.world_size].argmax())

    def padding_share(self) -> float:
        """Give the share of padding in all tokens that the epoch computes, 0 to 1."""
        padded = int(self.padded_tokens.sum())
        return 1.0 - int(self.tokens.sum()) / padded if padded else 0.0


def training_plan(
    source_lengths: npt.NDArray[np.integer[Any]],
    target_lengths: npt.NDArray[np.integer[Any]],
    options: BatchOptions,
    seed: int,
    epoch: int,
    world_size: int,
    drawn: IntArray | None = None,
) -> BatchPlan:
    """Plan one epoch of training: each row once, like lengths together, steps shuffled, the short step last.

    With `batch_size` an optimizer step is `batch_size * accumulate * world_size` rows: the same rows in the same
    order of steps however that product is split, so the arrangement of devices does not change the training. The
    number of steps is the same in each epoch. There is at least one row; seed and epoch are 0 or more.

    Args:
        drawn: the rows of this epoch, where it takes others than each once; only with `batch_size` does the number of
            steps depend on how many they are, and not on which.
    """
    source, target = source_lengths.astype(np.int64), target_lengths.astype(np.int64)
    bits = np.random.PCG64([seed, epoch])
    rows = np.arange(len(source)) if drawn is None else drawn
    permuted = rows[random_order(bits, len(rows))]
    order = permuted[np.argsort(_length_key(source[permuted], target[permuted]), kind="stable")]

    step_batches = options.accumulate * world_size
    draw = int(bits.random_raw())
    bounds, place, short, oversized = _cut_steps(source[order], target[order], options, world_size, draw)
    full = (len(bounds) - 1 - short) // step_batches
    steps = random_order(bits, full)
    firsts = steps * step_batches + np.where(steps >= place, short, 0)
    numbers = np.concatenate(
        ((firsts[:, None] + np.arange(step_batches)).ravel(), place * step_batches + np.arange(short))
    )
    starts, sizes = bounds[numbers], np.diff(bounds)[numbers]
    within = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = order[np.repeat(starts, sizes) + within]
    return _finish(rows, sizes, source, target, options.accumulate, world_size, options.pad_to_multiple_of, oversized)


def evaluation_plan(
    source_lengths: npt.NDArray[np.integer[Any]],
    target_lengths: npt.NDArray[np.integer[Any]],
    options: BatchOptions,
    world_size: int,
) -> BatchPlan:
    """Plan one pass over rows that are only read: each row once, longest first, dealt out to the ranks.

    `options.accumulate` plays no part: each wave of `world_size` batches is a step. No rows give a plan without
    batches.
    """
    source, target = source_lengths.astype(np.int64), target_lengths.astype(np.int64)
    rows = np.argsort(-_length_key(source, target), kind="stable").astype(np.int64)
    oversized = 0
    if options.max_tokens:
        bounds, oversized = _cut_by_tokens(source[rows], target[rows], options)
    else:
        bounds = np.append(np.arange(0, len(rows), options.batch_size), len(rows))
    last_wave = (len(bounds) - 1) // world_size * world_size
    bounds = np.concatenate((bounds[:last_wave], _split_to_multiple(bounds[last_wave:], world_size)))
    return _finish(rows, np.diff(bounds), source, target, 1, world_size, options.pad_to_multiple_of, oversized)


def rows_of_batch(options: BatchOptions, source_length: int, target_length: int) -> int:
    """Rows of a batch of rows of that length: -batch_size, or as many as fit into -max_tokens, but one at least."""
    multiple = options.pad_to_multiple_of
    padded = -(-source_length // multiple) * multiple + -(-target_length // multiple) * multiple
    return options.batch_size or max(1, options.max_tokens // max(padded, 1))


def consecutive_plan(
    rows: IntArray,
    source_lengths: IntArray,
    target_lengths: IntArray,
    options: BatchOptions,
    num_steps: int,
    world_size: int,
) -> BatchPlan:
    """Plan an epoch that takes `rows` as they follow each other, `num_steps` steps of as many: each step sorted by
    length, and cut into batches of as many rows.

    Args:
        source_lengths: (rows,) of `rows`, as `target_lengths`.
    """
    source, target = source_lengths.astype(np.int64), target_lengths.astype(np.int64)
    batches = num_steps * options.accumulate * world_size
    steps = np.repeat(np.arange(num_steps), len(rows) // num_steps)
    order = np.lexsort((_length_key(source, target), steps))
    sizes = np.full(batches, len(rows) // batches)
    multiple = options.pad_to_multiple_of
    plan = _finish(order, sizes, source, target, options.accumulate, world_size, multiple, oversized=0)
    numbers = rows[order]
    numbers.setflags(write=False)
    return replace(plan, rows=numbers)


def random_order(bits: np.random.PCG64, count: int) -> IntArray:
    """Give a random permutation of `count` numbers that depends on the bit stream alone."""
    return np.argsort(bits.random_raw(count), kind="stable").astype(np.int64)


def _cut_steps(
    source: IntArray, target: IntArray, options: BatchOptions, world_size: int, draw: int
) -> tuple[IntArray, int, int, int]:
    """Cut sorted rows; give (boundaries, place of the short step, its micro-batches, rows above the budget).

    The short step takes the micro-batches that are left over from whole steps, at a random place of the sorted
    order, so that it is not always the longest rows that it is made of: `place` whole steps come before it.
    """
    step_batches = options.accumulate * world_size
    if options.max_tokens:
        bounds, oversized = _cut_by_tokens(source, target, options)
        full, left = divmod(len(bounds) - 1, step_batches)
        place = draw % (full + 1)
        first = place * step_batches
        short_bounds = _split_to_multiple(bounds[first : first + left + 1], world_size)
        before, after = bounds[:first], bounds[first + left + 1 :]
    else:
        oversized = 0
        step_rows = options.batch_size * step_batches
        full, left = divmod(len(source), step_rows)
        place = draw % (full + 1)
        waves = -(-left // (options.batch_size * world_size))
        short_bounds = place * step_rows + _even_bounds(left, waves * world_size)
        before = np.arange(0, place * step_rows, options.batch_size)
        after = np.arange(place * step_rows + left, len(source) + 1, options.batch_size)[1:]
    return np.concatenate((before, short_bounds, after)), place, len(short_bounds) - 1, oversized


def _finish(
    rows: IntArray,
    sizes: IntArray,
    source: IntArray,
    target: IntArray,
    accumulate: int,
    world_size: int,
    multiple: int,
    oversized: int,
) -> BatchPlan:
    """Put the plan together: `rows` in the order of execution, `sizes` the rows of each micro-batch."""
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
    source, target = source[rows], target[rows]
    filled = sizes > 0
    padded = np.zeros(len(sizes), np.int64)
    if filled.any():
        begins = offsets[:-1][filled]
        longest_source, longest_target = np.maximum.reduceat(source, begins), np.maximum.reduceat(target, begins)
        padded[filled] = sizes[filled] * (_round_up(longest_source, multiple) + _round_up(longest_target, multiple))
    step_batches = accumulate * world_size
    num_steps = -(-len(sizes) // step_batches)
    step_offsets = offsets[np.minimum(np.arange(num_steps + 1) * step_batches, len(sizes))]
    arrays = {
        "rows": rows,
        "offsets": offsets,
        "step_target_tokens": np.diff(_running_sum(target)[step_offsets]),
        "tokens": np.diff(_running_sum(source + target)[offsets]),
        "padded_tokens": padded,
    }
    for array in arrays.values():
        array.setflags(write=False)
    return BatchPlan(world_size, accumulate, num_steps, len(sizes) // world_size, oversized_rows=oversized, **arrays)


def _cut_by_tokens(source: IntArray, target: IntArray, options: BatchOptions) -> tuple[IntArray, int]:
    """Cut rows in the given order greedily; give the boundaries and the number of rows above the budget."""
    source, target = (_round_up(lengths, options.pad_to_multiple_of) for lengths in (source, target))
    limit, first, longest_source, longest_target = options.max_tokens, 0, 0, 0
    bounds = [0] if len(source) else []
    for row, (source_length, target_length) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        if source_length > longest_source:
            longest_source = source_length
        if target_length > longest_target:
            longest_target = target_length
        if (row + 1 - first) * (longest_source + longest_target) > limit and row > first:
            bounds.append(row)
            first, longest_source, longest_target = row, source_length, target_length
    bounds.append(len(source))
    return np.array(bounds, np.int64), int(np.count_nonzero(source + target > limit))


def _split_to_multiple(bounds: IntArray, world_size: int) -> IntArray:
    """Split the batches with the most rows until their number is a multiple of `world_size`; then add empty ones."""
    wanted = -(-(len(bounds) - 1) // world_size) * world_size
    heap = [(int(begin - end), int(begin)) for begin, end in pairwise(bounds)]  # (-rows, first row)
    heapq.heapify(heap)
    while 0 < len(heap) < wanted and heap[0][0] < -1:
        negative_size, begin = heapq.heappop(heap)
        smaller = -negative_size // 2
        larger = -negative_size - smaller
        heapq.heappush(heap, (-larger, begin))
        heapq.heappush(heap, (-smaller, begin + larger))
    begins = sorted(begin for _, begin in heap)
    return np.array(begins + [int(bounds[-1])] * (wanted - len(begins) + 1), np.int64)


def _even_bounds(rows: int, batches: int) -> IntArray:
    """Give the boundaries of `rows` rows cut into batches whose sizes differ by one at most, larger ones first."""
    if not batches:
        return np.zeros(1, np.int64)
    size, larger = divmod(rows, batches)
    numbers = np.arange(batches + 1)
    return numbers * size + np.minimum(numbers, larger)


def _length_key(source: IntArray, target: IntArray) -> IntArray:
    """Give one number a row that sorts by source length, then by target length."""
    return source << 31 | target


def _round_up(lengths: IntArray, multiple: int) -> IntArray:
    return -(-lengths // multiple) * multiple if multiple > 1 else lengths


def _running_sum(values: IntArray) -> IntArray:
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(values)))
