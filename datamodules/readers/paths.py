"""What the value of a data flag names: a file, a folder of `save_to_disk`, or a data set on the hub."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.readers.encodings import BYTE_ORDER_MARK, check_encoding
from utils.errors import UserError, first_line
from utils.escapes import printable
from utils.json_files import read_json

KINDS = {".tsv": "tsv", ".txt": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".json": "json", ".parquet": "parquet"}
WITH_RECORDS = ("tsv", "csv", "json", "jsonl")  # kinds whose rows can be copied to an output
KINDS_TEXT = "known: .tsv/.txt (tab), .csv, .jsonl/.json, .parquet, a save_to_disk folder, a hub name"
SPLITS = {
    "-train_data": ("train",),
    "-valid_data": ("validation", "valid", "val", "dev"),
    "-test_data": ("test",),
    "-corpus": ("train",),
    "-valid_corpus": ("validation", "valid", "val", "dev"),
    "-calibrate": ("validation", "valid", "val", "dev"),
    "-thresholds": ("validation", "valid", "val", "dev"),
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?\Z")
_SHARD = re.compile(r":\d+\Z")
_BLOCK = 4 << 20


@dataclass(frozen=True)
class DataPath:
    """One source of rows; `shard` N takes the rows 0, N, 2N, ... (1 = all); `config` and `split` are for the hub."""

    path: str
    kind: str  # tsv, csv, jsonl, json, parquet, folder or hub
    shard: int = 1
    config: str = ""
    split: str = ""


def parse_data_path(value: str) -> DataPath:
    """What `value` names: `path`, `path:N` (every N-th row), `folder[:N]`, or `name[:config[:split]][:N]` of the hub.

    A path that exists as it stands wins over any reading of its colons. Whether a file can be read is the business of
    `check_data_paths`. Raises `UserError` on `:0`, an empty suffix, an unknown file type or a name that fits nothing.
    """
    if not value.strip():
        raise UserError("empty data path; give a file, a save_to_disk folder or a hub name")
    if os.path.exists(value):
        return DataPath(value, _kind_of_existing(value))
    base, colon, suffix = value.rpartition(":")
    if colon and (os.path.exists(base) or _looks_like_file(base) or re.fullmatch(r"-?\d*", suffix)):
        if not re.fullmatch(r"\d{1,12}", suffix) or int(suffix) == 0:
            raise UserError(f"{value!r}: the suffix after ':' must be a whole number from 1 (N takes every N-th row)")
        if base and not base.endswith(":"):
            inner = parse_data_path(base)
            if inner.path != base and _SHARD.search(base):
                raise UserError(f"{value!r}: two suffixes ':N'; give one (N takes every N-th row)")
            return DataPath(inner.path, inner.kind, int(suffix), inner.config, inner.split)
    if _looks_like_file(value):
        kind = KINDS.get(Path(value).suffix.lower())
        if kind is None:
            raise UserError(f"{value}: no such file or folder")
        return DataPath(value, kind)
    name, *rest = value.split(":")
    if _HUB_NAME.match(name) and len(rest) <= 2 and all(part.strip() for part in rest):
        config, split = (*rest, "", "")[:2]
        return DataPath(name, "hub", 1, config, split)
    raise UserError(f"{value!r}: no such file or folder, and no hub name (name, name:config or name:config:split)")


def _looks_like_file(value: str) -> bool:
    return (
        Path(value).suffix.lower() in KINDS
        or value.startswith(("/", "./", "../", "~"))
        or value.endswith("/")
        or value.count("/") > 1
    )


def _kind_of_existing(path: str) -> str:
    if os.path.isdir(path):
        return "folder"
    kind = KINDS.get(Path(_SHARD.sub("", path)).suffix.lower())  # a name of a file may end in :N
    if kind is None:
        raise UserError(f"{path}: unknown type of data file {Path(path).suffix!r}; {KINDS_TEXT}")
    return kind


def check_data_paths(flag: str, values: Iterable[str]) -> list[str]:
    """Problems of the values of a data flag that show without reading the rows, one line each."""
    problems = []
    for value in values:
        try:
            data_path = parse_data_path(value)
            if data_path.kind == "folder":
                arrow_files(data_path.path, flag)
            elif data_path.kind != "hub":
                _check_file(data_path, may_be_blank=flag != "-train_data")
        except UserError as error:
            problems += [printable(f"{flag}: {problem}") for problem in error.problems]
    return problems


def _check_file(data_path: DataPath, may_be_blank: bool) -> None:
    """Refuse a file that holds no row or no text; one of empty lines holds rows to predict, if `may_be_blank`."""
    path = data_path.path
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path}: is no regular file; write the rows to a file first")
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    content = start.removeprefix(BYTE_ORDER_MARK)
    if not content.strip():
        if not content or (not may_be_blank and os.path.getsize(path) <= len(start)):
            raise UserError(f"{path}: the file is empty")
    elif data_path.kind != "parquet":
        check_encoding(path)
        if b"\r" in start and b"\n" not in start and os.path.getsize(path) <= len(start) * 64 and _has_no_newline(path):
            raise UserError(f"{path}: lines end with a carriage return alone; convert them (tr '\\r' '\\n')")


def _has_no_newline(path: str) -> bool:
    with open(path, "rb") as file:
        return not any(b"\n" in block for block in iter(lambda: file.read(1 << 20), b""))


def arrow_files(folder: str, flag: str) -> list[str]:
    """Arrow files, in row order, of a `save_to_disk` folder; of a DatasetDict, those of the split that `flag` wants.

    Raises `UserError` when the folder is none, lacks that split, or a file of it is missing.
    """
    splits_file = Path(folder, "dataset_dict.json")
    if splits_file.is_file():
        splits = _texts(splits_file, _read_json(splits_file).get("splits", []))
        found = [split for split in split_names(flag) if split in splits]
        if not found:
            raise UserError(
                f"{folder}: has no split {' or '.join(map(repr, split_names(flag)))} for {flag}; it has "
                f"{', '.join(splits) or 'none'}; name the folder of a split, such as "
                f"{os.path.join(folder, splits[0] if splits else 'train')}"
            )
        folder = os.path.join(folder, found[0])
    state_file = Path(folder, "state.json")
    if not state_file.is_file():
        raise UserError(f"{folder}: a folder, but not one written by save_to_disk (it has no state.json)")
    state = _read_json(state_file)
    if state.get("_indices_data_files"):
        raise UserError(f"{folder}: written by an old version of datasets; load it and save it again")
    items = state.get("_data_files", [])
    if isinstance(items, list):
        items = [item.get("filename") if isinstance(item, dict) else item for item in items]
    files = [os.path.join(folder, name) for name in _texts(state_file, items)]
    missing = [file for file in files if not os.path.isfile(file) or not os.access(file, os.R_OK)]
    if missing or not files:
        raise UserError(f"{folder}: data file {os.path.basename(missing[0]) if missing else 'data-*.arrow'} is missing")
    return files


def _texts(path: Path, values: Any) -> list[str]:
    if isinstance(values, list) and all(isinstance(value, str) and value and "\0" not in value for value in values):
        return values
    raise UserError(f"{path}: damaged: it names no files or splits, but {str(values)[:60]}")


def split_names(flag: str) -> tuple[str, ...]:
    """Names of the splits that fit a data flag, the most usual first; never the test split for training."""
    return SPLITS.get(flag, ("test",))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return content if isinstance(content, dict) else {}


def load_hub_dataset(data_path: DataPath, flag: str) -> Any:
    """The `datasets.Dataset` of a hub name; without a split in the name, the one that fits `flag`."""
    import datasets

    wanted = (data_path.split,) if data_path.split else split_names(flag)
    name = ":".join(part for part in (data_path.path, data_path.config) if part)
    try:
        if not data_path.split:
            existing = datasets.get_dataset_split_names(data_path.path, data_path.config or None)
            wanted = tuple(split for split in wanted if split in existing)
            if not wanted:
                raise UserError(
                    f"{flag}: the hub data set {name} has no split {' or '.join(split_names(flag))}; it has "
                    f"{', '.join(existing)}; write {data_path.path}:{data_path.config or 'default'}:SPLIT"
                )
        return _load_split(data_path, wanted[0])
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{flag}: {name!r} is no file or folder here, and cannot be loaded as a hub data set "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None


def _load_split(data_path: DataPath, split: str) -> Any:
    """One split of a hub dataset; where the repository holds a loading script, the hub's own Parquet copy of it."""
    import datasets

    try:
        return datasets.load_dataset(data_path.path, data_path.config or None, split=split)
    except RuntimeError as error:
        if "script" not in str(error).lower():
            raise
        return datasets.load_dataset(
            data_path.path, data_path.config or None, split=split, revision="refs/convert/parquet"
        )


class Contents:
    """The data of a data flag as they are now: `digest` is of their contents (not of their names), in order.

    Shards and kinds are part of the digest.
    """

    def __init__(self, paths: Sequence[str], flag: str = "-train_data") -> None:
        self._flag = flag
        self._sources = [parse_data_path(value) for value in paths]
        self._states = self._file_states()
        self.digest = self._digest()

    def check_unchanged(self) -> None:
        """Raise `UserError` when a file is not what it was: rows read meanwhile may be of neither content."""
        states = self._file_states()
        changed = [file for file, state in states.items() if state != self._states.get(file)]
        if changed or self._digest() != self.digest:
            name = changed[0] if changed else self._sources[0].path
            raise UserError(f"{self._flag}: {name} has changed while it was read; try again when it is complete")

    def _files(self, source: DataPath) -> list[str]:
        if source.kind == "hub":
            return []
        return arrow_files(source.path, self._flag) if source.kind == "folder" else [source.path]

    def _file_states(self) -> dict[str, tuple[int, int, int] | None]:
        return {file: file_state(file) for source in self._sources for file in self._files(source)}

    def _digest(self) -> str:
        total = hashlib.blake2b(digest_size=20)
        for source in self._sources:
            total.update(f"{source.kind}:{source.shard}".encode())
            if source.kind == "hub":
                total.update(str(load_hub_dataset(source, self._flag)._fingerprint).encode())
            for file in self._files(source):
                total.update(_file_digest(file))
        return total.hexdigest()


def file_state(path: str) -> tuple[int, int, int] | None:
    """Size, time of the last change and number of a file: equal while it is the same; None when it is gone."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns, state.st_ino


def _file_digest(path: str) -> bytes:
    digest = hashlib.blake2b(digest_size=20)
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.digest()
