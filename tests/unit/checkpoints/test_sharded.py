"""Checkpoints of several processes: written together, read as one, and refused by the file that is wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.format import CONTENT_KEY, TornCheckpoint, read_checkpoint
from checkpoints.run_folder import checkpoints_of, clean_leftovers
from checkpoints.saved_run import read_run
from checkpoints.sharded import RANK, STATES, WEIGHTS, Rows, write_sharded
from tests.saved_runs import whole_checkpoint
from utils.errors import RunError, UserError
from utils.files import link_path, remove_path

PROCESSES = 3


def gathering(count: int) -> Callable[[int], Callable[[Any], list[Any]]]:
    """What gathers a value of `count` threads, for the thread of each rank."""
    barrier, values = threading.Barrier(count), [None] * count

    def of_rank(rank: int) -> Callable[[Any], list[Any]]:
        def gather(value: Any) -> list[Any]:
            values[rank] = value
            barrier.wait(30)
            found = list(values)
            barrier.wait(30)
            return found

        return gather

    return of_rank


def rows(tensors: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    return {
        name: value[rank * -(-len(value) // PROCESSES) :][: -(-len(value) // PROCESSES)]
        for name, value in tensors.items()
    }


def write(folder: Path, number: float = 1.0) -> dict[str, Any]:
    """A sharded checkpoint, written by three threads; returns it as one process would have written it."""
    checkpoint = whole_checkpoint()
    buffers = {name: value for name, value in checkpoint[WEIGHTS].items() if "bias_logits" in name or value.ndim == 0}
    weights = {name: value * number for name, value in checkpoint[WEIGHTS].items() if name not in buffers}
    moments = {"exp_avg": torch.arange(14.0).view(7, 2) * number}
    state = {"state": {0: {"step": torch.tensor(5.0), **moments}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    index = {
        **checkpoint,
        WEIGHTS: {**buffers, **{name: list(value.shape) for name, value in weights.items()}},
        STATES: [{**state, "state": {0: {"step": torch.tensor(5.0), "exp_avg": [7, 2]}}}],
    }
    gather = gathering(PROCESSES)

    def save(rank: int) -> None:
        shard = {RANK: rank, WEIGHTS: rows(weights, rank), STATES: [{0: rows(moments, rank)}]}
        write_sharded(folder, index if rank == 0 else None, shard, CONTENT_KEY, gather(rank))

    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(save, range(PROCESSES)))
    return {**checkpoint, WEIGHTS: {**buffers, **weights}, STATES: [state]}


def test_read_as_what_one_process_would_have_written(tmp_path: Path) -> None:
    expected = write(tmp_path / "a.ckpt")
    run = read_run(tmp_path / "a.ckpt")
    found = run.model.tensors.weights
    assert {f"model.{name}" for name in found} == set(expected[WEIGHTS])
    for name, value in expected[WEIGHTS].items():
        assert torch.equal(found[name.removeprefix("model.")], value), name
    assert run.model.tensors.optimizer is not None
    state = run.model.tensors.optimizer["state"][0]
    assert isinstance(state, Rows)
    moment = expected[STATES][0]["state"][0]["exp_avg"]
    assert torch.equal(state["exp_avg"], moment)
    assert state["step"] == 5
    for start, stop in ((0, 3), (2, 5), (4, 7), (6, 7), (7, 7)):
        assert torch.equal(state.rows("exp_avg", start, stop), moment[start:stop])
    assert torch.equal(
        run.model.build().state_dict()["model.shared.weight"], expected[WEIGHTS]["model.model.shared.weight"]
    )


def test_a_second_name_and_another_kind_in_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "saved_checkpoints"
    expected = write(folder / "epoch00-global_step5.ckpt")
    last = folder / "last.ckpt"
    torch.save(expected, last)
    link_path(folder / "epoch00-global_step5.ckpt", last)
    assert checkpoints_of(tmp_path) == [last]
    remove_path(folder / "epoch00-global_step5.ckpt")
    assert read_checkpoint(last)["global_step"] == 5
    torch.save(expected, folder / "epoch00-global_step6.ckpt")
    link_path(folder / "epoch00-global_step6.ckpt", last)
    assert last.is_file()
    assert sorted(path.name for path in folder.iterdir()) == ["epoch00-global_step6.ckpt", "last.ckpt"]


def test_what_killed_saves_leave_goes(tmp_path: Path) -> None:
    folder = tmp_path / "saved_checkpoints"
    write(folder / "last.ckpt")
    (folder / "last.ckpt").rename(folder / ".last.ckpt.7.old")  # on a file system that cannot exchange names
    (folder / ".epoch00-global_step5.ckpt.7.tmp").mkdir()
    (folder / ".epoch00-global_step6.ckpt.7.tmp").write_bytes(b"half")
    clean_leftovers(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 5


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write(path)
    write(tmp_path / "b.ckpt", 2.0)
    shard = path / "shard-00001-of-00003.ckpt"
    whole = shard.read_bytes()
    told = []
    for content in (None, whole[: len(whole) // 2], (tmp_path / "b.ckpt" / shard.name).read_bytes()):
        shard.unlink(missing_ok=True)
        if content is not None:
            shard.write_bytes(content)
        with pytest.raises(TornCheckpoint) as caught:
            read_checkpoint(path)
        told += caught.value.problems
    assert told == [
        f"-resume_checkpoint {path}: shard-00001-of-00003.ckpt is missing, one of 3 shards",
        f"-resume_checkpoint {shard}: the file is torn or no checkpoint (another format, or its end is lost)",
        f"-resume_checkpoint {path}: shard-00001-of-00003.ckpt is of another save than index.ckpt",
    ]
    (path / "index.ckpt").unlink()
    with pytest.raises(TornCheckpoint, match=r"no checkpoint, or a torn one: this folder has no index\.ckpt"):
        read_checkpoint(path)


def test_shards_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write(path)
    index = torch.load(path / "index.ckpt", weights_only=True)
    index[WEIGHTS]["model.model.shared.weight"][0] += 1
    torch.save(index, path / "index.ckpt")
    with pytest.raises(UserError, match=r"its shards do not fit index\.ckpt \(model\.model\.shared\.weight is not \["):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("part", "name", "value", "told"),
    [
        (STATES, "exp_avg", [7, torch.ones(2)], r"its shards do not fit index\.ckpt \(exp_avg is not \["),
        (STATES, "exp_avg", ["7", 2], r"its shards do not fit index\.ckpt \(exp_avg is not \['7', 2\]"),
        (WEIGHTS, "model.model.shared.weight", 2.5, "state_dict is a Rows of 95, not dense tensors by name"),
    ],
)
def test_an_index_with_something_else_for_a_shape_is_refused(
    tmp_path: Path, part: str, name: str, value: Any, told: str
) -> None:
    path = tmp_path / "a.ckpt"
    write(path)
    index = torch.load(path / "index.ckpt", weights_only=True)
    (index[WEIGHTS] if part == WEIGHTS else index[STATES][0]["state"][0])[name] = value
    torch.save(index, path / "index.ckpt")
    with pytest.raises(UserError, match=told):
        read_run(path)


def test_a_full_disk_of_one_process_is_told_by_all_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    before = write(path)
    save = torch.save

    def fails(content: Any, target: Any) -> None:
        if isinstance(content, dict) and content.get(RANK) == 1:
            raise OSError(28, "No space left on device")
        save(content, target)

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(RunError, match=r"shard-00001-of-00003\.ckpt could not be written: the disk is full"):
        write(path, 2.0)
    monkeypatch.undo()
    name = "model.model.shared.weight"
    assert torch.equal(read_checkpoint(path)[WEIGHTS][name], before[WEIGHTS][name])
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]
