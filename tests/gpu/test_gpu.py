"""What only a CUDA device shows: training, resuming and predicting on it, as on the CPU, and without waiting for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_right
from benchmarks.device import Place
from config.flags.train import TrainConfig
from models.flops import PEAKS
from tests.cli.command import infer_ok, train_ok
from tests.cli.tiny import json_lines
from tests.small_configs import with_dropout
from training.fit import memory_errors
from utils.devices import Devices, use_arithmetic
from utils.errors import RunError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]


def write_copy_task(path: Path, rows: int) -> str:
    letters = "abcd"
    path.write_text("".join(f"{letters[row % 4] * (1 + row % 9)}{row}\t{letters[row % 4]}\n" for row in range(rows)))
    return str(path)


@pytest.mark.parametrize(("architecture", "precision"), [("t5-untied", "32"), ("t5-untied", "bf16"), ("bart", "fp16")])
def test_a_gpu_learns_and_predicts(architecture: str, precision: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(with_dropout(architecture)))
    data = write_copy_task(tmp_path / "data.tsv", 512)
    run = tmp_path / "run"
    train_ok(
        "-train_data", data, "-valid_data", f"{data}:4", "-config_path", config, "-save_path", run, "-gpus", "1",
        "-float_precision", precision, "-max_epoch", "12", "-batch_size", "32", "-learning_rate", "3e-3",
    )  # fmt: skip
    epochs = json.loads((run / "log.json").read_text())
    assert epochs[-1]["exact_match"] > 0.95
    report = tmp_path / "report.json"
    infer_ok("-model", run / "best", "-test_data", data, "-gpus", "1", "-save_report", report, "-beam_size", "2")
    assert json.loads(report.read_text())["metrics"]["exact_match"] > 0.95


def test_a_deterministic_resume_on_a_gpu_is_bit_identical(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(with_dropout("bart")))
    data = write_copy_task(tmp_path / "data.tsv", 256)
    flags = ["-train_data", data, "-config_path", str(config), "-gpus", "1", "-max_epoch", "2", "-batch_size", "32"]
    flags.append("-deterministic")
    train_ok(*flags, "-save_path", tmp_path / "whole", "-save_every", "5")
    middle = tmp_path / "whole" / "saved_checkpoints" / "epoch00-global_step5.ckpt"
    if not middle.exists():
        middle = next((tmp_path / "whole" / "saved_checkpoints").glob("*global_step10.ckpt"))
    train_ok(*flags, "-save_path", tmp_path / "resumed", "-resume_checkpoint", middle)
    whole, resumed = (
        torch.load(tmp_path / name / "saved_checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def told(measure: Callable[..., None], folder: Path) -> dict[str, tuple[str, float]]:
    """What a step of benchmarks/gpu.sh tells: the value and the figure of each line."""
    found: dict[str, tuple[str, float]] = {}

    def tell(what: str, value: Any, figure: float) -> None:
        found[what] = (str(value), figure)

    measure(tell, Place("cuda"), folder)
    return found


def test_a_gpu_computes_what_the_cpu_computes(tmp_path: Path) -> None:
    """Loss, gradients, texts, scores and label scores in fp32, with all its bits."""
    found = told(gpu_right.parity, tmp_path)
    assert {what: value for what, (value, _) in found.items() if "ABOVE" in value} == {}
    assert {value for what, (value, _) in found.items() if what.endswith("texts as on the CPU")} == {"32 of 32"}
    assert len(found) == 24


def test_the_host_waits_for_the_gpu_as_rarely_as_is_counted_without_one(tmp_path: Path) -> None:
    waits = {what: figure for what, (_, figure) in told(gpu_right.waits, tmp_path).items()}
    assert {what: count for what, count in waits.items() if "training" in what and count} == {}
    assert {what: count for what, count in waits.items() if "at most" in what and count > gpu_right.MOST_WAITS} == {}
    assert {what: count for what, count in waits.items() if "label" in what and count > 1} == {}
    assert len(waits) == 12


def test_tf32_is_used_when_it_was_asked_for_alone() -> None:
    """Cards before Ampere have none."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this card has no TF32")
    one, other = (torch.randn(512, 512, device="cuda") for _ in range(2))
    exact = one.double() @ other.double()
    errors = {}
    for tf32 in (True, False):
        use_arithmetic(replace(Devices("cuda", 1, 1, "32-true"), tf32=tf32))
        errors[tf32] = float(((one @ other).double() - exact).abs().max() / exact.abs().max())
    assert errors[False] < 1e-5 < 1e-4 < errors[True] < 1e-2


def test_the_attention_that_plans_for_every_shape_is_off() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    use_arithmetic(Devices("cuda", 1, 1, "bf16-mixed"))
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_memory_that_lacks_on_a_gpu_is_told_in_words() -> None:
    module: Any = SimpleNamespace(device=torch.device("cuda", 0), batch_shape="9 rows x 8 source and 7 target tokens")
    words = "the memory of cuda:0 is too small for a batch of 9 rows"
    with pytest.raises(RunError, match=words), memory_errors(module, TrainConfig()):
        torch.empty(2**50, device="cuda")


def test_a_profile_and_the_log_tell_of_the_gpu(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(with_dropout("t5")))
    data = write_copy_task(tmp_path / "data.tsv", 256)
    out = train_ok(
        "-train_data", data, "-config_path", config, "-save_path", tmp_path / "run", "-gpus", "1", "-batch_size", "16",
        "-max_epoch", "1", "-log_every", "5", "-float_precision", "bf16", "-profile", "4",
    ).out.splitlines()  # fmt: skip
    heads = next(number for number, line in enumerate(out) if line.split()[:4] == ["program,", "ms", "share", "GPU,"])
    table = {line.split()[0]: line.split()[1:] for line in out[heads + 1 : heads + 8]}
    assert float(table["forward"][2]) > 0
    assert float(table["backward"][2]) > 0
    lines = json_lines(tmp_path / "run" / "metrics.jsonl")
    assert all(line["peak_memory_gb"] > 0 for line in lines if line["phase"] == "train")
    known = torch.cuda.get_device_name(0) in PEAKS
    assert {"mfu" in line for line in lines if line["phase"] == "train"} == {known}
