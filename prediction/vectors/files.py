"""Files of vectors: .npy with the ids beside it, or .parquet; each says what its vectors are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prediction.parts_folder import sidecars
from prediction.vectors.embed import Vectors
from utils.errors import UserError
from utils.escapes import escape_cell, unescape_cell
from utils.files import write_file, write_json
from utils.json_files import read_object

ROWS_AT_ONCE = 8192
ABOUT = "embed"  # key of the metadata of a Parquet file


def save_vectors(
    path: Path, vectors: Vectors, ids: Sequence[str] | None, about: Mapping[str, Any], replace: bool
) -> None:
    """Write the vectors in the order of the rows; every file appears whole or not at all, that of the vectors last.

    Args:
        ids: of the rows; None numbers them from 0.
        about: what the vectors are, JSON values.
        replace: whether files that are there may be replaced.
    """
    if path.suffix.lower() == ".parquet":
        write_file(path, lambda file: _write_parquet(file, vectors, ids, about), replace=replace)
        return
    described, named = sidecars(path)
    write_json(described, dict(about), replace)
    if ids is not None:
        lines = (f"{escape_cell(name)}\n".encode("utf-8", "replace") for name in ids)
        write_file(named, lambda file: file.writelines(lines), replace=replace)
    needed = len(vectors) * vectors.width * np.dtype(about["dtype"]).itemsize
    write_file(path, lambda file: _write_npy(file, vectors, about["dtype"]), needed, replace)


def _write_npy(file: BinaryIO, vectors: Vectors, dtype: str) -> None:
    described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (len(vectors), vectors.width)}
    np.lib.format.write_array_header_1_0(file, described)
    for vector in vectors:
        file.write(vector.data)


def _write_parquet(file: BinaryIO, vectors: Vectors, ids: Sequence[str] | None, about: Mapping[str, Any]) -> None:
    numbers = pa.from_numpy_dtype(np.dtype(about["dtype"]))
    kind = pa.list_(numbers, vectors.width)
    schema = pa.schema(
        [("id", pa.int64() if ids is None else pa.string()), ("vector", kind)],
        metadata={ABOUT: json.dumps(about, ensure_ascii=False)},
    )
    names: Iterator[Any] = iter(itertools.count() if ids is None else ids)
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for block in vectors.blocks(ROWS_AT_ONCE):
            own = pa.array(itertools.islice(names, len(block)), schema.field("id").type)
            flat = pa.array(block.reshape(-1), numbers)
            batch = [own, pa.FixedSizeListArray.from_arrays(flat, type=kind)]
            writer.write_table(pa.Table.from_arrays(batch, schema=schema))


@dataclass(frozen=True)
class SavedVectors:
    """Vectors that an earlier command wrote, memory-mapped, and what names them."""

    vectors: np.ndarray  # (rows, width)
    ids: Sequence[str]
    about: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path, temporary: Path, flag: str = "-corpus") -> SavedVectors:
        """The vectors of a .npy or .parquet file.

        Args:
            temporary: folder for those of a .parquet file as they are in memory.

        Raises:
            UserError: no file of vectors of `embed.py`, or one whose parts do not go together.
        """
        place = f"{flag} {path}"
        try:
            found = _open_parquet(path, temporary) if path.suffix.lower() == ".parquet" else _open_npy(path, place)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{place}: cannot be read as vectors ({error})") from None
        if found.vectors.ndim != 2 or found.vectors.dtype not in (np.float32, np.float16) or not found.vectors.size:
            raise UserError(f"{place}: no vectors of embed.py: {found.vectors.dtype} of shape {found.vectors.shape}")
        if len(found.ids) != len(found.vectors):
            raise UserError(
                f"{place}: {len(found.vectors):,} vectors and {len(found.ids):,} ids; make them again with embed.py"
            )
        return found


def _open_npy(path: Path, place: str) -> SavedVectors:
    described, named = sidecars(path)
    vectors = np.lib.format.open_memmap(path, mode="r")
    about = read_object(described, place)
    if about.get("ids"):
        lines = named.read_text(encoding="utf-8").split("\n")
        ids = [unescape_cell(line)[0] for line in lines[:-1]]
    else:
        ids = [str(row) for row in range(len(vectors))]
    return SavedVectors(vectors, ids, about)


def _open_parquet(path: Path, temporary: Path) -> SavedVectors:
    with pq.ParquetFile(path) as file:
        about = json.loads((file.schema_arrow.metadata or {}).get(ABOUT.encode(), b"{}"))
        if not about:
            raise ValueError("its schema does not say how they were made: embed.py has not written it")
        kind = file.schema_arrow.field("vector").type
        shape = (file.metadata.num_rows, getattr(kind, "list_size", 0))
        vectors = np.lib.format.open_memmap(temporary / "corpus.npy", "w+", np.dtype(about["dtype"]), shape)
        ids: list[str] = []
        for batch in file.iter_batches(ROWS_AT_ONCE):
            flat = batch.column("vector").flatten()
            vectors[len(ids) : len(ids) + len(batch)] = flat.to_numpy().reshape(len(batch), -1)
            ids += map(str, batch.column("id").to_pylist())
    return SavedVectors(vectors, ids, about)
