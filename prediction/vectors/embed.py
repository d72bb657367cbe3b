"""Encoded texts to vectors, over processes; a command that was stopped goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from datamodules.encoding.store import EncodedSplit
from generation.batch_limits import BatchLimits
from generation.engines.base import Prediction
from generation.engines.vectors import VectorEngine, VectorForm
from prediction.predict import predict
from prediction.run import parts_of, telling_what_is_kept
from prediction.setup import Ready
from utils.console import tell

OF_ENCODER = "vectors of the encoder"  # in the manifest of a choice of rows


class Vectors(Sequence[np.ndarray]):
    """The vectors of rows, each read from the finished parts when it is asked for."""

    def __init__(self, predictions: Sequence[Prediction], dtype: str) -> None:
        self._predictions, self._dtype = predictions, np.dtype(dtype)
        self.width = len(self[0]) if len(predictions) else 0

    def __len__(self) -> int:
        return len(self._predictions)

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]  # no slices
        return np.frombuffer(self._predictions[row].vector or b"", self._dtype)

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """All vectors in order, as (up to `rows`, width) arrays."""
        for start in range(0, len(self), rows):
            yield np.stack([self[row] for row in range(start, min(start + rows, len(self)))])


@contextmanager
def embedding(ready: Ready, split: EncodedSplit, form: VectorForm, kind: str = "") -> Iterator[Vectors]:
    """A vector for each row of `split`. When the block ends without an error, the finished parts go.

    Args:
        kind: what the manifest of the parts calls them; empty = what the form is.
    """
    limits = BatchLimits.of(ready.config.decode)
    tell(f"vectors ({form.describe()}) on {ready.devices.describe()}; batches of {limits.rows} rows")
    with parts_of(ready, split, None, kind or f"vectors: {form.describe()}") as parts:
        with telling_what_is_kept(split, limits, parts, bool(ready.config.output.save_output)):
            found = predict(VectorEngine(ready.models[0], form), split, limits, ready.devices, parts, ready.first)
        with found:
            yield Vectors(found, form.dtype)


@contextmanager
def embedded(ready: Ready, split: EncodedSplit, folder: Path) -> Iterator[np.ndarray]:
    """(rows, width) float32 vectors of length 1, memory-mapped from a file in `folder`: means of the encoder's states,
    rounded to float16."""
    with embedding(ready, split, VectorForm(), OF_ENCODER) as vectors:
        mapped = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (len(vectors), vectors.width))
        for row, vector in enumerate(vectors):
            mapped[row] = vector
        yield mapped
