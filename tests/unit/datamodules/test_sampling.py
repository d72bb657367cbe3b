"""An epoch of several tasks takes its share of each; over the epochs every row is used equally often."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from config.flags.data import DataFlags, LengthFlags, TrainTaskFlags
from datamodules.batching import BatchOptions
from datamodules.sampling import JoinedRows, Sampling
from datamodules.seq2seq_datamodule import MicroBatches, Seq2SeqDataModule
from datamodules.splits import RowEncoder, Splits, task_splits
from postprocessors.labels import LabelMap
from task_utils import Task
from utils.errors import UserError

ROWS = {"a": 50, "b": 30, "c": 7}


def test_each_task_has_its_share_and_each_row_its_turn() -> None:
    sampling = Sampling.of(list(ROWS), list(ROWS.values()), (0.1, 0.5, 0.4))
    assert sampling.shares == (9, 43, 35)  # of 87 rows: 8.7, 43.5, 34.8
    used: Counter[int] = Counter()
    for epoch in range(11):
        rows = sampling.rows(7, epoch)
        assert rows is not None
        assert rows.tolist() == Sampling.of(list(ROWS), list(ROWS.values()), (0.1, 0.5, 0.4)).rows(7, epoch).tolist()  # type: ignore[union-attr]
        assert [((rows >= low) & (rows < high)).sum() for low, high in ((0, 50), (50, 80), (80, 87))] == [9, 43, 35]
        used.update(rows.tolist())
        for low, high in ((0, 50), (50, 80), (80, 87)):
            times = [used[row] for row in range(low, high)]
            assert max(times) - min(times) <= 1
    first, other = sampling.rows(7, 0), sampling.rows(8, 0)
    assert first is not None
    assert other is not None
    assert first.tolist() != other.tolist()
    assert sampling.describe(list(ROWS)) == "a 9, b 43, c 35"


def test_without_rates_every_row_comes_once_and_no_task_is_left_out() -> None:
    assert Sampling.of(["a", "b"], [3, 4], ()).rows(1, 0) is None
    with pytest.raises(UserError) as refused:
        Sampling.of(["a", "b"], [3, 4], (0.999, 0.001))
    told = "-train_task b: an epoch of 7 rows has none of it at rate 0.001; raise the rate, or the temperature"
    assert str(refused.value) == told


LABELS = LabelMap((("0", "no"), ("1", "yes")))


def parts_of(folder: Path, **flags: Any) -> tuple[Splits, ...]:
    """Tasks a, b and c; the last has labels, one of which is rare."""
    encoders = []
    for name, count in ROWS.items():
        label_map = {"label_map": LABELS, "metrics": ("accuracy",)} if name == "c" else {}
        lines = [
            f"{'가' * (row % 9)}{row}\t{int(row == 3) if label_map else 'x' * (row % 5 + 1)}\n" for row in range(count)
        ]
        (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
        task = Task(name, "", input_template=f"{name}: {{{{ source }}}}", **label_map)  # type: ignore[arg-type]
        data = DataFlags(train_data=(str(folder / f"{name}.tsv"),), valid_data=(f"{folder / name}.tsv:3",))
        encoders.append(RowEncoder(data, LengthFlags(), task, ByT5Tokenizer(), 0, folder / "cache"))
    return task_splits(encoders, TrainTaskFlags(**flags))


def module_of(
    parts: tuple[Splits, ...], rates: tuple[float, ...], batch: int = 8, accumulate: int = 1
) -> Seq2SeqDataModule:
    sampling = Sampling.of([part.name for part in parts], [len(part.train) for part in parts], rates)
    options = BatchOptions(batch_size=batch, accumulate=accumulate)
    rows = JoinedRows([part.train for part in parts], sampling)
    return Seq2SeqDataModule(parts, rows, pad_token_id=0, batch_options=options, seed=3)


@pytest.mark.parametrize("rates", [(), (0.2, 0.3, 0.5)])
def test_plans_are_pure_have_equal_steps_and_the_rows_of_the_epoch(tmp_path: Path, rates: tuple[float, ...]) -> None:
    parts = parts_of(tmp_path)
    module = module_of(parts, rates)
    plans = [module.plan(epoch, 1) for epoch in range(4)]
    again = module_of(parts_of(tmp_path), rates).plan(2, 1)
    assert np.array_equal(plans[2].rows, again.rows)
    assert len({plan.num_steps for plan in plans}) == 1
    for epoch, plan in enumerate(plans):
        drawn = module.train.sampling.rows(3, epoch)
        assert sorted(plan.rows) == sorted(range(87) if drawn is None else drawn)
        two = module_of(parts, rates, 2, 2).plan(epoch, 2)  # the same rows in each step, however it is shared out
        assert [sorted(plan.step_rows(step)) for step in range(plan.num_steps)] == [
            sorted(two.step_rows(step)) for step in range(two.num_steps)
        ]
    assert not np.array_equal(plans[0].rows, plans[1].rows)


def test_a_row_is_written_and_weighted_by_its_own_task(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, class_weights="balanced")
    assert [dict(part.weights) for part in parts] == [{}, {}, {"no": 7 / 12, "yes": 3.5}]
    module = module_of(parts, (0.2, 0.3, 0.5))
    batches = MicroBatches(module.train, 0, 1, module._row_weights())
    for epoch in range(2):
        plan = module.plan(epoch, 1)
        batches.follow(plan, 0)
        for index in range(len(batches)):
            batch, expected = batches[index], 0.0
            for row, ids in zip(plan.batch(0, index), batch["input_ids"], strict=True):
                text = ByT5Tokenizer().decode(ids, skip_special_tokens=True)
                task = "a" if row < 50 else "b" if row < 80 else "c"
                assert text.startswith(f"{task}: ")
                weight = {"a": 1.0, "b": 1.0}.get(task) or (3.5 if text.endswith("가3") else 7 / 12)
                expected += weight * int(module.train.target_lengths[row])
            assert batch["step_target_tokens"] == pytest.approx(expected)


def test_the_fingerprint_names_each_task_and_its_share(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, class_weights="balanced")
    print_of = module_of(parts, (0.2, 0.3, 0.5)).fingerprint(1)
    assert print_of["tasks and rates"] == "a 17, b 26, c 44"
    assert print_of["training rows of b"] == 30
    assert print_of["weights of the labels"] == f"c/no={7 / 12}, c/yes=3.5"
    plain = module_of(parts, ()).fingerprint(1)
    assert {name for name in plain if plain[name] != print_of[name]} == {"tasks and rates"}
    assert plain["tasks and rates"] == "a, b, c"


def test_weights_of_a_file_are_by_task(tmp_path: Path) -> None:
    weights = tmp_path / "weights.yaml"
    weights.write_text("{c: {no: 1, yes: 5}}", encoding="utf-8")
    assert [dict(part.weights) for part in parts_of(tmp_path, class_weights=str(weights))] == [
        {}, {}, {"no": 1.0, "yes": 5.0}
    ]  # fmt: skip
    for text, told in (
        ("{d: {no: 1}}", f"-class_weights {weights}: 'd' is no task of this run; known: a, b, c"),
        ("{c: 3}", f"-train_task c: -class_weights {weights}: c: expected a mapping from label to weight"),
        ("{c: {no: 1}}", f"-train_task c: -class_weights {weights}: no weight for yes"),
        ("{a: {no: 1}}", "-train_task a: -class_weights: needs a task with one label a row"),
    ):
        weights.write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as refused:
            parts_of(tmp_path, class_weights=str(weights))
        assert str(refused.value).startswith(told)


def test_rows_and_labels_are_chosen_and_told_by_task(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, train_rows=2, balance_labels=True)
    assert [len(part.train) for part in parts] == [2, 2, 2]
    assert "c: labels of the training rows: no 1, yes 1" in parts[2].lines
    assert "c: labels of the validation rows: no 2, yes 1" in parts[2].lines
    with pytest.raises(UserError) as refused:
        parts_of(tmp_path, train_rows=8)
    assert str(refused.value) == (
        "-train_task c: -train_rows 8: there are 7 training rows; give at most that, or leave it out"
    )
