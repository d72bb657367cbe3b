"""The prediction of the test split takes no larger batches than training did."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import ByT5Tokenizer

from config.flags.data import DataFlags, LengthFlags
from config.flags.run import BatchFlags
from datamodules.splits import RowEncoder
from task_utils import get_task
from training.evaluate import prediction_rows


@pytest.mark.parametrize(
    ("flags", "rows"),
    [
        (BatchFlags(), 48),
        (BatchFlags(batch_size=3), 3),
        (BatchFlags(max_tokens=4_000), 4),  # 900 bytes and 98, and the two ends
        (BatchFlags(max_tokens=100), 1),
        (BatchFlags(max_tokens=1_000_000), 128),
    ],
)
def test_rows_of_a_batch(tmp_path: Path, flags: BatchFlags, rows: int) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(f"short\ta\n{'x' * 900}\tb\nbrief\t{'y' * 98}\n", encoding="utf-8")
    encoder = RowEncoder(DataFlags(), LengthFlags(), get_task("seq2seq"), ByT5Tokenizer(), 0, tmp_path / "cache")
    assert prediction_rows(encoder.encode("-test_data", (str(path),), keep_all=True), flags) == rows
