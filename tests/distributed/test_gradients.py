"""Accumulation, two processes and one big batch give the same gradient, in real training processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.loading import from_config
from models.tokenizers import load_tokenizer
from tests.cli.command import environment, run_forked
from tests.cli.tiny import write_mixture
from tests.small_configs import config_of

SCRIPT = Path(__file__).with_name("gradient_run.py")
ROWS = 40  # two full steps of 16 rows and a short one of 8: an uneven number of target tokens in each micro-batch


def gradients(
    tmp_path: Path, name: str, config: Path, data: list[str], *flags: str, script: str = "train"
) -> list[dict[str, torch.Tensor]]:
    folder = tmp_path / name
    folder.mkdir()
    command = [str(SCRIPT), *data, "-config_path", str(config), "-gpus", "0"]
    command += ["-save_path", str(folder / "run"), "-learning_rate", "1e-9", "-lr_scheduler", "constant", *flags]
    command += ["-max_epoch", "1"] if script == "train" else []
    done = run_forked(command, environment(GRADIENT_FOLDER=str(folder), COMMAND=script))
    assert done.code == 0, done.err
    return [torch.load(folder / f"step{step}.pt", weights_only=True) for step in range(3)]


def one_task(folder: Path) -> list[str]:
    rows = ("가" * (1 + row % 7) + f"{row}\t" + "x" * (1 + row % 5) for row in range(ROWS))
    (folder / "data.tsv").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return ["-train_data", str(folder / "data.tsv")]


def three_tasks(folder: Path) -> list[str]:
    """39 rows an epoch, drawn at rates; those of one task have weights."""
    mixture = write_mixture(folder, 23)
    return ["-train_task", str(mixture), "-class_weights", "balanced", "-valid_generate_rows", "0"]


def with_teacher(folder: Path) -> list[str]:
    """The same with a teacher."""
    from_config(config_of("bart"), seed=9).save_pretrained(folder / "teacher")
    load_tokenizer("bytes").save_pretrained(folder / "teacher")
    return [*three_tasks(folder), "-teacher", str(folder / "teacher"), "-distill_temperature", "2"]


def retrieval(folder: Path) -> list[str]:
    """Passages that several queries share, a query that comes twice, and hard negatives in every third row."""
    lines = ["query\tpassage\tnegative"]
    for row in range(ROWS):
        passage, negative = "x" * (1 + row % 5) + str(row // 2), f"나{row}" if row % 3 == 0 else ""
        lines.append(f"{'가' * (1 + row % 7)}{row % 37}\t{passage}\t{negative}")
    (folder / "data.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = str(folder / "data.tsv")
    flags = ["-task", "retrieval", "-negative_column", "negative", "-contrastive_temperature", "0.5"]
    return ["-train_data", data, "-valid_data", data, *flags]


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "task"), [("switch-t5", one_task), ("bart", with_teacher)])
def test_one_big_batch_accumulation_and_two_processes_have_one_gradient(
    architecture: str, task: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**config_of(architecture), "dropout_rate": 0.0}))
    data = task(tmp_path)
    big = gradients(tmp_path, "big", config, data, "-batch_size", "16")
    accumulated = gradients(tmp_path, "accumulated", config, data, "-batch_size", "4", "-grad_acc", "4")
    both = gradients(tmp_path, "both", config, data, "-batch_size", "4", "-grad_acc", "2", "-cpu_processes", "2")
    assert_same(big, accumulated)
    assert_same(big, both)


@pytest.mark.slow
def test_the_passages_of_all_processes_and_micro_batches_are_compared(tmp_path: Path) -> None:
    """In the loss, and in the figures of a validation, whose 40 rows are dealt out unevenly."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(config_of("t5-untied")))
    data = retrieval(tmp_path)
    big = gradients(tmp_path, "big", config, data, "-batch_size", "16")
    both = gradients(tmp_path, "both", config, data, "-batch_size", "4", "-grad_acc", "2", "-cpu_processes", "2")
    assert_same(big, both)
    names = ("val_loss", "mrr@10", "recall@1", "recall@10")
    states = [tmp_path / name / "run" / "last" / "training_state.json" for name in ("big", "both")]
    figures = [[json.loads(state.read_text())["validation"][name] for name in names] for state in states]
    assert figures[0] == pytest.approx(figures[1], rel=1e-6)


@pytest.mark.slow
def test_pairs_beside_texts_are_compared_over_all_processes_and_micro_batches(tmp_path: Path) -> None:
    """In the loss, next to the tokens of all of them, and in the figures of a validation."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(config_of("t5-untied")))
    documents = (". ".join("가나다라"[(row + word) % 4] * (1 + word) for word in range(6)) for row in range(90))
    (tmp_path / "texts.txt").write_text("\n".join(documents), encoding="utf-8")
    data = ["-corpus", str(tmp_path / "texts.txt"), "-cache_dir", str(tmp_path / "cache"), "-max_seq_length", "48"]
    data += ["-max_steps", "3", "-valid_every", "3", "-valid_rows", "9", "-inverse_cloze_weight", "0.5"]
    data += ["-contrastive_temperature", "0.5", "-max_query_length", "24", "-max_passage_length", "40"]
    big = gradients(tmp_path, "big", config, data, "-batch_size", "16", script="pretrain")
    halves = ("-batch_size", "4", "-grad_acc", "2", "-cpu_processes", "2")
    both = gradients(tmp_path, "both", config, data, *halves, script="pretrain")
    assert_same(big, both)
    names = ("val_loss", "val_loss_no_sentinels", "val_contrastive_loss", "mrr@10", "recall@1", "recall@10")
    states = [tmp_path / name / "run" / "last" / "training_state.json" for name in ("big", "both")]
    figures = [[json.loads(state.read_text())["validation"][name] for name in names] for state in states]
    assert figures[0] == pytest.approx(figures[1], rel=1e-6)


def assert_same(big: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> None:
    for expected, found in zip(big, other, strict=True):
        assert expected.keys() == found.keys()
        whole = torch.cat([value.flatten() for value in expected.values()]).double()
        difference = torch.cat([found[name].flatten() for name in expected]).double() - whole
        assert (difference.norm() / whole.norm()).item() < 1e-6
