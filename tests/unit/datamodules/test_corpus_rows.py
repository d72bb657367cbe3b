"""Rows of pretraining: what a number stands for, which rows an optimizer step has, and what is held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from datamodules.batching import BatchOptions
from datamodules.corpus_rows import CorpusRows, HeldOutRows, Member
from datamodules.objectives.frames import Frame
from datamodules.objectives.packing import PackedDocuments
from datamodules.objectives.prefix_lm import PrefixLM
from datamodules.objectives.span_corruption import SpanCorruption
from datamodules.seq2seq_datamodule import MicroBatches

END, SENTINELS = 1, np.arange(999, 989, -1, dtype=np.int32)
FRAME = Frame.of([], [END])
SPANS = SpanCorruption(SENTINELS, FRAME, FRAME)
LENGTH = SPANS.raw_length(24)


class Stream:
    """A corpus whose token i is i."""

    def __init__(self, tokens: int, fingerprint: str = "one", start: int = 10_000) -> None:
        self.num_tokens, self.fingerprint, self.start = tokens, fingerprint, start

    def tokens(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start < stop <= self.num_tokens
        return np.arange(self.start + start, self.start + stop)


def rows_of(*members: Member, seed: int = 3, steps: int = 5, objective: Any = SPANS) -> CorpusRows:
    return CorpusRows(members, LENGTH, objective, seed, steps, np.append(SENTINELS, END))


def one(tokens: int = 1000, **more: Any) -> CorpusRows:
    return rows_of(Member(Stream(tokens), tokens, 1.0, "a"), **more)


def read(rows: CorpusRows, index: int) -> list[int]:
    """The raw tokens of a row, put together from its source and its target."""
    source, target = (side[:-1].tolist() for side in rows.pairs(np.array([index]))[0])
    spans: dict[int, list[int]] = {}
    for token in target:
        if token < 1000:
            spans[token] = last = []
        else:
            last.append(token)
    return [token for kept in source for token in (spans[kept] if kept < 1000 else [kept])]


def test_a_pass_reads_every_cut_once_and_the_next_one_others_in_another_order() -> None:
    rows = one()
    passes = [[read(rows, number) for number in range(turn * len(rows), (turn + 1) * len(rows))] for turn in (0, 1)]
    for cuts in passes:
        starts = [cut[0] for cut in cuts]
        assert all(cut == list(range(cut[0], cut[0] + LENGTH)) for cut in cuts)
        assert {start % LENGTH for start in starts} == {starts[0] % LENGTH}
        assert len(set(starts)) == len(rows) == 1000 // LENGTH - 1
    assert passes[0] != passes[1]


def test_a_row_is_a_function_of_seed_and_number_alone() -> None:
    rows, again, other = one(), one(), one(seed=4)
    assert read(again, 10**12) == read(rows, 10**12)
    both = [rows.pairs(np.array([7])), again.pairs(np.arange(9))[7:8]]
    assert len({str([side.tolist() for side in pair]) for (pair,) in both}) == 1
    assert read(other, 7) != read(rows, 7)


@pytest.mark.parametrize("objective", [SPANS, PrefixLM(FRAME, FRAME)], ids=["equal lengths", "drawn lengths"])
def test_steps_have_the_same_rows_however_they_are_shared_out(objective: Any) -> None:
    rows = one(objective=objective)
    whole = [rows.plan(BatchOptions(batch_size=12), 3, epoch, 1) for epoch in range(3)]
    numbers = [plan.rows for plan in whole]
    assert [sorted(part.tolist()) for part in numbers] == [
        list(range(60 * epoch, 60 * epoch + 60)) for epoch in range(3)
    ]
    shared = rows.plan(BatchOptions(batch_size=2, accumulate=3), 3, 2, 2)
    for step in range(5):
        own = whole[2].step_rows(step)
        assert (
            sorted(shared.step_rows(step).tolist())
            == sorted(own.tolist())
            == list(range(120 + 12 * step, 132 + 12 * step))
        )
        targets = sum(len(target) for _, target in rows.pairs(own))
        assert targets == whole[2].step_target_tokens[step] == shared.step_target_tokens[step]


def test_a_budget_of_tokens_is_as_many_rows_in_every_batch() -> None:
    rows = one()
    source, target = (len(side) for side in rows.pairs(np.array([0]))[0])
    plan = rows.plan(BatchOptions(max_tokens=4 * (source + target) + 1), 3, 0, 1)
    assert np.diff(plan.offsets).tolist() == [4] * 5
    assert rows.plan(BatchOptions(max_tokens=1), 3, 0, 1).batches_per_rank == 5  # one row at least


def test_corpora_are_mixed_at_their_rates_and_a_short_one_comes_as_a_whole() -> None:
    long, short = Stream(1000), Stream(LENGTH - 9, "two", 50_000)
    rows = rows_of(Member(long, 1000, 0.75, "a"), Member(short, short.num_tokens, 0.25, "b"))
    found = [read(rows, number) for number in range(400)]
    from_short = [raw for raw in found if raw[0] >= 50_000]
    assert 70 < len(from_short) < 130
    assert all(raw == list(range(50_000, 50_000 + LENGTH - 9)) for raw in from_short)


def test_the_fingerprint_tells_what_is_read() -> None:
    same = {one().fingerprint for _ in range(2)}
    others = [one(seed=4), one(objective=SpanCorruption(SENTINELS, FRAME, FRAME, 0.3)), one(999)]
    others.append(rows_of(Member(Stream(1000, "other"), 1000, 1.0, "a")))
    assert len(same | {rows.fingerprint for rows in others}) == 5


def test_batches_of_a_validation_tell_the_tokens_of_the_text() -> None:
    stream = Stream(1000)
    held_out = HeldOutRows([(stream, 900), (stream, 700)], LENGTH, SPANS)
    batch = MicroBatches(held_out, 0, 1, special_ids=np.append(SENTINELS, END)).of_rows(np.arange(2))  # type: ignore[arg-type]
    labels = batch["labels"][batch["labels"] >= 0]
    assert batch["text_weights"].tolist() == [float(token >= 10_000) for token in labels.tolist()]
    assert batch["num_text_tokens"] == (labels >= 10_000).sum() > 0
    again = HeldOutRows([(stream, 900), (stream, 700)], LENGTH, SPANS)
    assert again.fingerprint == held_out.fingerprint != HeldOutRows([(stream, 900)], LENGTH, SPANS).fingerprint


def test_documents_of_a_packed_row_are_told_apart_and_counted() -> None:
    class Documents(Stream):
        def tokens(self, start: int, stop: int) -> np.ndarray:
            ids = super().tokens(start, stop)
            return np.where(ids % 7 == 0, END, ids)  # six tokens and an end

    objective = PackedDocuments(SPANS, END)
    stream = Documents(700)
    rows = CorpusRows([Member(stream, 700, 1.0, "a")], 20, objective, 3, 5, np.append(SENTINELS, END))
    plan = rows.plan(BatchOptions(batch_size=4), 3, 1, 1)
    batches = MicroBatches(rows, 0, 1, special_ids=rows.special_ids, separator=rows.separator)
    batches.follow(plan, 0)
    for step in range(5):
        batch = batches[step]
        assert batch["num_target_tokens"] == batch["step_target_tokens"]
        assert batch["source_segments"].max() == batch["target_segments"].max() == 4
    held_out = HeldOutRows([(stream, 0), (stream, 21)], 20, objective)
    assert held_out.target_lengths.tolist() == [len(target) for _, target in held_out.pairs(np.arange(2))]
