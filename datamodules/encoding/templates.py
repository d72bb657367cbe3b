"""Templates applied to whole chunks of rows, and data values turned into label texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from config.templates import Template
from datamodules.readers.rows import TEXT, RowChunk
from postprocessors.labels import LabelMap
from utils.errors import UserError, shortened

MOST_LETTERS = 200  # of a reason
MOST_BYTES = 1 << 31  # of the texts made of a chunk of rows, which has some megabytes


def render(template: Template, columns: dict[str, pa.Array], count: int) -> tuple[pa.Array, dict[int, str]]:
    """The text of every row as a `large_string` array, and the reason for each row that cannot be rendered ("" there).

    Plain templates are joined by Arrow. A row whose variable is null gives null. Raises `UserError` when the texts
    would take all memory.
    """
    if template.parts is not None:
        parts: list[Any] = [
            pa.scalar(part, TEXT) if isinstance(part, str) else columns[part.name] for part in template.parts
        ]
        if len(parts) == 1 and isinstance(parts[0], pa.Array):
            return parts[0], {}
        _check_size(
            template, sum(part.nbytes if isinstance(part, pa.Array) else len(str(part)) * count for part in parts)
        )
        if not any(isinstance(part, pa.Array) for part in parts):
            return pa.array(["".join(part.as_py() for part in parts)] * count, TEXT), {}
        return pc.binary_join_element_wise(*parts, pa.scalar("", TEXT)), {}
    names = sorted(template.variables & set(columns))
    values = [columns[name].to_pylist() for name in names]
    texts: list[str | None] = []
    failures = {}
    size = 0
    for index in range(count):
        row = {name: column[index] for name, column in zip(names, values, strict=True)}
        if any(value is None for value in row.values()):
            texts.append(None)
            continue
        try:
            text = template.render(row)
            text.encode()
        except ValueError as error:  # a template can also make a lone surrogate: UnicodeEncodeError is a ValueError
            failures[index] = f"template {template.name}: {error}"[:MOST_LETTERS]
            text = ""
        size += len(text)
        _check_size(template, size)
        texts.append(text)
    return pa.array(texts, TEXT), failures


def _check_size(template: Template, size: int) -> None:
    if size > MOST_BYTES:
        raise UserError(f"{template.name}: makes more than {MOST_BYTES:,} bytes of some thousand rows; shorten it")


def label_codes(chunk: RowChunk, label_map: LabelMap, column: str | int) -> tuple[tuple[str, ...], np.ndarray]:
    """The target texts that occur, and for every row the position of its own among them; -1 for a row without one.

    With one label a row these are the texts of the label map, all of them and in its order.

    Raises `UserError` with file:line for a value that is neither an id nor a text of the label map, nor several joined.
    """
    encoded = pc.dictionary_encode(chunk.columns["target"])
    found = [label_map.lookup(value) for value in encoded.dictionary.to_pylist()]
    occurring = sorted({text for text in found if text is not None}) if label_map.separator else label_map.texts
    positions = {text: position for position, text in enumerate(occurring)}
    codes = np.array([-2 if text is None else positions[text] for text in found] + [-1], dtype=np.int64)
    rows: np.ndarray = codes[pc.fill_null(encoded.indices, len(found)).to_numpy(zero_copy_only=False)]
    unknown = np.flatnonzero(rows == -2)
    if len(unknown):
        first = int(unknown[0])
        value = chunk.columns["target"][first].as_py()
        several = f", nor several different ones joined by {label_map.separator!r}" if label_map.separator else ""
        known = shortened([f"{label_id}={text}" for label_id, text in label_map.entries])
        raise UserError(
            f"{chunk.place(first)}: value {shortened([value])!r} of column {column!r} is not in the label map{several}"
            f"{label_map.look_alike(value)}; known: {known}"
        )
    return tuple(occurring), rows
