"""Files and folders are whole or not there; checkpoints that could run code, or are none, are refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from errors import RunError, UserError
from models.checkpoint_format import read_checkpoint
from models.checkpoint_io import DurableCheckpointIO
from models.durable import (
    clean_leftovers,
    link_file,
    nothing_kept_on_user_error,
    write_file,
    write_folder,
    write_json,
)
from models.run_folder import CONTENT_KEY


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"가": 1})
    assert target.read_text(encoding="utf-8") == '{\n  "가": 1\n}\n'

    def half_a_write(file: Any) -> None:
        file.write(b"{")
        raise OSError(28, "No space left on device")

    with pytest.raises(
        RunError, match=r"a\.json could not be written: the disk is full, .*earlier files are untouched"
    ):
        write_file(target, half_a_write)
    assert target.read_text(encoding="utf-8") == '{\n  "가": 1\n}\n'
    assert names(tmp_path) == ["a.json"]

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(target, interrupted)
    assert names(tmp_path) == ["a.json"]


def test_a_link_replaces_the_newest_and_survives_the_removal_of_its_source(tmp_path: Path) -> None:
    for text in ("one", "two"):
        (tmp_path / f"{text}.ckpt").write_text(text)
        link_file(tmp_path / f"{text}.ckpt", tmp_path / "last.ckpt")
    (tmp_path / "two.ckpt").unlink()
    assert (tmp_path / "last.ckpt").read_text() == "two"
    assert names(tmp_path) == ["last.ckpt", "one.ckpt"]


def test_a_file_system_without_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "one.ckpt").write_text("one")
    link_file(tmp_path / "one.ckpt", tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_text() == "one"
    assert (tmp_path / "last.ckpt").stat().st_ino != (tmp_path / "one.ckpt").stat().st_ino


def test_a_folder_is_swapped_whole(tmp_path: Path) -> None:
    best = tmp_path / "best"
    write_folder(best, lambda folder: (folder / "old").write_text("old"))
    write_folder(best, lambda folder: (folder / "new").write_text("new"))
    assert names(best) == ["new"]

    def fails(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="best could not be written"):
        write_folder(best, fails)
    assert names(best) == ["new"]
    assert names(tmp_path) == ["best"]


def test_leftovers_of_a_killed_write_are_cleaned_and_a_half_swapped_folder_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".best.77.old").mkdir()
    (tmp_path / ".best.77.old" / "model").write_text("whole")
    (tmp_path / ".best.77.tmp").mkdir()
    (tmp_path / ".last.78.old").mkdir()
    (tmp_path / "last").mkdir()
    (tmp_path / ".log.json.79.tmp").write_text("half")
    clean_leftovers(tmp_path)
    assert names(tmp_path) == ["best", "last"]
    assert (tmp_path / "best" / "model").read_text() == "whole"


def test_nothing_is_kept_of_what_a_user_s_mistake_began(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(UserError), nothing_kept_on_user_error(tmp_path / "run" / "cache"):
        (tmp_path / "run" / "cache" / "deep").mkdir(parents=True)
        (tmp_path / "run" / "cache" / "deep" / "file").write_text("x")
        raise UserError("no")
    assert names(tmp_path / "run") == ["mine.txt"]


class Payload:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return (Path.touch, (self.victim,))


def test_checkpoints_of_another_kind_are_refused(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            read_checkpoint(path, "-model")
        assert len(caught.value.problems) == 1
        return caught.value.problems[0]

    assert refused(tmp_path / "none.ckpt") == f"-model {tmp_path}/none.ckpt: no such file"

    good = tmp_path / "good.ckpt"
    content = {CONTENT_KEY: {"format_version": 1}, "state_dict": {"w": torch.arange(1000.0)}}
    DurableCheckpointIO().save_checkpoint(content, good)
    checkpoint = read_checkpoint(good)
    assert torch.equal(checkpoint["state_dict"]["w"], torch.arange(1000.0))
    assert DurableCheckpointIO(checkpoint).load_checkpoint(good) == checkpoint

    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(good.read_bytes()[:-500])
    assert "torn" in refused(torn)
    (tmp_path / "empty.ckpt").write_bytes(b"")
    assert "torn" in refused(tmp_path / "empty.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    assert "torn" in refused(tmp_path / "text.ckpt")

    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "another kind" in refused(tmp_path / "other.ckpt")
    torch.save({CONTENT_KEY: {"format_version": 99}}, tmp_path / "future.ckpt")
    assert "format version 99" in refused(tmp_path / "future.ckpt")

    victim = tmp_path / "victim"
    torch.save({CONTENT_KEY: Payload(victim)}, tmp_path / "evil.ckpt")
    assert "could run code" in refused(tmp_path / "evil.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Payload(victim)))
    assert "refused" in refused(tmp_path / "plain.ckpt") or "torn" in refused(tmp_path / "plain.ckpt")
    assert not victim.exists()

    DurableCheckpointIO().remove_checkpoint(good)
    assert not good.exists()
