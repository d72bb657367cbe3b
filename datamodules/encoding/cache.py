"""One file per key, built once by whichever process comes first; a torn or foreign file is built anew.

A key has two files: `<key>.arrow` with the data and `<key>.json` with its size, its checksum and a report. The JSON
file is written last, so a key without it is not there. While building, `<key>.lock` is held; where the file
system has no locks, two processes may build the same content, and the one that ends last puts its own in place.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.errors import RunError, UserError
from utils.files import DISK_FULL, clean_temporary, file_lock, whole_file
from utils.json_files import read_json

_BLOCK = 4 << 20


def open_or_build(
    folder: Path, key: str, build: Callable[[Path], dict[str, Any]], is_whole: Callable[[Path, dict[str, Any]], bool]
) -> tuple[Path, dict[str, Any]]:
    """Path of the data file of `key` and its report, built by `build(path) -> report` when it is not there whole.

    `is_whole(path, report)` says whether a file with the right checksum can be used. Of several processes one builds,
    the others wait. When building fails, nothing stays behind: no file, and no folder that was not there before.
    Raises `UserError` when the folder cannot be written, `RunError` when the disk is full.
    """
    data, sidecar = folder / f"{key}.arrow", folder / f"{key}.json"
    report = _read_whole(data, sidecar, is_whole)
    if report is not None:
        return data, report
    new_folders = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        with file_lock(folder / f"{key}.lock") as alone:
            report = _read_whole(data, sidecar, is_whole)
            if report is None:
                report = _build(folder, key, build, alone)
    except BaseException as error:
        for path in new_folders:
            with contextlib.suppress(OSError):  # not empty: another process uses it
                path.rmdir()
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise RunError(
                f"the encoded rows could not be written to {folder} ({os.strerror(error.errno)}); -cache_dir names"
                " another place, as does TMPDIR for a temporary folder"
            ) from error
        if isinstance(error, OSError):
            raise UserError(f"-cache_dir {folder}: cannot be written ({error.strerror or error})") from error
        raise
    return data, report


def _build(folder: Path, key: str, build: Callable[[Path], dict[str, Any]], alone: bool) -> dict[str, Any]:
    data, sidecar = folder / f"{key}.arrow", folder / f"{key}.json"
    for path in (data, sidecar) if alone else ():  # nobody writes them now
        clean_temporary(path)
    with whole_file(data) as temporary:
        report = build(temporary)
        content = {"size": temporary.stat().st_size, "checksum": _checksum(temporary), "report": report}
        sidecar.unlink(missing_ok=True)
    text = json.dumps(content, ensure_ascii=False, indent=1)
    with whole_file(sidecar) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # JSON's escape: a path may be no UTF-8
    return report


def _read_whole(data: Path, sidecar: Path, is_whole: Callable[[Path, dict[str, Any]], bool]) -> dict[str, Any] | None:
    """The report of a key; None when a file is missing, torn or foreign."""
    try:
        content = read_json(sidecar)
        if data.stat().st_size != content["size"] or _checksum(data) != content["checksum"]:
            return None
        report = content["report"]
        return report if isinstance(report, dict) and is_whole(data, report) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value
