"""A student that learns from a teacher: it resumes exactly, from that teacher only."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from models.loading import from_config
from models.tokenizers import load_tokenizer
from tests.cli.command import train, train_ok
from tests.cli.tiny import BART, flag_list
from tests.faults.harness import assert_same_end


def save_model(folder: Path, seed: int, **changes: Any) -> Path:
    """A folder with random weights and the bytes' tokenizer."""
    from_config({**BART, "decoder_layers": 2, "dropout": 0.1, **changes}, seed=seed).save_pretrained(folder)
    load_tokenizer("bytes").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, letters: Path) -> dict[str, Any]:
    """The flags of a student of one decoder layer, and the run that nobody stopped."""
    folder = tmp_path_factory.mktemp("student")
    flags = {
        "train_data": f"{letters / 'train.tsv'}:1",
        "valid_data": letters / "valid.tsv",
        "init_model": save_model(folder / "teacher", seed=1),
        "decoder_layers": 1,
        "teacher": folder / "teacher",
        "distill_weight": 0.7,
        "distill_temperature": 2,
        "save_path": folder / "run",
        "cache_dir": folder / "cache",
        "batch_size": 8,
        "grad_acc": 2,
        "max_epoch": 1,
        "learning_rate": 2e-3,
        "valid_generate_rows": 0,
        "log_every": 4,
    }
    assert f"teacher {folder / 'teacher'}: weight 0.7 in the loss, temperature 2" in train_ok(*flag_list(flags)).out
    return flags


def test_a_student_keeps_its_layers_and_resumes_to_the_same_bits(student: dict[str, Any], tmp_path: Path) -> None:
    config = json.loads((student["save_path"] / "best" / "config.json").read_text(encoding="utf-8"))
    assert (config["encoder_layers"], config["decoder_layers"]) == (1, 1)
    stopped = {**student, "save_path": tmp_path / "run"}
    train_ok(*flag_list({**stopped, "max_steps": 3}))
    train_ok("-save_path", tmp_path / "run", "-resume_checkpoint", "last", "-max_steps", 0)
    assert_same_end(tmp_path / "run", student["save_path"])


def test_a_resume_with_another_teacher_is_refused(student: dict[str, Any], tmp_path: Path) -> None:
    more = {"save_path": tmp_path / "other", "teacher": save_model(tmp_path / "teacher", seed=2), "max_epoch": 2}
    checkpoint = student["save_path"] / "saved_checkpoints" / "last.ckpt"
    result = train(*flag_list({**student, **more, "resume_checkpoint": checkpoint}))
    assert result.code == 2
    assert re.search(r"\n  what +checkpoint +now\n  -teacher  [0-9a-f]{32}  [0-9a-f]{32}\n$", result.err)
    assert not (tmp_path / "other" / "saved_checkpoints").exists()


def test_a_teacher_of_another_vocabulary_is_refused_before_anything_is_read(
    student: dict[str, Any], tmp_path: Path
) -> None:
    other = save_model(tmp_path / "teacher", seed=2, vocab_size=400)
    result = train(*flag_list({**student, "save_path": tmp_path / "run", "teacher": other}))
    assert result.code == 2
    assert result.errors == [
        f"-teacher {other}: its vocabulary has 400 tokens, the student's 384; they must be the same"
    ]
    both = train(*flag_list({**student, "save_path": tmp_path / "run", "rdrop_alpha": 1}))
    assert both.errors == [f"-rdrop_alpha 1.0: not with -teacher {student['teacher']}: the two were not tried together"]
