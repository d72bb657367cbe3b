"""Copies of a state that training may change meanwhile, and the thread that writes them."""

from __future__ import annotations

import threading
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import background
from checkpoints.background import BackgroundSaves, HostCopies
from tests.faults.harness import assert_same
from utils.devices import CONTROL_GROUPS, free_host_memory


def state() -> dict[str, Any]:
    """Tied weights, a view, an empty tensor, numbers; a state_dict with an attribute."""
    weights = OrderedDict(shared=torch.arange(6.0).reshape(2, 3))
    weights["tied"] = weights["shared"]
    weights._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    return {"weights": weights, "view": torch.arange(9)[2:8:2], "steps": [torch.tensor(3.0), 4], "none": torch.empty(0)}


def test_a_copy_is_written_as_the_state_would_be_and_does_not_change_with_it(tmp_path: Path) -> None:
    original = state()
    copied = HostCopies().of(original)
    for value in (original["weights"]["shared"], original["view"], original["steps"][0]):
        value.zero_()
    torch.save(copied, tmp_path / "copied")
    torch.save(state(), tmp_path / "expected")
    loaded, expected = (torch.load(tmp_path / name, weights_only=True) for name in ("copied", "expected"))
    assert_same(loaded, expected)
    assert loaded["weights"]._metadata == expected["weights"]._metadata
    storages = [
        {name.partition("/")[2] for name in zipfile.ZipFile(tmp_path / file).namelist()}
        for file in ("copied", "expected")
    ]
    assert storages[0] == storages[1]  # tied weights stand there once


def test_the_next_copy_takes_the_same_memory() -> None:
    copies = HostCopies()
    first, second = (copies.of(state()) for _ in range(2))
    places = [
        {value.untyped_storage().data_ptr() for value in (one["weights"]["shared"], one["weights"]["tied"])}
        | {one["view"].untyped_storage().data_ptr()}
        for one in (first, second)
    ]
    assert len(places[0]) == 2
    assert places[0] == places[1]


def test_without_memory_for_a_copy_training_waits(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(background, "free_host_memory", lambda: 200)
    saves, content = BackgroundSaves(), {"weights": torch.zeros(30)}
    assert saves.copied(content) is content
    assert saves.copied(content) is content
    written: list[int] = []
    saves.start(lambda: written.append(1))
    assert written == [1]
    assert capsys.readouterr().out == (
        "120 bytes for a copy of the state are more than half of the free memory: training waits while a checkpoint is"
        " written\n"
    )


def test_an_error_of_the_thread_is_handed_over_once() -> None:
    saves, may_end = BackgroundSaves(), threading.Event()

    def fail() -> None:
        may_end.wait()
        raise OSError("no space")

    saves.copied({})
    saves.start(fail)
    assert not saves.failed
    may_end.set()
    assert str(saves.settle()) == "no space"
    assert saves.settle() is None


def test_memory_of_a_group_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A limit of a container or a job, or of what it lies in; pages of files are given back."""
    known = dict.fromkeys(CONTROL_GROUPS, (tmp_path, "memory.max", "memory.current", "inactive_file"))
    monkeypatch.setattr("utils.devices.CONTROL_GROUPS", known)
    assert free_host_memory() > 1 << 28
    for name, content in (("max", "5000"), ("current", "3000"), ("stat", "anon 1000\ninactive_file 2000\n")):
        (tmp_path / f"memory.{name}").write_text(content)
    assert free_host_memory() == 4000
    (tmp_path / "memory.max").write_text("max")
    assert free_host_memory() > 1 << 28
