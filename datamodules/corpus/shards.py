"""Token shards: the ids of one piece of a corpus without special tokens, and where its documents end.

A shard `NAME` is three files, written whole; the last one says that the others are there:

    NAME.bin   ids of all documents, little-endian (uint8, uint16 or uint32)
    NAME.idx   for each document where it ends in the stream (uint64), then a digest of each text (uint64)
    NAME.json  sizes, a digest of the ids, and what was counted on the way

A stream is the documents with one end token behind each: document i ends at `ends[i]`, and its ids in the .bin file end
at `ends[i] - i - 1`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from utils.files import whole_file, write_json
from utils.json_files import read_json

INDEX = np.dtype("<u8")
SAMPLED_BLOCKS, BLOCK = 3, 4096  # of a .bin file every start compares so many blocks, of so many bytes


@dataclass
class ShardRecord:
    """What NAME.json holds."""

    documents: int = 0
    tokens: int = 0  # without end tokens
    text_bytes: int = 0  # of the documents, in UTF-8
    token_bytes: int = 0
    digest: str = ""  # of ids and ends
    sample: str = ""  # `sample_digest` of the ids; empty = written by an earlier version
    compared: int = 0  # documents, between two encoders
    ties: int = 0  # of them
    skipped: dict[str, list[Any]] = field(default_factory=dict)  # reason -> [count, first places]


class ShardWriter:
    """Writes one shard; memory is that of the ends and digests of its documents."""

    def __init__(self, tokens: IO[bytes], dtype: str) -> None:
        self.record = ShardRecord()
        self._tokens, self._dtype = tokens, np.dtype(dtype)
        self._ends: list[np.ndarray] = []
        self._digests: list[np.ndarray] = []
        self._content = hashlib.blake2b(digest_size=20)

    def add(self, values: np.ndarray, lengths: np.ndarray, texts: list[str]) -> None:
        """Write documents: their ids one behind the other, the length of each, and their texts."""
        data = values.astype(self._dtype, copy=False).tobytes()
        self._tokens.write(data)
        self._content.update(data)
        ends = self.record.tokens + self.record.documents + np.cumsum(lengths + 1)
        self._ends.append(ends.astype(INDEX))
        rows = [text.encode() for text in texts]
        digests = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows)
        self._digests.append(np.frombuffer(digests, dtype=INDEX))
        self.record.documents += len(texts)
        self.record.tokens += len(values)
        self.record.token_bytes += len(data)
        self.record.text_bytes += sum(map(len, rows))

    def write_index(self, path: Path) -> None:
        """Write the .idx file."""
        with open(path, "wb") as file:
            for part in (*self._ends, *self._digests):
                file.write(part.tobytes())
        for part in self._ends:
            self._content.update(part.tobytes())
        self.record.digest = self._content.hexdigest()


@contextmanager
def new_shard(folder: Path, name: str, dtype: str) -> Iterator[ShardWriter]:
    """A shard that is there, whole, when the block ends; nothing of it where the block or the disk raises."""
    tokens, index, record = (folder / f"{name}.{suffix}" for suffix in ("bin", "idx", "json"))
    record.unlink(missing_ok=True)
    with ExitStack() as files:
        token_path = files.enter_context(whole_file(tokens))
        with open(token_path, "wb") as file:
            writer = ShardWriter(file, dtype)
            yield writer
        writer.record.sample = sample_digest(token_path)
        writer.write_index(files.enter_context(whole_file(index)))
    write_json(record, asdict(writer.record))


def whole_shard(folder: Path, name: str) -> ShardRecord | None:
    """The record of a shard; None when a file of it is missing or has another size, or when the sampled ids differ."""
    try:
        content = {"sample": "", **read_json(folder / f"{name}.json")}
        record = ShardRecord(**{item.name: content[item.name] for item in fields(ShardRecord)})
        sizes = [(folder / f"{name}.{suffix}").stat().st_size for suffix in ("bin", "idx")]
        same = sizes == [record.token_bytes, 2 * INDEX.itemsize * record.documents]
        return record if same and record.sample in ("", sample_digest(folder / f"{name}.bin")) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def sample_digest(path: Path) -> str:
    """A digest of the first, the middle and the last block of a file.

    It costs the same for a file of any size, and differs where a disk gives zeros for all of it or for its end.
    """
    digest = hashlib.blake2b(digest_size=8)
    with open(path, "rb", buffering=0) as file:
        room = max(0, file.seek(0, os.SEEK_END) - BLOCK)
        for number in range(SAMPLED_BLOCKS):
            file.seek(room * number // (SAMPLED_BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def shard_index(folder: Path, name: str, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the documents of a shard end in its stream, and the digests of their texts; memory-mapped."""
    index = mapped(folder / f"{name}.idx", INDEX)
    return index[:documents], index[documents:]


def mapped(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """The numbers in a file, memory-mapped."""
    if not path.stat().st_size:  # nothing can be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")
