"""Which documents of the shards a corpus uses: length limits and duplicates, without encoding anything again.

A selection is a folder beside the shards with one file a shard: where the tokens of each document that is kept begin in
the .bin file, then where they end in the stream of the documents that are kept (uint64).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.corpus.shards import INDEX, ShardRecord, shard_index
from utils.files import file_lock, write_folder
from utils.json_files import read_json

DIGESTS_AT_A_TIME = 1 << 24  # that are sorted together: 400 MB

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Selection:
    """What is left out: documents of fewer or more tokens (0 = none), and all but the first with the same text."""

    min_tokens: int = 0
    max_tokens: int = 0
    deduplicate: bool = False


@dataclass(frozen=True)
class Selected:
    """A selection on the disk. `shards` are [documents, tokens] that are kept of each shard."""

    folder: Path
    digest: str
    shards: list[list[int]]
    dropped: dict[str, int]  # why -> documents


def select_documents(
    folder: Path, names: Sequence[str], records: Sequence[ShardRecord], selection: Selection
) -> Selected | None:
    """The selection of these shards, made unless it is there; None where it leaves nothing out by its settings."""
    if selection == Selection():
        return None
    content = json.dumps(
        [asdict(selection), *([name, record.digest] for name, record in zip(names, records, strict=True))]
    )
    key = hashlib.blake2b(content.encode(), digest_size=10).hexdigest()
    place = folder / f"selection-{key}"
    found = _read(place, len(names))
    if found is None:
        with file_lock(folder / "selection.lock"):
            found = _read(place, len(names))
            if found is None:
                masks, dropped = _masks(folder, names, records, selection)
                write_folder(place, lambda target: _write(target, folder, names, masks, dropped))
                found = _read(place, len(names))
    assert found is not None
    return found


def selection_file(number: int) -> str:
    """The name of the file of a shard."""
    return f"{number:06}.idx"


def _read(place: Path, count: int) -> Selected | None:
    try:
        content = read_json(place / "selection.json")
        found = Selected(place, content["digest"], content["shards"], content["dropped"])
        sizes = [(place / selection_file(number)).stat().st_size for number in range(count)]
        return found if sizes == [2 * INDEX.itemsize * documents for documents, _ in found.shards] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _masks(
    folder: Path, names: Sequence[str], records: Sequence[ShardRecord], selection: Selection
) -> tuple[list[Mask], dict[str, int]]:
    """For each shard which documents are kept, and how many are not for each reason."""
    masks = []
    dropped = {"too short": 0, "too long": 0, "the same as an earlier one": 0}
    for name, record in zip(names, records, strict=True):
        ends, _ = shard_index(folder, name, record.documents)
        lengths = np.diff(ends.astype(np.int64), prepend=0) - 1
        short = lengths < selection.min_tokens
        long = lengths > selection.max_tokens if selection.max_tokens else np.zeros_like(short)
        dropped["too short"] += int(short.sum())
        dropped["too long"] += int(long.sum())
        masks.append(~(short | long))
    if selection.deduplicate:
        dropped["the same as an earlier one"] = _drop_duplicates(folder, names, records, masks)
    return masks, {reason: count for reason, count in dropped.items() if count}


def _drop_duplicates(folder: Path, names: Sequence[str], records: Sequence[ShardRecord], masks: list[Mask]) -> int:
    """Take out of the masks every document whose text an earlier one has; how many these are.

    Digests of 64 bits: of 500 million different texts two are taken for the same with a probability below 1 %. They
    are sorted in parts, by their remainder, so that memory stays bounded.
    """
    total = sum(record.documents for record in records)
    parts = -(-total // DIGESTS_AT_A_TIME) or 1
    starts = np.cumsum([0, *(record.documents for record in records)])
    count = 0
    for part in range(parts):
        digests, numbers = [], []
        for shard, (name, record) in enumerate(zip(names, records, strict=True)):
            _, of_shard = shard_index(folder, name, record.documents)
            here = np.flatnonzero(masks[shard] & (of_shard % np.uint64(parts) == part))
            digests.append(of_shard[here])
            numbers.append(here + starts[shard])
        joined, places = np.concatenate(digests), np.concatenate(numbers)
        _, first = np.unique(joined, return_index=True)
        others = np.ones(len(places), dtype=bool)
        others[first] = False
        repeated = places[others]  # in order: shard by shard
        bounds = np.searchsorted(repeated, starts)
        for shard, mask in enumerate(masks):
            mask[repeated[bounds[shard] : bounds[shard + 1]] - starts[shard]] = False
        count += len(repeated)
    return count


def _write(target: Path, folder: Path, names: Sequence[str], masks: Sequence[Mask], dropped: dict[str, int]) -> None:
    digest = hashlib.blake2b(digest_size=20)
    shards: list[Any] = []
    for number, (name, mask) in enumerate(zip(names, masks, strict=True)):
        ends, _ = shard_index(folder, name, len(mask))
        stream = ends.astype(np.int64)
        lengths = np.diff(stream, prepend=0)[mask]
        starts = (stream - np.arange(1, len(stream) + 1))[mask] - (lengths - 1)
        data = np.concatenate([starts, np.cumsum(lengths)]).astype(INDEX).tobytes()
        (target / selection_file(number)).write_bytes(data)
        digest.update(data)
        shards.append([len(lengths), int(lengths.sum()) - len(lengths)])
    content = {"digest": digest.hexdigest(), "shards": shards, "dropped": dropped}
    (target / "selection.json").write_text(json.dumps(content), encoding="utf-8")
