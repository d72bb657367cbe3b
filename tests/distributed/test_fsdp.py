"""Two processes on the CPU that hold a part of the model each: the run of DDP, saved as folders, resumed and read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.run_folder import step_of
from checkpoints.saved_run import SavedRun, read_run
from models.loading import from_config, from_pretrained
from tests.cli.command import infer_ok, train, train_ok
from tests.cli.tiny import flag_list, json_lines
from tests.distributed.test_ddp import flags_of, two_processes  # noqa: F401 (a fixture)
from tests.small_configs import config_of
from tests.small_models import byte_tokenizer


@pytest.fixture(scope="session")
def sharded(once: Callable[[str, Callable[[Path], None]], Path], two_processes: Path, letters: Path) -> Path:  # noqa: F811
    """`two` once more, under -strategy fsdp."""

    def make(folder: Path) -> None:
        flags = flags_of(two_processes, letters, "two", save_path=folder / "run", strategy="fsdp")
        train_ok(*flag_list(flags))

    return once("sharded", make) / "run"


def last_run(folder: Path) -> SavedRun:
    return read_run(folder / "saved_checkpoints" / "last.ckpt")


def differences(run: SavedRun, other: SavedRun) -> dict[str, float]:
    """The largest difference of every weight."""
    weights = run.model.tensors.weights
    assert weights.keys() == other.model.tensors.weights.keys()
    return {name: float((weights[name] - other.model.tensors.weights[name]).abs().max()) for name in weights}


def test_trains_as_ddp_does(sharded: Path, two_processes: Path) -> None:  # noqa: F811
    assert (sharded / "saved_checkpoints" / "last.ckpt").is_dir()
    reference = two_processes / "two"
    assert max(differences(last_run(sharded), last_run(reference)).values()) < 1e-5
    logs = [json_lines(folder / "metrics.jsonl") for folder in (sharded, reference)]
    for line, expected in zip(*logs, strict=True):
        for figure in ("loss", "gradient_norm", "val_loss"):
            if figure in expected:
                assert line[figure] == pytest.approx(expected[figure], rel=1e-5), (figure, line["step"])
        for figure in ("exact_match", "chrf", "token_accuracy"):
            assert line.get(figure) == expected.get(figure)


def test_a_resume_is_bit_identical_and_a_torn_shard_is_passed_over(
    sharded: Path,
    two_processes: Path,  # noqa: F811
    letters: Path,
    tmp_path: Path,
) -> None:
    changes: dict[str, Any] = {"save_path": tmp_path / "run", "strategy": "fsdp"}
    flags = flags_of(two_processes, letters, "two", **changes)
    train_ok(*flag_list({**flags, "max_steps": 12}))
    shard = tmp_path / "run" / "saved_checkpoints" / "last.ckpt" / "shard-00001-of-00002.ckpt"
    content = shard.read_bytes()
    shard.unlink()  # the same file has other names
    shard.write_bytes(content[:-100])
    out = train_ok(*flag_list({**flags, "max_steps": 0, "resume_checkpoint": "last"})).out
    assert f"passed over: -resume_checkpoint {shard}: the file is torn or no checkpoint (" in out
    mine, reference = last_run(tmp_path / "run"), last_run(sharded)
    assert max(differences(mine, reference).values()) == 0.0
    assert mine.model.tensors.optimizer is not None
    assert reference.model.tensors.optimizer is not None
    for number, state in mine.model.tensors.optimizer["state"].items():
        for name, value in state.items():
            assert torch.equal(value, reference.model.tensors.optimizer["state"][number][name]), (number, name)


@pytest.mark.parametrize("added", [("rdrop_alpha", "neftune_alpha"), ("teacher", "neftune_alpha")])
def test_the_regularised_loss_is_that_of_ddp(
    sharded: Path,
    two_processes: Path,  # noqa: F811
    letters: Path,
    tmp_path: Path,
    added: tuple[str, ...],
) -> None:
    values: dict[str, Any] = {"rdrop_alpha": 1, "neftune_alpha": 5, "teacher": sharded / "best"}
    changes: dict[str, Any] = {name: values[name] for name in added} | {"max_steps": 4, "valid_generate_rows": 0}
    for strategy in ("ddp", "fsdp"):
        flags = flags_of(two_processes, letters, "two", **changes, strategy=strategy, save_path=tmp_path / strategy)
        train_ok(*flag_list(flags))
    assert max(differences(last_run(tmp_path / "fsdp"), last_run(tmp_path / "ddp")).values()) < 1e-5


def test_the_second_process_gets_the_weights_of_the_first(letters: Path, tmp_path: Path) -> None:
    model = from_config(config_of("bart"), seed=1)
    with torch.no_grad():
        for value in model.state_dict().values():  # so that no bias is 0
            value.add_(0.01)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "bart")
    byte_tokenizer(tmp_path / "tokenizer").save_pretrained(tmp_path / "bart")
    flags = {**flags_of(tmp_path, letters, "run", strategy="fsdp", init_model=tmp_path / "bart"), "config_path": ""}
    train_ok(*flag_list({**flags, "learning_rate": 1e-30, "optim_cosanneal_min_lr": 0, "max_steps": 1}))
    weights = last_run(tmp_path / "run").model.tensors.weights
    expected = from_pretrained(str(tmp_path / "bart")).state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_goes_on_in_one_process_and_is_predicted_with(
    sharded: Path,
    two_processes: Path,  # noqa: F811
    letters: Path,
    tmp_path: Path,
) -> None:
    folder = sharded / "saved_checkpoints" / "last.ckpt"
    for name, model in (("folder", folder), ("best", sharded / "best")):
        infer_ok("-model", model, "-test_data", letters / "valid.tsv", "-gpus", 0, "-save_output", tmp_path / name)
    assert (tmp_path / "folder").read_bytes() == (tmp_path / "best").read_bytes()
    scored = infer_ok("-model", sharded, "-all_checkpoints", "-test_data", letters / "valid.tsv", "-gpus", 0).out
    steps = sorted({step_of(path) for path in folder.parent.glob("epoch*.ckpt")})
    assert [int(step) for step in re.findall(r"checkpoint \d of \d: step (\d+), ", scored)] == steps
    assert "\nbest by exact_match: step " in scored
    changes: dict[str, Any] = {"cpu_processes": 0, "gpus": 0, "max_epoch": 3, "resume_checkpoint": folder}
    flags = flag_list(flags_of(two_processes, letters, "two", save_path=tmp_path / "one", **changes))
    refused = train(*flags)
    assert refused.code == 2
    assert "\n  number of devices  2           1\n" in refused.err
    assert last_run_step(train_ok(*flags, "-resume_force").out) > 20


def last_run_step(out: str) -> int:
    """The step in the line that ends a run."""
    line = next(line for line in out.splitlines() if line.startswith("trained to optimizer step "))
    return int(line.split(";")[0].rpartition(" ")[2])
