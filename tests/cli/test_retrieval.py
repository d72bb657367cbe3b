"""A retrieval model in training: stopped and resumed, and what its run says and leaves."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.cli.command import infer, run, train, train_ok
from tests.cli.tiny import flag_list, letter_rows, write_config, write_tsv
from tests.faults.harness import assert_same_end
from tests.small_configs import with_dropout


def flags_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """70 rows, half of them with a hard negative: 5 optimizer steps an epoch, of 2 micro-batches; dropout is on."""
    rows = [(f"{word} {word}", word, word[::-1] if row % 2 else "") for row, (word, _) in enumerate(letter_rows(90, 1))]
    header = ("query", "passage", "negative")
    flags = {
        "task": "retrieval",
        "train_data": write_tsv(folder / "train.tsv", rows[:70], header),
        "valid_data": write_tsv(folder / "valid.tsv", rows[70:], header),
        "negative_column": "negative",
        "config_path": write_config(folder / "t5.json", with_dropout("t5")),
        "save_path": folder / "run",
        "cache_dir": folder / "cache",
        "batch_size": 8,
        "grad_acc": 2,
        "max_epoch": 2,
        "learning_rate": 2e-3,
        "monitor": "recall@1",
        "save_every": 3,
        "save_last_k": 20,
        "log_every": 2,
    }
    return {**flags, **changes}


def test_a_run_resumed_in_an_epoch_ends_as_the_whole_one(tmp_path: Path) -> None:
    whole = train_ok(*flag_list(flags_of(tmp_path)))
    counts = re.search(r"-negative_column negative: (\d+) of 70 rows have a hard negative there", whole.out)
    assert counts
    assert int(counts[1]) == 35
    assert "each query is compared with the passages of an optimizer step: those of 16 rows" in whole.out
    assert re.search(r"VALID.*val_loss=[\d.]+, mrr@10=[\d.]+, recall@1=[\d.]+, recall@10=[\d.]+", whole.out)
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    for path in (tmp_path / "cut" / "saved_checkpoints").iterdir():
        if path.name != "epoch00-global_step3.ckpt":
            path.unlink()
    checkpoint = tmp_path / "cut" / "saved_checkpoints" / "epoch00-global_step3.ckpt"
    train_ok(*flag_list(flags_of(tmp_path, save_path=tmp_path / "cut", resume_checkpoint=checkpoint)))
    assert_same_end(tmp_path / "cut", tmp_path / "run")
    state = json.loads((tmp_path / "run" / "best" / "training_state.json").read_text())
    assert (state["flags"]["pooling"], state["flags"]["contrastive_temperature"]) == ("mean", 0.05)
    assert (state["task"]["input_template"], state["task"]["postprocessor"]) == (
        "query: {{ source }}",
        {"kind": "passages"},
    )
    refused = infer("-model", tmp_path / "run", "-test_data", tmp_path / "valid.tsv")
    assert (refused.code, refused.errors) == (
        2,
        ["task retrieval: its model gives vectors of texts, and writes none; use embed.py"],
    )


def test_inverse_cloze_leaves_a_model_of_retrieval(tmp_path: Path) -> None:
    """Pretrained on sentences of raw text, then trained on pairs."""
    draw = random.Random(2)
    documents = (" ".join(f"{draw.choice('가나다라') * 3} {number}." for _ in range(6)) for number in range(60))
    (tmp_path / "texts.txt").write_text("\n".join(documents), encoding="utf-8")
    flags = flags_of(tmp_path, objective="inverse_cloze", corpus=tmp_path / "texts.txt", save_path=tmp_path / "cloze")
    own = {"max_seq_length": 32, "max_target_length": 80, "max_steps": 4, "valid_every": 2, "valid_rows": 9}
    left_out = dict.fromkeys(("task", "train_data", "valid_data", "negative_column", "max_epoch"))
    done = run(sys.executable, "pretrain.py", *flag_list({**flags, **left_out, **own}))
    assert done.code == 0, done.err
    assert "each query is compared with the passages of an optimizer step: those of 16 rows" in done.out
    state = json.loads((tmp_path / "cloze" / "last" / "training_state.json").read_text())
    assert (state["task"]["name"], state["global_step"], *state["validation"]) == (
        *("retrieval", 4, "val_loss", "mrr@10"),
        *("recall@1", "recall@10"),
    )
    model = {"init_model": tmp_path / "cloze" / "best", "config_path": None, "max_epoch": 1}
    assert "trained to optimizer step 5" in train_ok(*flag_list(flags_of(tmp_path, **model))).out


def test_one_row_a_step_is_refused(tmp_path: Path) -> None:
    flags = flags_of(tmp_path, batch_size=1, grad_acc=1, negative_column=None)
    alone = train(*flag_list(flags))
    assert (alone.code, len(alone.errors)) == (2, 1)
    assert alone.errors[0].startswith("-batch_size 1: an optimizer step of one row compares its query with no other")
