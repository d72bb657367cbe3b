"""Batches of a retrieval task: queries, their passages and hard negatives; and what does not go with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from config.flags.data import DataFlags, LengthFlags
from config.flags.train import TrainConfig
from config.parser import parse_flags
from datamodules.batching import BatchOptions, BatchPlan
from datamodules.mixture import mixture_of
from datamodules.retrieval.checks import compared_words, retrieval_problems
from datamodules.retrieval.passages import Passages, encoded_negatives
from datamodules.seq2seq_datamodule import MicroBatches, Seq2SeqDataModule
from datamodules.splits import RowEncoder, training_splits
from task_utils import get_task
from utils.errors import UserError

ROWS = [  # query, passage, and two columns of hard negatives
    ("q1", "one", "bad", ""),
    ("q2", "two", "", "worse than one"),
    ("", "no query", "bad", "bad"),
    ("q1", "three", "one", ""),
    ("q4", "one", "", ""),
]


def passages(folder: Path, columns: tuple[str, ...] = ("n1", "n2"), **lengths: object) -> Passages:
    path = folder / "rows.tsv"
    lines = ["query\tpassage\tn1\tn2", *("\t".join(row) for row in ROWS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    data, of_lengths = DataFlags(train_data=(str(path),)), replace(LengthFlags(), **lengths)
    encoder = RowEncoder(data, of_lengths, get_task("retrieval"), ByT5Tokenizer(), 0, folder / "cache")
    return Passages(training_splits(encoder).train, encoded_negatives(encoder, columns)[0])


def texts(ids: np.ndarray) -> list[str]:
    return [ByT5Tokenizer().decode(row, skip_special_tokens=True) for row in ids.tolist()]


def test_a_batch_has_the_queries_their_passages_and_the_hard_negatives_that_are_there(tmp_path: Path) -> None:
    """The row without a query is no training row; the others keep their own negatives."""
    found = passages(tmp_path)
    assert [found.count(np.array([row])) for row in range(4)] == [2, 2, 2, 1]
    batch = found.batch(np.array([2, 0, 1]), 0, 8)
    assert texts(batch["input_ids"].numpy()) == ["query: q1", "query: q1", "query: q2"]
    assert texts(batch["passage_ids"].numpy()) == [
        f"passage: {text}" for text in ("three", "one", "two", "one", "bad", "worse than one")
    ]
    assert (batch["input_ids"].shape[1], batch["passage_ids"].shape[1]) == (16, 24)
    queries, keys, answers = (batch[name].tolist() for name in ("query_keys", "passage_keys", "answers"))
    assert queries[0] == queries[1] != queries[2]
    assert (keys[3], len({*keys})) == (keys[1], 5)
    assert answers == [*queries, -1, -1, -1]
    assert (batch["num_rows"], batch["num_target_tokens"]) == (3, 3)
    assert batch["num_source_tokens"] == 3 * len("query: q1") + 3
    assert batch["num_passage_tokens"] == int(batch["passage_mask"].sum())


def test_no_rows_are_a_query_and_a_passage_without_keys(tmp_path: Path) -> None:
    batch = passages(tmp_path).batch(np.array([], np.int64), 0, 1)
    assert (batch["input_ids"].tolist(), batch["passage_ids"].tolist()) == ([[0]], [[0]])
    assert (batch["query_keys"].tolist(), batch["passage_keys"].tolist(), batch["num_rows"]) == ([-1], [-1], 0)


def test_a_hard_negative_over_the_limit_is_cut_or_left_out(tmp_path: Path) -> None:
    limit = len("passage: three") + 1
    cut = passages(tmp_path, max_target_length=limit)
    assert texts(cut.batch(np.array([1]), 0, 1)["passage_ids"].numpy()) == ["passage: two", "passage: worse"]
    left_out = passages(tmp_path, max_target_length=limit, do_truncate=False)
    assert [left_out.count(np.array([row])) for row in range(4)] == [2, 1, 2, 1]


def test_a_column_without_any_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        passages(tmp_path, columns=("negative",))
    assert str(caught.value) == (
        "-negative_column negative: no row of -train_data holds a text in such a column; its columns: query, passage,"
        " n1, n2"
    )


def micro_batches(found: Passages, rank: int, world_size: int) -> MicroBatches:
    """Two micro-batches a step on each rank: of 2 rows, then of 1."""
    offsets = np.array([0, 2, 3, 4, 4]) if world_size == 2 else np.array([0, 2, 4])
    none = np.zeros(len(offsets) - 1, np.int64)
    plan = BatchPlan(world_size, 2, 1, 2, np.arange(4), offsets, np.array([9]), none, none)
    batches = MicroBatches(found.split, 0, 1, passages=found)
    batches.follow(plan, rank)
    return batches


def test_the_first_micro_batch_of_a_step_brings_all_of_them(tmp_path: Path) -> None:
    found = passages(tmp_path)
    first, second = (micro_batches(found, 0, 1)[place] for place in (0, 1))
    assert [part["num_rows"] for part in first["step"]] == [2, 2]
    assert ("step" in second, first["most_passages"], first["step_target_tokens"]) == (False, 0, 4)


def test_every_rank_knows_how_many_passages_any_of_them_has(tmp_path: Path) -> None:
    """The first rank has rows 0, 1 and 3, which are 5 passages, the second row 2 with 2, and 1 of a batch without."""
    for rank in (0, 1):
        assert micro_batches(passages(tmp_path), rank, 2)[0]["most_passages"] == 5


def test_a_resume_sees_other_hard_negatives(tmp_path: Path) -> None:
    prints = []
    for columns in ((), ("n1",), ("n1", "n2")):
        found = passages(tmp_path, columns)
        part = training_splits(
            RowEncoder(
                DataFlags(train_data=(str(tmp_path / "rows.tsv"),)),
                LengthFlags(),
                get_task("retrieval"),
                ByT5Tokenizer(),
                0,
                tmp_path / "cache",
            )
        )
        data = Seq2SeqDataModule(
            [part], pad_token_id=0, batch_options=BatchOptions(batch_size=2), seed=1, passages=found
        )
        prints.append(data.fingerprint(1).get("-negative_column"))
    assert prints[0] is None
    assert len({*prints}) == 3


def problems(*words: str) -> list[str]:
    config, _, wrong = parse_flags(TrainConfig, [*words, "-save_path", "x"])
    assert wrong == []
    return list(retrieval_problems(config, mixture_of(config.task, config.data)))


def test_what_does_not_go_with_passages_is_refused_in_a_line_each() -> None:
    words = "-task retrieval -train_data a.tsv -max_tokens 100 -rdrop_alpha 1 -strategy fsdp -tuning_method prompt"
    words += " -negative_column 3 -negative_column 0"
    assert [problem.partition(":")[0] for problem in problems(*words.split(), "-test_data", "b.tsv")] == [
        "-rdrop_alpha 1.0",
        "-max_tokens 100",
        "-negative_column 0",
        "-strategy fsdp",
        "-tuning_method prompt",
        "-test_data b.tsv",
    ]
    assert problems("-task", "retrieval", "-train_data", "a.tsv", "-tuning_method", "lora") == []
    own = ("-target_column", "3", "-negative_column", "passage", "-negative_column", "3")
    assert problems("-task", "retrieval", "-train_data", "a.tsv", *own) == [
        "-negative_column 3: the passages that answer the queries stand there; give another column"
    ]
    assert problems("-train_data", "a.tsv", "-pooling", "decoder", "-negative_column", "n") == [
        "-negative_column n: only with a task of passages, such as -task retrieval",
        "-pooling decoder: only with a task of passages, such as -task retrieval",
    ]


def test_a_step_of_one_row_needs_hard_negatives() -> None:
    said = "each query is compared with the passages of an optimizer step: those of "
    assert [compared_words(1, negatives=1), compared_words(2, negatives=0)] == [f"{said}1 row", f"{said}2 rows"]
    with pytest.raises(UserError, match="-batch_size 1: an optimizer step of one row compares its query with no other"):
        compared_words(1, negatives=0)
