"""The folder of part files beside an output: which command it belongs to, and who works in it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from checkpoints.run_folder import LOCK_NAME, run_lock
from utils.differences import difference_table, differences_of
from utils.errors import UserError
from utils.files import clean_temporary, write_json
from utils.json_files import read_json

PARTS_SUFFIX = ".parts"
MANIFEST = "manifest.json"
CLAIMS_NAME = "claims"  # of earlier versions
STRUCTURED = (".jsonl", ".tsv")

OUR_FILES = re.compile(
    rf"part-\d{{6}}\.jsonl|claim-\d{{6}}|worker-.*|{CLAIMS_NAME}|{re.escape(MANIFEST)}|{re.escape(LOCK_NAME)}|\..*\.tmp"
)


@contextmanager
def open_parts(output: Path, identity: Mapping[str, Any], overwrite: bool) -> Iterator[Path]:
    """The folder of parts of `output`, locked: the one that an earlier run of the same command left, or a new one.

    When the block ends without an error the output is whole, and the folder goes; else finished parts stay.

    Args:
        identity: everything that decides what the predictions are, as JSON values, by what the user calls it.
        overwrite: parts of another command are thrown away.

    Raises:
        UserError: parts of another command, with a table of what differs; parts whose manifest cannot be read; an
            output that is there already and not `overwrite`; another process works on the same output; a folder of that
            name that is not ours.
    """
    folder = parts_folder(output)
    flag = f"-save_output {output}"
    if os.path.lexists(folder) and not _is_ours(folder):
        raise UserError(f"{flag}: {folder} is in the way and no folder of part files; choose another name")
    with run_lock(folder, flag, "predicts for this output"):
        try:
            _take_up(output, folder, flag, identity, overwrite)
            yield folder
            for path in folder.glob("part-*"):  # before the manifest: parts without one would be nobody's
                path.unlink()
        finally:
            if not any(folder.glob("part-*")):
                shutil.rmtree(folder, ignore_errors=True)


def _take_up(output: Path, folder: Path, flag: str, identity: Mapping[str, Any], overwrite: bool) -> None:
    """Clean up what a killed process left, and see to it that all parts in the folder are of this command."""
    clean_temporary(output)
    for pattern in (".*.tmp", "claim-*", "worker-*", CLAIMS_NAME):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    parts = list(folder.glob("part-*"))
    try:
        saved = _manifest(folder)
    except (OSError, ValueError) as error:
        if parts and not overwrite:
            raise UserError(f"{flag}: {folder / MANIFEST} cannot be read ({error}); -overwrite begins again") from error
        saved = None
    # What only the saved one has is a difference as well.
    differences = differences_of(saved, {**dict.fromkeys(saved), **identity}) if saved is not None else []
    if differences and parts and not overwrite:
        raise UserError(
            f"{flag}: {folder} holds finished parts of another command; give its flags and input to complete it, or"
            f" -overwrite to begin again\n{difference_table(differences, 'parts')}"
        )
    if saved is None or differences:
        if os.path.lexists(output) and not overwrite:  # another process may have ended since the flags were checked
            raise UserError(f"{flag}: exists; -overwrite replaces it")
        for path in parts:
            path.unlink()
        write_json(folder / MANIFEST, dict(identity))


def _is_ours(folder: Path) -> bool:
    """Whether a run of ours made the folder: nothing else is in it than the files that a run makes."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return all(OUR_FILES.fullmatch(entry.name) and entry.is_file(follow_symlinks=False) for entry in entries)


def _manifest(folder: Path) -> dict[str, Any] | None:
    """What the parts in the folder belong to, None without parts; `ValueError` or `OSError` if that cannot be read."""
    if not (folder / MANIFEST).exists() and not any(folder.glob("part-*")):
        return None
    content = read_json(folder / MANIFEST)
    if not isinstance(content, dict):
        raise ValueError("an object is expected")
    return content


def parts_folder(output: Path) -> Path:
    """Where the finished parts of an output lie until it is whole."""
    return output.with_name(output.name + PARTS_SUFFIX)


def checkpoint_output(output: Path, step: int) -> Path:
    """The name of which the parts of one checkpoint are, where several are predicted with for one output."""
    return output.with_name(f"{output.stem}.checkpoint-{step}{output.suffix}")


def claim_path(folder: Path, chunk: int) -> Path:
    """The name by which a process claims a chunk."""
    return folder / f"claim-{chunk:06d}"


def has_parts(output: Path) -> bool:
    """Whether a prediction for this output was begun and not ended: its folder of parts is there, with its manifest."""
    return bool(output.name) and os.path.isfile(parts_folder(output) / MANIFEST)


def is_structured(path: str | Path) -> bool:
    """Whether a file of that name holds more than the texts: scores and all else that was asked for."""
    return str(path).lower().endswith(STRUCTURED)


def sidecars(path: Path) -> tuple[Path, Path]:
    """The files beside a .npy file: what its vectors are, and the ids of its rows, where they have some."""
    return path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.ids.txt")
