"""-batch_size 0: what is found against the true maximum, and what a batch without memory leaves behind."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import training.memory.batch_search as search
from config.flags.optim import OptimFlags
from config.flags.run import BatchFlags, TrainDeviceFlags
from config.flags.train import TrainConfig
from config.parser import parse_flags
from datamodules.batching import BatchOptions
from training.checks import check_train
from training.memory.batch_search import PRECISION, largest
from training.resuming import with_found
from training.setup import check_memory_limit
from training.strategies import cluster
from utils.devices import Devices
from utils.errors import UserError


def test_what_is_found_is_the_true_maximum_to_a_32nd() -> None:
    for truth in [*range(1, 200), 1000, 4095, 4096, 65_537]:
        tried: list[int] = []

        def fits(size: int, truth: int = truth, tried: list[int] = tried) -> bool:
            tried.append(size)
            return size <= truth

        good, bad = largest(fits, 1, 10**6)
        assert bad is not None
        assert good <= truth < bad <= good + max(1, good // PRECISION)
        assert len(tried) <= 2 + 2 * truth.bit_length()
    assert largest(lambda size: size <= 48, 1, 48) == (48, None)
    assert largest(lambda size: size < 30, 30, 500) == (0, 30)
    assert largest(lambda _: True, 7, 7) == (7, None)


class Rows:
    """40 rows of 1 to 40 source tokens; the shortest have the longest targets."""

    source_lengths = np.arange(1, 41, dtype=np.int32)
    target_lengths = np.arange(50, 10, -1, dtype=np.int32)

    def __len__(self) -> int:
        return 40


class Module(torch.nn.Linear):
    """Steps of a batch take 100 bytes a row, with a gradient; beyond `room` the memory ends in the middle."""

    def __init__(self, room: int) -> None:
        super().__init__(2, 2)
        self.room, self.peak = room, 0
        self.optim = None
        self.tried: list[list[int]] = []

    @property
    def model(self) -> torch.nn.Module:
        return self

    def go_through(self, batch: dict[str, Any], state: object) -> None:
        assert state == "the state of the optimizer"
        assert self.weight.grad is None
        self.weight.grad = torch.ones(2, 2)
        self.tried.append(batch["rows"])
        self.peak = 100 * len(batch["rows"])
        if self.peak > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def searched(monkeypatch: pytest.MonkeyPatch, room: int, limit: int, batch: BatchFlags) -> tuple[int, Module]:
    """What is found with a device of `room` bytes of which `limit` may be used."""
    module = Module(room)
    data = SimpleNamespace(
        train=Rows(), batch_options=BatchOptions(), batch_of=lambda rows: {"rows": [*map(int, rows)]}
    )
    config = TrainConfig(batch=batch, device=TrainDeviceFlags(memory_limit=limit / 2**30))
    prepared: Any = SimpleNamespace(
        config=config, devices=Devices("cpu", 1, 1, "32-true"), data_module=lambda: data, model=module
    )
    monkeypatch.setattr(search, "state_memory", lambda *_: "the state of the optimizer")
    monkeypatch.setattr(search, "_empty", lambda _: None)
    monkeypatch.setattr(search, "_peak_memory", lambda _: module.peak)
    name = "max_tokens" if batch.max_tokens else "batch_size"
    return search._found_on(prepared, module, name, torch.device("cpu")), module  # type: ignore[arg-type]


def test_rows_are_found_with_a_margin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is left of a batch that did not fit: the next one is tried as on a clean device."""
    found, module = searched(monkeypatch, room=1500, limit=1500, batch=BatchFlags(batch_size=0))
    assert found == 13  # 1,300 of 1,350 bytes
    assert module.weight.grad is None
    assert max(map(len, module.tried)) == 16
    assert list(range(27, 40)) in map(sorted, module.tried)  # the longest sources
    assert any(0 in rows for rows in module.tried)  # and the longest targets
    told = capsys.readouterr().out
    assert told.startswith("batch size: 13 rows found, 14 do not fit into 90% of 0.00 GiB of cpu; ")


def test_all_rows_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = searched(monkeypatch, 10**6, 10**6, BatchFlags(batch_size=0, grad_acc=2))
    assert found == 20
    assert "20 rows found, an optimizer step takes all rows then" in capsys.readouterr().out


def test_tokens_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found, module = searched(monkeypatch, 1500, 1500, BatchFlags(max_tokens=-1))
    assert max(len(rows) for rows in module.tried if 100 * len(rows) <= 1350) == 13
    assert 51 < found < 40 * 51


def test_a_single_row_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as caught:
        searched(monkeypatch, 90, 1500, BatchFlags(batch_size=0))
    assert str(caught.value) == (
        "-batch_size 0: not even one row of up to 40 source and 50 target tokens fits into 90% of 0.00 GiB of cpu: give"
        " a smaller -max_seq_length or -max_target_length, or -gradient_checkpointing, or -optim adafactor"
    )


def test_what_cannot_be_found_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "data.tsv").write_text("source\ttarget\na\tb\n")
    words = f"-train_data {tmp_path / 'data.tsv'} -config_path bart-mini -save_path {tmp_path / 'run'}".split()
    config, given, problems = parse_flags(TrainConfig, [*words, "-batch_size", "0", "-strategy", "fsdp"])
    check_train(config, given, problems)
    assert problems == [
        "-batch_size 0: not with -strategy fsdp, under which a device holds a part of the model; give the number"
    ]
    with pytest.raises(UserError, match=r"^-max_tokens -1: on the CPU give -memory_limit too, "):
        check_memory_limit(TrainConfig(batch=BatchFlags(max_tokens=-1)), Devices("cpu", 1, 1, "32-true"))


def test_on_a_cpu_without_linux_nothing_is_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    config = TrainConfig(batch=BatchFlags(batch_size=0), device=TrainDeviceFlags(memory_limit=1.0))
    with pytest.raises(UserError, match=r"^-batch_size 0: on a CPU only Linux says what a batch takes; give a number$"):
        check_memory_limit(config, Devices("cpu", 1, 1, "32-true"))


def test_a_resumed_run_takes_the_number_that_was_found() -> None:
    resumed: Any = SimpleNamespace(flags={"batch_size": 96, "max_tokens": 0})
    for batch in (BatchFlags(batch_size=0), BatchFlags(max_tokens=-1)):
        config = TrainConfig(batch=batch, optim=OptimFlags())
        assert with_found(config, resumed) == replace(config, batch=BatchFlags(batch_size=96))
        assert with_found(config, None) == config


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Threads whose names end in their ranks stand for three processes that were started by hand."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cluster, "global_rank", lambda: int(threading.current_thread().name.rpartition("_")[2]))
    cluster._store.cache_clear()
    return monkeypatch


def agreed(ranks: pytest.MonkeyPatch, found: list[int]) -> list[int | str]:
    """What each of three ranks takes, or raises, of which each finds one of these numbers; 0: not a row fits."""
    began = threading.Barrier(3)

    def on_devices(*_: object) -> int:
        began.wait()
        number = found[int(threading.current_thread().name.rpartition("_")[2])]
        if not number:
            raise UserError("not even one row fits")
        return number

    ranks.setattr(search, "_found_on_devices", on_devices)
    prepared: Any = SimpleNamespace(devices=Devices("cpu", 3, 1, "32-true"))
    with ThreadPoolExecutor(3, thread_name_prefix="rank") as pool:
        futures = [pool.submit(search._agreed, prepared, "batch_size") for _ in range(3)]
    return [str(error) if (error := future.exception()) else future.result() for future in futures]


def test_all_ranks_take_the_smallest_number(ranks: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert agreed(ranks, [96, 72, 104]) == [72, 72, 72]
    assert capsys.readouterr().out == "batch size: 72, the smallest number that 3 processes found\n" * 3


def test_where_one_rank_has_no_room_all_stop_with_its_words(ranks: pytest.MonkeyPatch) -> None:
    assert agreed(ranks, [96, 0, 104]) == ["not even one row fits"] * 3


def test_a_process_that_starts_those_of_its_machine_speaks_for_them(ranks: pytest.MonkeyPatch) -> None:
    ranks.delenv("RANK")
    assert cluster.words_of_all(Devices("cpu", 3, 1, "32-true"), "rows", "5") == ["5"]
