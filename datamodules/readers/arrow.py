"""Parquet files, folders of `save_to_disk` and data sets of the hub to rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.readers.columns import Wanted, first_cells, locate
from datamodules.readers.nested import fields_at
from datamodules.readers.paths import DataPath, arrow_files, load_hub_dataset
from datamodules.readers.rows import TEXT, RawRows, ReadOptions, RowReport, decoded
from postprocessors.labels import LabelMap
from utils.errors import UserError, first_line, raise_if_any, shortened
from utils.json_files import parse_json

ROWS_A_CHUNK = 8192
CHUNK_BYTES = 64 << 20
# A column of a row group that holds more, and shrinks more than any text does, is there to take all memory.
MOST_BYTES, MOST_SHRUNK = 256 << 20, 1000


@dataclass(frozen=True)
class Stored:
    """A table on the disk: `batches` reads some of its columns, fields of structs by dotted names."""

    name: str
    schema: pa.Schema
    batches: Callable[[list[str]], Iterator[pa.RecordBatch]]


def read_stored(
    stored: Stored, wanted: Wanted, options: ReadOptions, report: RowReport, label_map: LabelMap | None
) -> Iterator[RawRows]:
    """Rows of a Parquet file, a folder or a hub data set; only the wanted columns are read.

    A ClassLabel becomes its name. With a label map that reads the target it does so where the map knows all names of
    the target's classes, whatever their order; else it stays its number, which may be an id.
    """
    fields = _fields(wanted, stored.schema, stored.name)
    report.headers[stored.name] = f"columns: {shortened(stored.schema.names)}"
    report.columns[stored.name] = first_cells(stored.schema.names)
    features = _features(stored.schema)
    classes = {variable: _class_names(features, keys) for variable, keys in fields.items() if keys}
    if label_map is not None:
        names = classes.get("target") or []
        classes = {"target": names} if all(label_map.lookup(name) is not None for name in names) else {}
    yield from _from_batches(stored, fields, options, classes)


def stored_rows(stored: Stored, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows as Python values, numbered from 1, with those of the columns that are there; class numbers become names."""
    features = _features(stored.schema)
    used = [name for name in columns if name in stored.schema.names]
    classes = {name: names for name in used if (names := _class_names({name: _of_items(features.get(name))}, [name]))}
    number = 0
    try:
        for batch in stored.batches(used):
            for row in batch.select(used).to_pylist():
                number += 1
                for name, names in classes.items():
                    row[name] = [_class_name(names, value) for value in row[name] or ()]
                yield number, row
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{stored.name}: broken near row {number + 1} ({first_line(error)})") from None


def _of_items(feature: Any) -> Any:
    """The feature of the items of a list, as the versions of `datasets` write it."""
    if isinstance(feature, list):
        return feature[0] if feature else None
    return feature.get("feature") if isinstance(feature, dict) else None


def _class_name(names: list[str], value: Any) -> Any:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


@contextmanager
def stored_table(data_path: DataPath, flag: str) -> Iterator[Stored]:
    """The table that a data path of kind parquet, folder or hub names."""
    path = data_path.path
    if data_path.kind == "parquet":
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(pa.OSFile(os.fsencode(path)))
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path}: cannot be read as Parquet ({first_line(error)})") from None
        with file:
            yield Stored(path, file.schema_arrow, lambda columns: _parquet_batches(path, file, columns))
    elif data_path.kind == "folder":  # read without the `datasets` library
        files = arrow_files(path, flag)
        yield stream_table(path, files)
    else:
        dataset = load_hub_dataset(data_path, flag).with_format("arrow")
        name = ":".join(part for part in (path, data_path.config, data_path.split) if part)
        tables = dataset.iter(batch_size=ROWS_A_CHUNK)
        batches = (batch for table in tables for batch in table.combine_chunks().to_batches())
        yield Stored(name, dataset.features.arrow_schema, lambda _: batches)


def stream_table(name: str, files: Sequence[str] = ()) -> Stored:
    """The table in the Arrow streams that `datasets` writes, which may be several `files`; else `name` is the file."""
    files = files or (name,)
    try:
        with pa.OSFile(os.fsencode(files[0])) as source:
            schema = pa.ipc.open_stream(source).schema
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{files[0]}: cannot be read as Arrow ({first_line(error)})") from None
    return Stored(name, schema, lambda _: _stream_batches(files))


def _parquet_batches(path: str, file: Any, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, at most some megabytes of text at a time, however small it is on the disk.

    A value that is stored once may stand in every row, and a page may shrink to nothing: both are looked at before.
    """
    import pyarrow.parquet as pq

    leaves = [file.schema.column(number) for number in range(len(file.schema))]
    starts = tuple(f"{column}." for column in columns)
    read = [number for number, leaf in enumerate(leaves) if f"{leaf.path}.".startswith(starts)]
    binary = [leaf for leaf in map(leaves.__getitem__, read) if leaf.physical_type == "BYTE_ARRAY"]
    as_dictionary = [leaf.path for leaf in binary if leaf.logical_type.type != "DECIMAL"]
    with pq.ParquetFile(pa.OSFile(os.fsencode(path)), read_dictionary=as_dictionary) as stored:
        for group in range(file.num_row_groups):
            longest = 0
            for part in (file.metadata.row_group(group).column(number) for number in read):
                size, shrunk = part.total_uncompressed_size, part.total_compressed_size
                if size > max(MOST_BYTES, MOST_SHRUNK * shrunk):
                    raise UserError(f"{path}: column {part.path_in_schema!r} holds {size:,} bytes in {shrunk:,}")
                longest += size // max(part.num_values, 1)
            for first in stored.iter_batches(batch_size=1, row_groups=[group], columns=columns):
                kinds = [
                    leaf for column in first.columns for leaf in _leaves(column) if pa.types.is_dictionary(leaf.type)
                ]
                longest += sum(pc.max(pc.binary_length(leaf.dictionary)).as_py() or 0 for leaf in kinds)
                break
            rows = max(1, min(ROWS_A_CHUNK, CHUNK_BYTES // max(longest, 1)))
            yield from file.iter_batches(batch_size=rows, row_groups=[group], columns=columns)


def _leaves(column: pa.Array) -> Iterator[pa.Array]:
    """The columns that a column of structs or lists is made of."""
    if pa.types.is_struct(column.type) or pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        for inner in column.flatten() if pa.types.is_struct(column.type) else [column.values]:
            yield from _leaves(inner)
    else:
        yield column


def _stream_batches(files: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for file in files:
        with pa.OSFile(os.fsencode(file)) as source:  # no memory map: a file cut meanwhile would end the process
            for batch in pa.ipc.open_stream(source):
                for start in range(0, len(batch), ROWS_A_CHUNK):
                    yield batch.slice(start, ROWS_A_CHUNK)


def _fields(wanted: Wanted, schema: pa.Schema, path: str) -> dict[str, tuple[str, ...] | None]:
    """The column of every variable, and the fields in it; None for one that is not there.

    Columns are read by their names: none that is wanted may occur twice.
    """
    names = list(schema.names)
    asked = [wanted.source, wanted.target, *wanted.extra]
    named = {column if isinstance(column, str) else "".join(names[column - 1 : column]) for column in asked}
    places = {name: keys for name in sorted(named) if (keys := fields_at(schema, name))}
    raise_if_any(
        f"{path}: column {name!r} occurs more than once; rename one of them"
        for name in sorted({keys[0] for keys in places.values()})
        if names.count(name) > 1
    )
    names += [name for name in places if name not in names]
    positions = locate(wanted, names, len(names), path)
    return {variable: None if at is None else places[names[at]] for variable, at in positions.items()}


def _from_batches(
    stored: Stored,
    fields: dict[str, tuple[str, ...] | None],
    options: ReadOptions,
    classes: Mapping[str, list[str] | None],
) -> Iterator[RawRows]:
    path = stored.name
    used = sorted({".".join(keys) for keys in fields.values() if keys})
    row = 0
    try:
        for batch in stored.batches(used):
            problems = np.zeros(len(batch), dtype=np.uint8)
            columns = {}
            for variable, keys in fields.items():
                if keys is None:
                    columns[variable] = pa.nulls(len(batch), TEXT)
                    continue
                column = batch.column(batch.schema.get_field_index(keys[0]))
                column = pc.struct_field(column, list(keys[1:])) if keys[1:] else column
                names = classes.get(variable)
                columns[variable] = _as_text(path, ".".join(keys), column, names, problems, options)
            numbers = np.arange(row, row + len(batch), dtype=np.int64)
            yield RawRows(path, columns, numbers + 1, numbers, problems)
            row += len(batch)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: broken near row {row + 1} ({first_line(error)})") from None


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The metadata of the columns that `datasets` writes; empty without them."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(features: dict[str, Any], keys: Sequence[str]) -> list[str] | None:
    """Names of the classes of a ClassLabel column, None for any other."""
    feature: Any = features
    for key in keys:
        feature = feature.get(key) if isinstance(feature, dict) else None
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return None
    names = feature.get("names")
    return [str(label) for label in names] if names and isinstance(names, list) else None


def _as_text(
    path: str, name: str, column: pa.Array, classes: list[str] | None, problems: np.ndarray, options: ReadOptions
) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if classes and pa.types.is_integer(kind):
        return _named(column, classes)
    if pa.types.is_floating(kind):  # as Python writes it: 1.0, not 1
        return pa.array([None if value is None else repr(value) for value in column.to_pylist()], TEXT)
    if pa.types.is_nested(kind):
        raise UserError(f"{path}: column {name!r} holds {kind}, not text")
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return decoded(column.cast(pa.large_binary()), problems, options.keep_all)
    try:
        text = column.cast(TEXT)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise UserError(f"{path}: column {name!r} holds {kind}, which is no text or number") from None
    try:  # a writer may have left invalid UTF-8 in a text column
        text.validate(full=True)
    except pa.ArrowInvalid:
        return decoded(text.cast(pa.large_binary()), problems, options.keep_all)
    return text


def _named(column: pa.Array, classes: list[str]) -> pa.Array:
    """Class names of class numbers; -1, which stands for "no label" in `datasets`, becomes null."""
    unlabelled = pc.or_(pc.less(column, 0), pc.greater_equal(column, len(classes)))
    known = pc.if_else(unlabelled, pa.scalar(None, column.type), column)
    return pa.array(classes, TEXT).take(known)
