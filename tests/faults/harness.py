"""Runs that are killed again and again until they are done, and the comparison with the run nobody killed."""

from __future__ import annotations

import json
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from tests.cli.command import Result, environment, run_and_read
from tests.cli.tiny import flag_list, json_lines, write_config
from tests.small_configs import with_dropout

CLOCK = ("tokens_per_second", "rows_per_second", "seconds", "peak_memory_gb")  # figures of the machine
KILLED, TERMINATED = -9, 143  # exit codes
SHARE_OF_SIGTERM = 0.25


@dataclass
class Killed:
    """What became of a run under fire."""

    kills: int = 0  # SIGTERMs among them
    attempts: int = 0
    events: list[int] = field(default_factory=list)  # at which each attempt was killed


def run_flags(folder: Path, name: str, model: str, train_data: str | Path | None, **flags: Any) -> dict[str, Any]:
    """A run `name` in `folder`: 25 batches in each of two epochs, two validations in each, saved at every second step.

    `model` is one of `tests.small_configs.CONFIGS`; dropout is on.
    """
    return {
        "train_data": train_data,
        "config_path": write_config(folder / "model.json", with_dropout(model, 0.2)),
        "save_path": folder / name,
        "cache_dir": folder / "cache",
        "batch_size": 4,
        "max_epoch": 2,
        "learning_rate": 2e-3,
        "valid_check_interval": 0.4,
        "valid_generate_rows": 10,
        "save_every": 2,
        "log_every": 3,
        **flags,
    }


def start(flags: dict[str, Any], faults: dict[str, str]) -> Result:
    """`train.py`, with a corpus `pretrain.py`, to its end or its kill, in a process group of its own.

    Its errors are in its output.
    """
    script = "pretrain.py" if "corpus" in flags else "train.py"
    return run_and_read([script, *flag_list(flags)], environment(**faults))


def events_of(flags: dict[str, Any], log: Path) -> int:
    """Run without a kill; the number of moments at which it could have been killed."""
    done = start(flags, {"FAULT_LOG": str(log)})
    assert done.code == 0, done.out
    return int(log.read_text(encoding="utf-8"))


def run_under_fire(
    flags: dict[str, Any], events: int, draw: random.Random, max_kills: int, result: Killed | None = None
) -> Killed:
    """Start, kill at a random event, resume with the same command line, and so on until the run is done.

    Every fourth kill, about, is a SIGTERM. After each there must be a whole checkpoint, once there has been one, and
    whole model folders.

    Args:
        result: counts what is done, also when this raises.
    """
    result = result or Killed()
    exported: set[str] = set()
    folder = Path(flags["save_path"])
    flags = {**flags, "resume_checkpoint": "auto"}
    had_one = False
    while True:
        faults = {"FAULT_SLOW": "0.02"}
        if result.kills < max_kills:
            faults["FAULT_AT"] = str(draw.randint(1, max(2, events)))
            if draw.random() < SHARE_OF_SIGTERM:
                faults["FAULT_SIGNAL"] = str(int(signal.SIGTERM))
        done = start(flags, faults)
        result.attempts += 1
        if done.code == 0:
            return result
        expected = TERMINATED if "FAULT_SIGNAL" in faults else KILLED
        assert done.code == expected, done.out
        assert "Traceback" not in done.out, done.out
        result.kills += 1
        result.events.append(int(faults["FAULT_AT"]))
        there = whole_checkpoint(folder)
        assert there or not had_one, f"no whole checkpoint is left after a kill at event {faults['FAULT_AT']}"
        had_one = had_one or there
        exported |= {name for name in ("best", "last") if (folder / name).exists()}
        for name in exported:
            assert_loads(folder / name)


def whole_checkpoint(folder: Path) -> bool:
    """Whether at least one checkpoint of the run can be loaded."""
    for path in (folder / "saved_checkpoints").glob("*.ckpt"):
        try:
            load_checkpoint(path)
        except Exception:
            continue
        return True
    return False


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, of one that is a folder the index and all shards."""
    if not path.is_dir():
        return dict(torch.load(path, weights_only=True))
    files = {file.name: torch.load(file, weights_only=True) for file in path.iterdir()}
    index: dict[str, Any] = files.pop("index.ckpt")
    assert len(index["s2s"]["shards"]) == len(files)
    return {**index, "files": files}


def assert_loads(exported: Path) -> None:
    """A model folder is whole: its weights are those that its config names, and its state can be read."""
    kind = "adapter_" if (exported / "adapter_config.json").exists() else ""
    weights = load_file(exported / f"{kind}model.safetensors")
    assert weights
    for name in (f"{kind}config.json", "generation_config.json", "training_state.json", "tokenizer_config.json"):
        assert json.loads((exported / name).read_text(encoding="utf-8")), exported / name


# ---- comparison


def without_clock(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name not in CLOCK} for entry in entries]


def assert_same(one: Any, other: Any, place: str = "") -> None:
    """Equal bit for bit, tensors included."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert list(one) == list(other), place
        for key in one:
            assert_same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{place}/{index}")
    else:
        assert one == other, place


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every TensorBoard curve that time does not decide, as TensorBoard itself reads them."""
    reader = EventAccumulator(str(folder / "lightning_logs"), size_guidance={SCALARS: 0}).Reload()
    return {
        tag: [(entry.step, entry.value) for entry in reader.Scalars(tag)]
        for tag in sorted(reader.Tags()["scalars"])
        if not tag.endswith(CLOCK)
    }


def assert_same_end(run_folder: Path, whole: Path) -> None:
    """Weights, optimizer, schedule, loop position, best score, exported folders and logs."""
    mine, reference = (load_checkpoint(folder / "saved_checkpoints" / "last.ckpt") for folder in (run_folder, whole))
    for part in (mine, reference):
        part["s2s"].pop("flags")
        log = part["s2s_log"]
        log["meters"] = [meter[:-1] for meter in log["meters"]]  # the last are seconds
        log["epoch_totals"] = without_clock(log["epoch_totals"])
        log.pop("epoch_seconds")
        part["callbacks"]["Checkpointer"].pop("kept")
    assert_same(mine, reference)
    for name in ("best", "last"):
        weights = [next((folder / name).glob("*model.safetensors")).read_bytes() for folder in (run_folder, whole)]
        assert weights[0] == weights[1]
        states = [json.loads((folder / name / "training_state.json").read_text()) for folder in (run_folder, whole)]
        for state in states:
            state.pop("flags")
        assert states[0] == states[1]
    logs = [json.loads((folder / "log.json").read_text(encoding="utf-8")) for folder in (run_folder, whole)]
    assert without_clock(logs[0]) == without_clock(logs[1])
    lines = [json_lines(folder / "metrics.jsonl") for folder in (run_folder, whole)]
    assert without_clock(lines[0]) == without_clock(lines[1])
    curves = [scalars(folder) for folder in (run_folder, whole)]
    assert curves[0] == curves[1]
    assert len(curves[0]) >= 4


def assert_same_checkpoints(run_folder: Path, whole: Path) -> None:
    """The same files are kept: none is lost by a kill, and none left behind."""
    names = [sorted(path.name for path in (folder / "saved_checkpoints").iterdir()) for folder in (run_folder, whole)]
    assert names[0] == names[1]
