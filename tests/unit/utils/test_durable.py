"""Files and folders are whole or not there; checkpoints that could run code, or are none, are refused."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import format as checkpoint_format
from checkpoints.format import CONTENT_KEY, FORMAT_VERSION, UPGRADES, TornCheckpoint, read_checkpoint
from checkpoints.run_folder import clean_leftovers
from checkpoints.saved_run import Tensors, read_run
from tests.saved_runs import saved_run, whole_checkpoint
from training import resuming
from training.lightning_loop import DurableCheckpointIO
from training.process_watch import PARENT_VARIABLE
from training.strategies.registry import STRATEGIES
from utils.errors import RunError, UserError, nothing_kept_on_user_error
from utils.files import link_folder, link_path, write_file, write_folder, write_json


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
        link_path(tmp_path / f"{text}.ckpt", tmp_path / "last.ckpt")
    (tmp_path / "two.ckpt").unlink()
    assert (tmp_path / "last.ckpt").read_text() == "two"
    assert names(tmp_path) == ["last.ckpt", "one.ckpt"]


def test_a_file_system_without_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "one.ckpt").write_text("one")
    link_path(tmp_path / "one.ckpt", tmp_path / "last.ckpt")
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


def test_a_linked_folder_has_the_same_weights_and_files_of_its_own(tmp_path: Path, monkeypatch: Any) -> None:
    """The weights outlive the folder that they were written to; without links they are copied."""
    last, best = tmp_path / "last", tmp_path / "best"
    for content in ("one", "two"):

        def fill(folder: Path, content: str = content) -> None:
            for name in ("a.st", "b"):
                (folder / name).write_text(content)

        write_folder(last, fill)
        link_folder(last, best, ".st")
        assert {path.name: path.read_text() for path in best.iterdir()} == {"a.st": content, "b": content}
        assert [(best / name).samefile(last / name) for name in ("a.st", "b")] == [True, False]
    write_folder(last, lambda folder: (folder / "a.st").write_text("three"))
    assert (best / "a.st").read_text() == "two"

    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    link_folder(last, best, ".st")
    assert ((best / "a.st").read_text(), (best / "a.st").samefile(last / "a.st")) == ("three", False)


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


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_checkpoint_is_handed_over_once_and_stays_with_nobody_else(on_cpu: bool) -> None:
    """What the optimizer keeps on a CPU is no page of the file."""
    page = torch.ones(3)
    resumed = saved_run(tensors=Tensors({"w": torch.arange(3.0)}, {"state": {0: page}}), global_step=7)
    reader = DurableCheckpointIO(resumed, on_cpu)
    loaded = reader.load_checkpoint("a.ckpt")
    assert torch.equal(loaded["state_dict"]["model.w"], torch.arange(3.0))
    assert torch.equal(loaded["optimizer_states"][0]["state"][0], torch.ones(3))
    assert (loaded["optimizer_states"][0]["state"][0].data_ptr() == page.data_ptr()) is not on_cpu
    assert loaded["lr_schedulers"][0]["last_epoch"] == loaded["global_step"] == resumed.global_step == 7
    with pytest.raises(AttributeError):
        resumed.for_lightning({}, "")
    with pytest.raises(RuntimeError, match="has loaded it"):
        reader.load_checkpoint("a.ckpt")


def test_bytes_are_checked_once_by_the_processes_of_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the first one starts take its word for the very file that it has read, and for no other."""
    path, checks = tmp_path / "a.ckpt", []
    torch.save(whole_checkpoint(), path)
    look = zipfile.ZipFile.testzip
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: checks.append(1) or look(archive))
    load = STRATEGIES["auto"].load
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    for _ in range(2):
        load(path)  # by the first process
    monkeypatch.setenv(PARENT_VARIABLE, "1")
    assert load(path).position.epoch == 1
    assert len(checks) == 2
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.rename(tmp_path / "before.ckpt")
    path.write_bytes(content)
    with pytest.raises(TornCheckpoint, match="the checksum of"):
        load(path)
    assert len(checks) == 3


def test_only_torn_bytes_count_as_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version, or a disk that does not read, stops a resume; it falls back for damaged bytes only."""
    torn, future, whole = (tmp_path / f"{name}.ckpt" for name in ("torn", "future", "whole"))
    torch.save(whole_checkpoint(), whole)
    torn.write_bytes(whole.read_bytes()[:-9])
    torch.save({CONTENT_KEY: {"format_version": FORMAT_VERSION + 1}}, future)
    monkeypatch.setitem(UPGRADES, 1, lambda checkpoint: {**checkpoint, "global_step": 77})
    said: list[str] = []
    with pytest.raises(UserError, match=rf"format version {FORMAT_VERSION + 1}; this program reads versions 1 to"):
        resuming.read_newest([torn, future, whole], read_run, said.append)
    monkeypatch.setattr(checkpoint_format, "FORMAT_VERSION", 2)
    newest = resuming.read_newest([torn, whole], read_run, said.append)
    assert newest is not None
    assert newest.global_step == 77
    assert [line.split(": ")[0] for line in said] == ["passed over", "continuing from the one before"]
    with pytest.raises(UserError) as caught:
        resuming.read_newest([torn], read_run, said.append)
    assert len(caught.value.problems) == 1
    with pytest.raises(UserError) as caught:
        resuming.read_newest([torn, torn], read_run, said.append)
    assert caught.value.problems[-1].startswith("no checkpoint is whole: put one back")

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(RunError, match=r"whole.ckpt: could not be read: .*Input/output error"):
        resuming.read_newest([whole, torn], read_run, said.append)


def test_what_the_disk_refuses_beside_a_write_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.ckpt").write_text("one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"last\.ckpt could not be changed: the disk is full, .* bytes are free\)"):
        link_path(tmp_path / "one.ckpt", tmp_path / "last.ckpt")


def test_checkpoints_of_another_kind_are_refused(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            read_checkpoint(path, "-model")
        assert len(caught.value.problems) == 1
        return caught.value.problems[0]

    assert refused(tmp_path / "none.ckpt") == f"-model {tmp_path}/none.ckpt: no such file"

    good = tmp_path / "good.ckpt"
    weights = {"w": torch.arange(1000.0)}
    content = {CONTENT_KEY: {"format_version": 1}, "state_dict": weights, "optimizer_states": [{"state": {}}]}
    DurableCheckpointIO().save_checkpoint(content, good)
    checkpoint = read_checkpoint(good)
    assert torch.equal(checkpoint["state_dict"]["w"], torch.arange(1000.0))

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


def test_files_of_a_folder_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    """safetensors writes for the owner alone: others of a group could not load a shared model."""

    def fill(folder: Path) -> None:
        (folder / "model.safetensors").touch(mode=0o600)
        (folder / "config.json").touch()

    before = os.umask(0o027)
    try:
        write_folder(tmp_path / "best", fill)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "best").iterdir()} == {0o640}
