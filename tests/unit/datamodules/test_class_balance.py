"""Labels are counted, weighted and balanced; weights reach the loss and the sum that divides it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from config.flags.data import DataFlags, LengthFlags, TrainTaskFlags
from datamodules.batching import BatchOptions
from datamodules.class_balance import LabelledRows, class_weights, row_weights
from datamodules.seq2seq_datamodule import MicroBatches, Seq2SeqDataModule
from datamodules.splits import RowEncoder, Splits, training_splits
from postprocessors.labels import LabelMap
from task_utils import Task, get_task
from utils.errors import UserError

MAP = LabelMap((("0", "bad"), ("1", "good"), ("2", "odd")))
TASK = Task("moods", "", label_map=MAP, metrics=("accuracy",))


@pytest.fixture
def data(tmp_path: Path) -> DataFlags:
    """90 rows that are good, 10 that are bad, none odd."""
    lines = [f"row {number}\t{int(number % 10 != 0)}\n" for number in range(100)]
    (tmp_path / "rows.tsv").write_text("".join(lines), encoding="utf-8")
    return DataFlags(train_data=(str(tmp_path / "rows.tsv"),), valid_data=(f"{tmp_path / 'rows.tsv'}:10",))


def splits(folder: Path, data: DataFlags, task: Task = TASK, **flags: object) -> Splits:
    encoder = RowEncoder(data, LengthFlags(), task, ByT5Tokenizer(), 0, folder / "cache")
    return training_splits(encoder, TrainTaskFlags(**flags))  # type: ignore[arg-type]


def references(found: Splits) -> Counter[str | None]:
    return Counter(found.train.reference(row) for row in range(len(found.train)))


def test_labels_are_counted_and_those_missing_are_named(tmp_path: Path, data: DataFlags) -> None:
    assert splits(tmp_path, data).lines[-4:] == (
        "labels of the training rows: bad 10, good 90, odd 0",
        "WARNING: no training row has the label odd: the model never learns to write it",
        "labels of the validation rows: bad 10, good 0, odd 0",
        "WARNING: no validation row has the label good, odd: no score covers it",
    )
    assert "labels of" not in " ".join(splits(tmp_path, data, get_task("seq2seq")).lines)


def test_few_rows_are_the_same_ones_and_balanced_where_asked(tmp_path: Path, data: DataFlags) -> None:
    some = splits(tmp_path, data, train_rows=20).train.row_ids.tolist()
    assert some == splits(tmp_path, data, train_rows=20).train.row_ids.tolist() == sorted(some)
    assert len(set(some)) == 20
    two = Task("two", "", label_map=LabelMap(MAP.entries[:2]), metrics=("accuracy",))
    assert references(splits(tmp_path, data, two, train_rows=9, balance_labels=True)) == {"bad": 5, "good": 4}


@pytest.mark.parametrize(
    ("task", "flags", "problem"),
    [
        (TASK, {"train_rows": 101}, "-train_rows 101: there are 100 training rows; give at most that, or leave it out"),
        (
            TASK,
            {"train_rows": 31, "balance_labels": True},
            "-train_rows 31 -balance_labels: takes 11 rows of each label, and 'bad' has 10\n"
            "-train_rows 31 -balance_labels: takes 10 rows of each label, and 'odd' has 0",
        ),
        (
            get_task("seq2seq"),
            {"train_rows": 3, "balance_labels": True},
            "-balance_labels: needs a task with one label a row (-label_map, or a -task with labels)",
        ),
        (
            get_task("seq2seq"),
            {"class_weights": "balanced"},
            "-class_weights: needs a task with one label a row (-label_map, or a -task with labels)",
        ),
        (
            TASK,
            {"class_weights": "even"},
            "-class_weights even: give balanced, or a .yaml or .json file of label: weight",
        ),
    ],
)
def test_what_does_not_go_is_refused(
    tmp_path: Path, data: DataFlags, task: Task, flags: dict[str, object], problem: str
) -> None:
    with pytest.raises(UserError) as refused:
        splits(tmp_path, data, task, **flags)
    assert "\n".join(refused.value.problems) == problem


def test_weights_of_a_file_name_every_label_by_id_or_text(tmp_path: Path) -> None:
    labels = LabelledRows(MAP, np.array([0, 1, 1, -1]))
    file = tmp_path / "weights.yaml"
    file.write_text("{0: 2, good: 0.5, odd: 1e1}", encoding="utf-8")
    weights = class_weights(str(file), labels)
    assert weights == {"bad": 2.0, "good": 0.5, "odd": 10.0}
    assert row_weights(labels, weights).tolist() == [2.0, 0.5, 0.5, 1.0]
    for text, problem in (
        ("{0: 2}", "no weight for good, odd"),
        ("{bad: 0}", "the weight of 'bad' must be a number from 1e-06 to 1e+06, not '0'"),
        ("{bad: nan, x: 1}", "'x' is no label; known: 0=bad, 1=good, 2=odd"),
        ("[1]", "expected a mapping from label to weight"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as refused:
            class_weights(str(file), labels)
        assert refused.value.problems[-1] == f"-class_weights {file}: {problem}"


def test_balanced_weights_enter_the_loss_and_the_sum_of_the_step(tmp_path: Path, data: DataFlags) -> None:
    """Whatever the arrangement of devices: each step is divided by the weighted tokens of all its rows."""
    found = splits(tmp_path, data, class_weights="balanced")
    assert found.weights == {"bad": 5.0, "good": 100 / 180}
    assert found.lines[-1] == "-class_weights: bad 5, good 0.5556"
    for batch_size, accumulate, world_size in ((16, 1, 1), (4, 2, 2)):
        options = BatchOptions(batch_size=batch_size, accumulate=accumulate)
        module = Seq2SeqDataModule([found], pad_token_id=0, batch_options=options, seed=1)
        plan = module.plan(0, world_size)
        labels = LabelledRows.of(found.train, MAP)
        assert labels is not None
        sums: Counter[int] = Counter()
        for rank in range(world_size):
            batches = MicroBatches(found.train, 0, 1, row_weights(labels, found.weights))
            batches.follow(plan, rank)
            for index in range(len(batches)):
                batch = batches[index]
                assert len(batch["token_weights"]) == batch["num_target_tokens"] == len(batch["target_index"])
                sums[plan.step_of(index)] += float(batch["token_weights"].double().sum())  # type: ignore[assignment]
                wanted = batch["step_target_tokens"]
                if rank == world_size - 1 and (index + 1) % accumulate == 0:
                    assert sums[plan.step_of(index)] == pytest.approx(wanted, rel=1e-6)
        assert sum(sums.values()) == pytest.approx(10 * 5.0 * 4 + 90 * 100 / 180 * 5, rel=1e-6)
    assert "weights of the labels" in module.fingerprint(1)
