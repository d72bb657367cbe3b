"""The format of our .ckpt files: what they must hold, which versions are read, and what is refused."""

from __future__ import annotations

import errno
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from checkpoints.run_folder import INDEX_NAME
from checkpoints.sharded import joined
from models.loading import OF_ANOTHER_KIND
from utils.errors import RunError, UserError

CONTENT_KEY = "s2s"  # in a checkpoint: what is ours besides Lightning's state
FORMAT_VERSION = 1
LARGEST_PICKLE = 1 << 26  # bytes of data.pkl, which names the tensors: some hundred for each
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # version -> makes it one of the next version


class TornCheckpoint(UserError):
    """A checkpoint whose bytes are not those that were written: another one is as good."""


def read_checkpoint(path: Any, flag: str = "-resume_checkpoint", checked: bool = False) -> dict[str, Any]:
    """The content of one of our .ckpt files or folders, on the CPU; its tensors are read from the disk when used.

    Only the version is checked of it: `saved_run` reads the rest.

    Args:
        checked: another process of this machine has checked the bytes.

    Raises:
        TornCheckpoint: other bytes than were written (every byte is checked, unless `checked`).
        UserError: missing, holding pickled code (it is not run), or made by another program or a later version.
        RunError: the disk or the memory refused.
    """
    path = Path(path)
    sharded = path.is_dir()
    if sharded and not (path / INDEX_NAME).is_file():
        raise TornCheckpoint(f"{flag} {path}: no checkpoint, or a torn one: this folder has no {INDEX_NAME}")
    checkpoint: Any = _read_file(path / INDEX_NAME if sharded else path, flag, checked)
    if not isinstance(checkpoint, Mapping) or CONTENT_KEY not in checkpoint:
        raise UserError(f"{flag} {path}: a checkpoint of another kind; ours are written by train.py")
    content = checkpoint[CONTENT_KEY]
    version = content.get("format_version") if isinstance(content, Mapping) else None
    if type(version) is not int:
        raise UserError(f"{flag} {path}: {OF_ANOTHER_KIND}: its format version is missing or no number")
    if not 1 <= version <= FORMAT_VERSION:
        raise UserError(
            f"{flag} {path}: format version {version}; this program reads versions 1 to {FORMAT_VERSION}, so take the"
            " one that wrote it"
        )
    whole: dict[str, Any] = dict(checkpoint)
    if sharded:
        read = partial(_read_file, flag=flag, checked=checked)
        whole = joined(path, whole, CONTENT_KEY, f"{flag} {path}", read, TornCheckpoint)
    for older in range(version, FORMAT_VERSION):
        whole = UPGRADES[older](whole)
    return whole


def _read_file(path: Path, flag: str, checked: bool) -> Any:
    """What is in a file; raises as `read_checkpoint`."""
    if not path.is_file():
        raise UserError(f"{flag} {path}: no such file")
    try:
        damage = _damage(path, checked)
        content = None if damage else _load(path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{flag} {path}: refused, it holds pickled objects that could run code ({_reason(error)}); our checkpoints"
            " hold numbers, texts and tensors only"
        ) from error
    except PermissionError as error:
        raise UserError(f"{flag} {path}: no permission to read it") from error
    except (OSError, MemoryError) as error:
        raise RunError(f"{flag} {path}: could not be read: {str(error) or 'not enough memory'}") from error
    except Exception as error:  # torch raises any kind on what is not its own
        if "allocate memory" in str(error):
            raise RunError(f"{flag} {path}: could not be read: not enough memory") from error
        raise UserError(f"{flag} {path}: no checkpoint, though its bytes are whole ({_reason(error)})") from error
    if damage:
        raise TornCheckpoint(f"{flag} {path}: the file is torn or no checkpoint ({damage})")
    return content


def _load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice on files of other kinds: our errors tell enough
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _damage(path: Path, checked: bool) -> str:
    """Why the archive cannot be what was written; empty when every checksum is right (torch checks none)."""
    with open(path, "rb") as file:  # opened here: zipfile takes a file that cannot be read for one of another format
        if not zipfile.is_zipfile(file):
            return "another format, or its end is lost" if path.stat().st_size else "it is empty"
        try:
            with zipfile.ZipFile(file) as archive:
                forged = _forged(archive.infolist())
                damaged = "" if forged or checked else archive.testzip()
        except MemoryError:
            raise
        except Exception as error:  # a damaged header asks for a password, an unknown method, a place before the file
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            return _reason(error)
    return forged or (f"the checksum of {damaged} is wrong" if damaged else "")


def _forged(members: Sequence[zipfile.ZipInfo]) -> str:
    """What torch.save never writes, and what would take far more time or memory than the file has bytes."""
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            return f"{member.filename} is compressed"
        if member.header_offset < end:
            return f"{member.filename} overlaps another member"
        if member.filename.endswith("/data.pkl") and member.file_size > LARGEST_PICKLE:
            return f"{member.filename} has {member.file_size:,} bytes, more than {LARGEST_PICKLE:,}"
        end = member.header_offset + member.file_size
    return ""


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or "global" in line or "WeightsUnpickler error" in line]
    return (telling or lines or [type(error).__name__])[0][:200]
