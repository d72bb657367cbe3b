"""pretrain.py as a real process: killed and resumed, on two processes, and its export fine-tuned."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.command import Result, run, start_until, train, train_ok
from tests.cli.tiny import T5, flag_list, json_lines, write_config
from tests.faults.harness import assert_same_checkpoints, assert_same_end

PAIRS = {"inverse_cloze_weight": 0.5, "max_query_length": 16, "max_passage_length": 24}


def flags_of(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """6 optimizer steps of 8 rows in two epochs, with a checkpoint of each step."""
    return {
        "corpus": folder / "texts.txt",
        "config_path": folder / "model.json",
        "save_path": folder / name,
        "cache_dir": folder / "cache",
        "max_seq_length": 24,
        "batch_size": 4,
        "grad_acc": 2,
        "max_steps": 6,
        "valid_every": 3,
        "valid_rows": 10,
        "learning_rate": 1e-2,
        "save_every": 1,
        "log_every": 2,
        **changes,
    }


def pretrain(flags: dict[str, Any]) -> Result:
    return run(sys.executable, "pretrain.py", *flag_list(flags))


@pytest.fixture(scope="module")
def folder(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """Texts, a model config, and `whole`: a run with pairs beside texts that nobody stopped."""

    def make(folder: Path) -> None:
        draw = random.Random(1)
        words = [" ".join(draw.choice("가나다라") * draw.randint(1, 3) for _ in range(9)) for _ in range(200)]
        (folder / "texts.txt").write_text("\n".join(words), encoding="utf-8")
        write_config(folder / "model.json", T5, dropout_rate=0.2)
        done = pretrain(flags_of(folder, "whole", **PAIRS))
        assert done.code == 0, done.out + done.err
        assert "each query is compared with the passages of an optimizer step: those of 8 rows" in done.out

    return once("pretrained", make)


def test_losses_stand_with_and_without_sentinels_and_that_of_pairs_apart(folder: Path) -> None:
    lines = json_lines(folder / "whole" / "metrics.jsonl")
    train, valid = ([line for line in lines if line["phase"] == phase] for phase in ("train", "valid"))
    assert [line["step"] for line in valid] == [3, 6]
    assert all(line["val_loss"] != line["val_loss_no_sentinels"] > 3 for line in valid)
    assert [[*line][3:] for line in valid] == [
        [
            "val_loss",
            "token_accuracy",
            "val_loss_no_sentinels",
            "val_contrastive_loss",
            "mrr@10",
            "recall@1",
            "recall@10",
        ]
    ] * 2
    assert [line["recall@10"] for line in valid] == [1.0, 1.0]  # of 10 passages
    assert train[-1]["contrastive_loss"] < train[0]["contrastive_loss"]
    epochs = json.loads((folder / "whole" / "log.json").read_text(encoding="utf-8"))
    assert [(line["epoch"], line["rows"], line["complete"]) for line in epochs] == [(0, 24, True), (1, 24, True)]


def test_a_killed_run_resumes_to_the_same_bits(folder: Path) -> None:
    flags = flags_of(folder, "killed", **PAIRS)
    killed = start_until("pretrain.py", flag_list(flags), "[Epoch 1] [TRAIN]", signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    resumed = pretrain({"save_path": folder / "killed", "resume_checkpoint": "last"})
    assert resumed.code == 0, resumed.out + resumed.err
    assert "resuming from " in resumed.out
    assert_same_end(folder / "killed", folder / "whole")
    assert_same_checkpoints(folder / "killed", folder / "whole")
    refused = pretrain({**flags, "resume_checkpoint": "last", "noise_density": 0.3, "max_steps": 9})
    assert refused.code == 2
    assert "-noise_density  0.0" in refused.err


def test_an_encoder_is_trained_beside_an_untouched_decoder_and_resumes_to_the_same_bits(folder: Path) -> None:
    """MLM with pairs, on the folder of another pretraining."""
    flags = flags_of(folder, "encoder", objective="encoder_mlm", weight_decay=0.1, save_every=5, **PAIRS)
    flags |= {"config_path": None, "init_model": folder / "whole" / "best"}
    done = pretrain(flags)
    assert done.code == 0, done.out + done.err
    shutil.copytree(folder / "encoder", folder / "cut")
    for path in (folder / "cut" / "saved_checkpoints").iterdir():
        if "global_step5" not in path.name:
            path.unlink()
    resumed = pretrain({"save_path": folder / "cut", "resume_checkpoint": "last"})
    assert resumed.code == 0, resumed.out + resumed.err
    assert_same_end(folder / "cut", folder / "encoder")
    before, after = (load_file(folder / name / "model.safetensors") for name in ("whole/best", "encoder/last"))
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert same == {name for name in before if name.startswith("decoder.")}


def test_a_forced_resume_with_other_losses_measures_and_optimizes_anew(folder: Path) -> None:
    """Between two log lines, from a decoder with pairs to an encoder by itself."""
    shutil.copytree(folder / "whole", folder / "forced")
    for path in (folder / "forced" / "saved_checkpoints").iterdir():
        if "global_step5" not in path.name:
            path.unlink()
    flags = {"save_path": folder / "forced", "resume_checkpoint": "last", "resume_force": "true"}
    flags |= {"objective": "encoder_mlm", **dict(zip(PAIRS, (0, 64, 288), strict=True))}
    done = pretrain(flags)
    assert done.code == 0, done.out + done.err
    assert "the optimizer begins with an empty state\n" in done.out
    log = json_lines(folder / "forced" / "metrics.jsonl")
    assert ["contrastive_loss" in line for line in log if line["phase"] == "train"] == [True, True, True, False]


def test_another_command_does_not_go_on_with_the_run(folder: Path) -> None:
    whole = folder / "whole"
    told = train("-save_path", whole, "-resume_checkpoint", "last")
    assert (told.code, told.err) == (
        2,
        f"error: -resume_checkpoint last: pretrain.py made the run in -save_path {whole}; go on with that command, or"
        f" give train.py another -save_path and -init_model {whole / 'best'}\n",
    )


def test_two_processes_train_as_one_does(folder: Path) -> None:
    for name, more in (("one", {}), ("two", {"cpu_processes": 2, "batch_size": 2})):
        done = pretrain(flags_of(folder, name, dropout=0.0, save_every=0, **more))
        assert done.code == 0, done.out + done.err
    one, two = (load_file(folder / name / "last" / "model.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def test_train_goes_on_from_the_export(folder: Path, letters: Path, tmp_path: Path) -> None:
    flags = {
        "train_data": letters / "train.tsv",
        "save_path": tmp_path / "run",
        "init_model": folder / "whole" / "best",
    }
    told = train_ok(*flag_list({**flags, "max_epoch": 1, "batch_size": 50, "max_seq_length": 24}))
    assert "trained to optimizer step 4" in told.out
