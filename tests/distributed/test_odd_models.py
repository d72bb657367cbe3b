"""Two processes on the CPU with models that need more care than T5 and BART: a rank without rows, parts left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cli.command import train_ok
from tests.cli.tiny import flag_list, json_lines, letter_rows, write_tsv
from tests.small_configs import config_of


def trained(folder: Path, config: dict[str, Any], rows: int, **changes: Any) -> list[float]:
    """The losses of a run on two processes."""
    (folder / "config.json").write_text(json.dumps(config))
    flags = {
        "train_data": write_tsv(folder / "train.tsv", letter_rows(rows, 3)),
        "config_path": folder / "config.json",
        "save_path": folder / "run",
        "cpu_processes": 2,
        "batch_size": 10,
        "max_epoch": 2,
        "learning_rate": 1e-3,
        "log_every": 1,
        **changes,
    }
    train_ok(*flag_list(flags))
    return [line["loss"] for line in json_lines(folder / "run" / "metrics.jsonl") if line["phase"] == "train"]


def test_a_rank_without_rows_of_an_mbart(tmp_path: Path) -> None:
    """41 rows: the third step has one row, so one rank has none; mBART's decoder starts with the last target token."""
    losses = trained(tmp_path, config_of("mbart"), 41)
    assert len(losses) == 6
    assert all(0 < loss < 10 for loss in losses)


def test_layers_dropped_at_random(tmp_path: Path) -> None:
    """Each process leaves out other layers, and some of their gradients are nobody's."""
    config = config_of("bart", encoder_layerdrop=0.4, decoder_layerdrop=0.4)
    losses = trained(tmp_path, config, 40, max_epoch=4)
    assert len(losses) == 8
    assert losses[-1] < losses[0]


def test_a_pair_of_models_with_a_part_that_is_not_used(tmp_path: Path) -> None:
    """BERT's pooler takes no part in the loss."""
    bert = {
        "model_type": "bert",
        "vocab_size": 384,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    pair = {
        "model_type": "encoder-decoder",
        "encoder": bert,
        "decoder": {**bert, "is_decoder": True, "add_cross_attention": True},
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
        "s2s_tokenizer": "bytes",
    }
    losses = trained(tmp_path, pair, 40)
    assert len(losses) == 4
    assert losses[-1] < losses[0]
