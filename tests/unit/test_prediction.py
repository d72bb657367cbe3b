"""What stops a worker of a prediction on several processes is raised by the process that started it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NoReturn

import pytest
from transformers import ByT5Tokenizer

from datamodules.encoded_split import EncodedSplit
from datamodules.splits import Encoder, prediction_split
from errors import RunError, UserError
from flags import DataFlags, LengthFlags
from models.devices import Devices
from models.generation import DecodingOptions
from models.prediction import predict
from task_utils import get_task


def mistaken() -> NoReturn:
    raise UserError("-model x: 모델이 없음", "-tokenizer y: no such file")


def full() -> NoReturn:
    raise RunError("the disk is full")


def killed() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.fixture
def split(tmp_path: Path) -> EncodedSplit:
    """Four rows."""
    (tmp_path / "rows.txt").write_text("a\nb\nc\nd\n")
    data = DataFlags(test_data=(str(tmp_path / "rows.txt"),), header=False)
    return prediction_split(Encoder(data, LengthFlags(), get_task("seq2seq"), ByT5Tokenizer(), 0, tmp_path))[0]


def test_problems_of_a_worker_are_raised_by_the_parent(split: EncodedSplit, capfd: pytest.CaptureFixture[str]) -> None:
    two = Devices("cpu", 2, 1, "32-true")
    with pytest.raises(UserError) as mistakes:
        predict(mistaken, split, 2, DecodingOptions(), two)
    assert mistakes.value.problems == ("-model x: 모델이 없음", "-tokenizer y: no such file")
    with pytest.raises(RunError, match=r"^the disk is full$"):
        predict(full, split, 2, DecodingOptions(), two)
    with pytest.raises(RunError, match=r"^prediction process [01] ended with code -9; nothing was written$"):
        predict(killed, split, 2, DecodingOptions(), two)
    assert capfd.readouterr() == ("", "")  # no traceback of a worker
