"""The only fsync, rename and lock of the project: files and folders that are whole or not there, and locks on files.

temporary sibling -> fsync -> rename -> fsync of the folder
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import filecmp
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.errors import RunError

TEMPORARY_SUFFIX = ".tmp"
OLD_SUFFIX = ".old"
LONGEST_NAME = 255  # bytes, of a file system's name
STATE_NAME = "training_state.json"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of some network file systems
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
MOST_REFUSALS = 100  # of a folder that others remove


def temporary_sibling(path: Path, suffix: str = TEMPORARY_SUFFIX) -> Path:
    """`.NAME.PID.SUFFIX` beside `path`; a long name is cut, between characters, to what a file system takes."""
    ending = f".{os.getpid()}{suffix}"
    return path.with_name(f".{_cut_name(path, len(ending))}{ending}")


def _cut_name(path: Path, ending: int) -> str:
    return os.fsencode(path.name)[: LONGEST_NAME - 1 - ending].decode("utf-8", errors="ignore")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write at: the file appears as `path`, replacing what is there, when the block ends.

    When the block or the disk raises, nothing of it stays.
    """
    temporary = temporary_sibling(path)
    temporary.unlink(missing_ok=True)  # a killed process may have left a second name of a file that is whole
    try:
        yield temporary
        sync_path(temporary)
        os.replace(temporary, path)
        sync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)  # renaming one name of a file to another of the same file does nothing


def write_file(path: Path, write: Callable[[Any], None], needed: int = 0, replace: bool = True) -> None:
    """Make `path` appear with what `write(binary file)` writes, or not at all.

    Args:
        needed: about how many bytes it takes, to be told when the disk is full; 0 = unknown.
        replace: whether a file of other content that is there may be replaced.

    Raises:
        RunError: the disk refused, or a file is there and not to be replaced; names the path. The file that was there
            before is untouched.
    """
    try:
        with whole_file(path) as temporary:
            with open(temporary, "wb") as file:
                write(file)
            if not replace and os.path.lexists(path) and not filecmp.cmp(temporary, path, shallow=False):
                raise RunError(f"{path} is there and holds something else; -overwrite replaces it")
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into RuntimeError
        reason = write_failure(error, path.parent, needed)
        raise RunError(f"{path} could not be written: {reason}; earlier files are untouched") from error


def write_failure(error: Exception, folder: Path, needed: int = 0) -> str:
    """What to tell of a failed write below `folder`, with the bytes that are needed and free when there are too few."""
    libraries = re.search("inline_container|PytorchStreamWriter|No space left|File too large", str(error))
    if getattr(error, "errno", None) not in DISK_FULL and not libraries:
        return str(error)
    free = shutil.disk_usage(folder).free
    amount = f"about {needed:,} bytes are needed, {free:,} are free" if needed else f"{free:,} bytes are free"
    return f"the disk is full, or a limit of file sizes or a quota is reached ({amount})"


@contextmanager
def run_error(path: Path) -> Iterator[None]:
    """Turn what the disk refuses in the block into a `RunError` that names `path`, what the block was to change."""
    try:
        yield
    except OSError as error:
        place = next(folder for folder in path.absolute().parents if folder.exists())
        raise RunError(f"{path} could not be changed: {write_failure(error, place)}") from error


def write_json(path: Path, content: Any, replace: bool = True) -> None:
    r"""Write `content` as indented JSON, durably; bytes of a path that are no UTF-8 stand there as `\udcff`.

    `replace` is that of `write_file`.
    """
    text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    encoded = text.encode("utf-8", "backslashreplace")  # an escape of JSON
    write_file(path, lambda file: file.write(encoded), replace=replace)


def link_path(existing: Path, path: Path) -> None:
    """Make `path` a second name of the file `existing` (a copy where the file system has no links), replacing it whole.

    Of a folder it gets the same files under second names. What `path` was before may be of the other kind.

    Raises:
        RunError: the disk refused; names `path`, which is what it was before.
    """
    if existing.is_dir():
        link_folder(existing, path, linked="")
        return
    with run_error(path):
        if not path.is_dir():
            with whole_file(path) as temporary:
                _link(existing, temporary)
            return
        temporary, old = temporary_sibling(path), temporary_sibling(path, OLD_SUFFIX)
        _link(existing, temporary)
        _swap(temporary, path, old)
        _remove(old)


def remove_path(path: Path) -> None:
    """Remove a file or a folder, which is never there in part; `RunError` that names it where the disk refuses."""
    with run_error(path):
        if path.is_dir():
            temporary = temporary_sibling(path)
            os.replace(path, temporary)
            _remove(temporary)
        else:
            path.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _link(existing: str | Path, path: str | Path) -> None:
    try:
        os.link(existing, path)
    except OSError:
        shutil.copyfile(existing, path)


def take_name(existing: Path, path: Path) -> bool:
    """Make `path` a second name of `existing`, or a copy where there are no links, if nothing has that name: of several
    processes, on whatever machines, one succeeds.

    Raises:
        RunError: the disk refused; names `path`.
    """
    with run_error(path):
        try:
            os.link(existing, path)
            return True
        except FileExistsError:  # or it was made, and the answer of the server was lost
            with suppress(FileNotFoundError):  # it went meanwhile
                return os.path.samefile(existing, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
        content = existing.read_bytes()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        return True


def link_folder(existing: Path, folder: Path, linked: str) -> None:
    """Swap `folder` for one with the files of `existing`, as `write_folder` does.

    Args:
        linked: the ending of those that get a second name (a copy where the file system has no links); others are
            copied.
    """

    def place(source: str, target: str) -> None:
        (_link if source.endswith(linked) else shutil.copyfile)(source, target)

    write_folder(folder, lambda target: shutil.copytree(existing, target, copy_function=place, dirs_exist_ok=True))


def write_folder(folder: Path, fill: Callable[[Path], Any], needed: int = 0) -> None:
    """Swap `folder` as a whole for one that `fill(temporary folder)` makes; the old one goes only after.

    Where the system can exchange two names (Linux), there is a whole folder under its name at every moment.

    Args:
        needed: about how many bytes it takes, to be told when the disk is full; 0 = unknown.

    Raises:
        RunError: the disk refused; names the folder. The one that was there before is untouched.
    """
    temporary, old = temporary_sibling(folder), temporary_sibling(folder, OLD_SUFFIX)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        with _in_use(temporary):
            fill(temporary)
            mode = temporary.stat().st_mode & 0o666  # what the umask leaves: safetensors writes for the owner alone
            for path in filter(Path.is_file, temporary.rglob("*")):
                path.chmod(mode)
            for path in temporary.rglob("*"):
                sync_path(path)
            sync_path(temporary)
            _swap(temporary, folder, old)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, _write_errors()) and type(error) is not Exception:  # tokenizers raises that
            raise
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        reason = write_failure(error, folder.parent, needed)
        raise RunError(f"{folder} could not be written: {reason}; earlier files are untouched") from error
    _remove(old)


def _swap(temporary: Path, path: Path, old: Path) -> None:
    """Make `temporary` be `path`, and what was there be `old`."""
    if not path.exists():
        os.replace(temporary, path)
    elif exchange(temporary, path):
        os.replace(temporary, old)
    else:
        os.replace(path, old)
        os.replace(temporary, path)
    sync_path(path.parent)


def _write_errors() -> tuple[type[Exception], ...]:
    """What a failed write raises; safetensors, if loaded (the commands start without it), has a kind of its own."""
    library = sys.modules.get("safetensors")
    return (OSError, RuntimeError, *((library.SafetensorError,) if library else ()))


@contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Mark a folder that is being written, under whatever names, until the block or the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: nobody will take the folder for left behind
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_written(folder: Path) -> bool:
    """Whether a process is in `_in_use(folder)`, or that cannot be known."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def try_lock(descriptor: int, shared: bool = False, wait: bool = False) -> bool | None:
    """Whether an open file is now locked for this process; None where there are no locks.

    The kernel gives the lock back when the process ends or closes the file. Unlike those of flock it is not inherited
    by processes that are forked, which may outlive this one.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.lockf(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


@contextmanager
def file_lock(path: Path, held: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold the lock file `path` alone; it goes afterwards, and one that a killed process left locks nothing.

    Gives whether there is a lock at all: some file systems have none.

    Args:
        held: called when another process has the lock, before waiting for it; may raise instead.
    """
    descriptor, locked = _locked(path, held)
    try:
        yield locked
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _locked(path: Path, held: Callable[[], None]) -> tuple[int, bool]:
    """The descriptor of the lock file, and whether it is locked; anew when the one that held it removed the file."""
    refusals = 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # a failing process has just removed the folder, or there can be none here
            refusals += 1
            if refusals > MOST_REFUSALS:
                raise
            continue
        try:
            locked = try_lock(descriptor)
            if locked is False:
                held()
                locked = try_lock(descriptor, wait=True)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor, bool(locked)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two files or folders in one instant; False where the system or file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    at_cwd, exchange_names = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fcntl.h and linux/fs.h
    done: int = rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange_names)
    return done == 0


def sync_path(path: Path) -> None:
    """Flush one file, or the names in one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clean_folder_leftovers(folder: Path) -> None:
    """Remove what killed writes of `folder` left beside it, and put back one that was being swapped.

    Nothing is touched while another process writes the folder.
    """
    name = re.escape(_cut_name(folder, len(f".{os.getpid()}{TEMPORARY_SUFFIX}")))
    halves = leftovers(folder.parent, name, TEMPORARY_SUFFIX)
    if any(map(_is_written, halves)):
        return
    for leftover in leftovers(folder.parent, name, OLD_SUFFIX):
        if folder.exists():
            _remove(leftover)
        else:
            os.replace(leftover, folder)
    for half in halves:
        _remove(half)


def clean_all_leftovers(folder: Path, names: str) -> None:
    """`clean_folder_leftovers` of all files and folders in `folder` whose names match the pattern `names`."""
    found = [path for suffix in (TEMPORARY_SUFFIX, OLD_SUFFIX) for path in leftovers(folder, names, suffix)]
    for name in dict.fromkeys(path.name[1:].rsplit(".", 2)[0] for path in found):
        clean_folder_leftovers(folder / name)


def clean_temporary(path: Path) -> None:
    """Remove what killed writes of the file `path` left behind."""
    for leftover in leftovers(path.parent, re.escape(path.name), TEMPORARY_SUFFIX):
        leftover.unlink(missing_ok=True)


def leftovers(folder: Path, names: str, suffix: str) -> list[Path]:
    """What `temporary_sibling` named in `folder` for one of `names` (alternatives of a pattern), in any process."""
    pattern = re.compile(rf"\.(?:{names})\.\d+{re.escape(suffix)}")
    return sorted(path for path in folder.glob(".*") if pattern.fullmatch(path.name))
