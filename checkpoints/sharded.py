"""A checkpoint of several processes: a folder with what each of them held, a file each, and an index of it all.

    NAME.ckpt/index.ckpt                  what a .ckpt file holds, with the shapes of the tensors that are in shards
    NAME.ckpt/shard-00000-of-00002.ckpt   the rows of these tensors that the first process held

The index knows a digest of every shard: those of another save are never taken for its own.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.run_folder import INDEX_NAME
from models.loading import OF_ANOTHER_KIND, is_dense
from utils.errors import RunError, UserError
from utils.files import sync_path, write_failure, write_folder

SHARDS_KEY = "shards"  # in what is ours of the index: the digest of every shard
WEIGHTS, STATES = "state_dict", "optimizer_states"  # in an index; a shard has the rows of both
RANK = "rank"  # in a shard: whose it is


def shard_name(rank: int, world: int) -> str:
    """The file of a process in the folder of a checkpoint."""
    return f"shard-{rank:05}-of-{world:05}.ckpt"


class Rows(Mapping[str, Any]):
    """Tensors that are put together from the rows of every shard when they are asked for, and whole values beside them.

    Args:
        shapes: of the tensors, by name.
        parts: their rows in each shard.
        whole: what is in the index itself.
    """

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], parts: Sequence[Mapping[str, Tensor]], whole: Mapping[str, Any]
    ) -> None:
        self.shapes, self.parts, self.whole = shapes, parts, whole

    def __iter__(self) -> Iterator[str]:
        return iter({**self.whole, **self.shapes})

    def __len__(self) -> int:
        return len(self.whole) + len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.whole or name in self.shapes

    def __getitem__(self, name: str) -> Any:
        if name not in self.shapes:
            return self.whole[name]
        return self.rows(name, 0, self.shapes[name][0])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor; pages of the file where one shard has them all."""
        found, first = [], 0
        for part in (part[name] for part in self.parts):
            rows = part[max(start - first, 0) : max(stop - first, 0)]
            found += [rows] if len(rows) else []
            first += len(part)
        return found[0] if len(found) == 1 else torch.cat(found) if found else self.parts[0][name][:0]

    def renamed(self, name: Callable[[str], str]) -> Rows:
        """The same under other names."""
        parts = [{name(key): value for key, value in part.items()} for part in self.parts]
        shapes, whole = ({name(key): value for key, value in found.items()} for found in (self.shapes, self.whole))
        return Rows(shapes, parts, whole)


# ---- writing


def write_sharded(
    folder: Path,
    index: Mapping[str, Any] | None,
    shard: Mapping[str, Any],
    key: str,
    gather: Callable[[Any], list[Any]],
) -> None:
    """Swap `folder` for one with this index and the shards of all processes, each of which calls this.

    Args:
        index: None on all processes but the first; under `key` stands what is ours.
        shard: of this process.
        gather: gives a value of every process, by rank.

    Raises:
        RunError: a disk refused, on the first process at least; the folder that was there before is untouched.
    """
    if index is None:
        _write_shards(gather, shard, "")
        return
    begun = False

    def fill(target: Path) -> None:
        nonlocal begun
        begun = True
        digests = _write_shards(gather, shard, str(target))
        torch.save({**index, key: {**index[key], SHARDS_KEY: digests}}, target / INDEX_NAME)

    try:
        write_folder(folder, fill)
    except RunError:
        if not begun:
            gather("")  # the others wait for the name of a folder
        raise


def _write_shards(gather: Callable[[Any], list[Any]], shard: Mapping[str, Any], target: str) -> list[str]:
    """The digests of the shards that all processes have written into the folder that the first one names."""
    folders = gather(target)
    if not folders[0]:
        return []
    folder = Path(folders[0])
    path, problem, digest = folder / shard_name(shard[RANK], len(folders)), "", ""
    try:
        torch.save(shard, path)
        sync_path(path)
        digest = archive_digest(path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into RuntimeError
        problem = f"{path} could not be written: {write_failure(error, folder.parent)}; earlier files are untouched"
    answers = gather((digest, problem))
    for _, problem in answers:
        if problem:
            raise RunError(problem)
    return [digest for digest, _ in answers]


def archive_digest(path: Path) -> str:
    """What tells the file of one save from that of another: the names, sizes and checksums of its parts."""
    with zipfile.ZipFile(path) as archive:
        parts = [(member.filename, member.file_size, member.CRC) for member in archive.infolist()]
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


# ---- reading


def joined(
    folder: Path, index: Mapping[str, Any], key: str, place: str, read: Callable[[Path], Any], torn: type[UserError]
) -> dict[str, Any]:
    """What a checkpoint file would hold: the index with `Rows` in place of shapes.

    Args:
        place: the flag and the folder: opens messages.
        read: gives what is in a file; raises `torn` for one with other bytes than were written.

    Raises:
        UserError: a shard is missing, torn (then it is `torn`) or does not fit.
    """
    digests = index[key].get(SHARDS_KEY)
    if not isinstance(digests, list) or not digests or not isinstance(index.get(STATES), list):
        raise UserError(f"{place}: {OF_ANOTHER_KIND}: {INDEX_NAME} names no shards")
    shards = []
    for rank, digest in enumerate(digests):
        name = shard_name(rank, len(digests))
        if not (folder / name).is_file():
            raise torn(f"{place}: {name} is missing, one of {len(digests)} shards")
        shards.append(read(folder / name))
        if archive_digest(folder / name) != digest:
            raise torn(f"{place}: {name} is of another save than {INDEX_NAME}")
    try:
        weights = _rows(index[WEIGHTS], [shard[WEIGHTS] for shard in shards])
        states = [
            {
                **state,
                "state": {
                    number: _rows(kept, [shard[STATES][which][number] for shard in shards])
                    for number, kept in state["state"].items()
                },
            }
            for which, state in enumerate(index[STATES])
        ]
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(f"{place}: {OF_ANOTHER_KIND}: its shards do not fit {INDEX_NAME} ({error})") from error
    return {**index, WEIGHTS: weights, STATES: states}


def _rows(found: Mapping[str, Any], parts: Sequence[Mapping[str, Tensor]]) -> Rows:
    """`Rows` of an entry of the index. Raises ValueError where the shards have not the rows that it names."""
    shapes = {name: value for name, value in found.items() if isinstance(value, list)}
    whole = {name: value for name, value in found.items() if name not in shapes}
    if not all(isinstance(part, Mapping) for part in parts):
        raise ValueError("a shard has no rows by name")
    for name, shape in shapes.items():
        rows = [part[name] for part in parts]
        fitting = shape and all(type(size) is int for size in shape)
        fitting = fitting and all(is_dense(one) and one.ndim and list(one.shape[1:]) == shape[1:] for one in rows)
        if not fitting or sum(map(len, rows)) != shape[0] or len({one.dtype for one in rows}) != 1:
            raise ValueError(f"{name} is not {shape}")
    for name, value in whole.items():
        if isinstance(value, Tensor) and not is_dense(value):
            raise ValueError(f"{name} is no dense tensor")
    return Rows(shapes, [{name: part[name] for name in shapes} for part in parts], whole)
