"""Names of the files of a run, whether a folder holds one, and the lock of a folder in use. No torch import."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from config.flags.train import TrainConfig
from utils.console import tell
from utils.errors import UserError
from utils.files import (
    STATE_NAME,
    clean_all_leftovers,
    clean_folder_leftovers,
    clean_temporary,
    file_lock,
    try_lock,
)
from utils.json_files import read_json

CHECKPOINT_FOLDER = "saved_checkpoints"
LAST_NAME = "last.ckpt"
INDEX_NAME = "index.ckpt"  # of a checkpoint that is a folder
STEP_LOG = "metrics.jsonl"
EPOCH_LOG = "log.json"
CONFIG_NAME = "config.json"
TEST_REPORT = "test_report.json"
REPORT_PAGE = "report.html"
REPORT_IMAGES = "report_images"
PROFILE_FOLDER = "profile"
TRACKERS_FOLDER = "trackers"  # what trackers other than TensorBoard keep on this machine
TRACE_NAME = "trace.json.gz"
CACHE_FOLDER = "cache"
LOCK_NAME = ".lock"
LOGS = (STEP_LOG, EPOCH_LOG, TEST_REPORT, REPORT_PAGE, REPORT_IMAGES, "lightning_logs", PROFILE_FOLDER, TRACKERS_FOLDER)
OVERWRITTEN = (CONFIG_NAME, CHECKPOINT_FOLDER, "best", "last", *LOGS)
RUN_NAMES = (*OVERWRITTEN, CACHE_FOLDER)  # -overwrite leaves the cache alone

_CONVERSION = re.compile(r"(best|last)\.ctranslate2-\w+-[0-9a-f]{16}")


def conversions_of(folder: Path) -> list[Path]:
    """The folders that -engine ctranslate2 made of the run's best/ and last/, beside them."""
    return [path for path in folder.iterdir() if _CONVERSION.fullmatch(path.name) and path.is_dir()]


def checkpoints_of(folder: Path, last_first: bool = True) -> list[Path]:
    """The checkpoints of a run, the one to continue from first: `last.ckpt`, then the others from the latest step on.

    A second name of the same file (`last.ckpt` is one, as a rule) is left out.

    Args:
        last_first: false puts `last.ckpt` behind the others, so that it is the second name.
    """
    files = [path for path in (folder / CHECKPOINT_FOLDER).glob("*.ckpt") if path.is_file() or path.is_dir()]
    files.sort(key=lambda path: ((path.name == LAST_NAME) != last_first, -step_of(path), path.name))
    distinct: dict[tuple[int, int], Path] = {}
    for path in files:
        index = path / INDEX_NAME
        status = index.stat() if index.is_file() else path.stat()
        distinct.setdefault((status.st_dev, status.st_ino), path)
    return list(distinct.values())


def is_checkpoint(path: Path) -> bool:
    """Whether the file or folder is a single checkpoint, as its name or content says, rather than a run or a model."""
    if path.is_dir():
        marked = path.name.endswith(".ckpt") and not (path / CHECKPOINT_FOLDER).is_dir()
        return marked or (path / INDEX_NAME).is_file()
    return path.is_file() or path.name.endswith(".ckpt")


def step_of(checkpoint: Path) -> int:
    """The optimizer step in a checkpoint's name; -1 when there is none."""
    found = re.search(r"global_step(\d+)", checkpoint.name)
    return int(found[1]) if found else -1


def exported_step(folder: Path, name: str) -> int | None:
    """The optimizer step whose weights lie in the run's `best` or `last`; None when that cannot be told."""
    try:
        step = read_json(folder / name / STATE_NAME)["global_step"]
        return step if isinstance(step, int) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def validated_checkpoint(folder: Path, step: int | None) -> Path | None:
    """The checkpoint that the validation (or the end of an epoch) at `step` left last; None when it is gone."""
    files = sorted((folder / CHECKPOINT_FOLDER).glob(f"epoch*-global_step{step}-val_loss*.ckpt"))
    files += sorted((folder / CHECKPOINT_FOLDER).glob(f"epoch*-global_step{step}_endofepoch.ckpt"))
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=None)


def is_of_run(checkpoint: Path, folder: Path) -> bool:
    """Whether `checkpoint` lies in the run's folder, also where that is spread by symbolic links."""
    real = Path(os.path.realpath(checkpoint))
    return any(real.is_relative_to(os.path.realpath(place)) for place in (folder, folder / CHECKPOINT_FOLDER))


def run_flags(folder: Path) -> dict[str, Any] | None:
    """The flags in the config.json that one of our runs wrote in `folder`; None when there is none of ours."""
    try:
        content = read_json(folder / CONFIG_NAME)
    except (OSError, ValueError):
        return None
    ours = isinstance(content, dict) and "save_path" in content and "train_data" in content
    return content if ours else None


def holds_run(folder: Path) -> bool:
    """Whether `folder` bears the marks of a run: checkpoints, the log of steps, or a config.json with our flags."""
    marks = os.path.isdir(folder / CHECKPOINT_FOLDER) or os.path.isfile(folder / STEP_LOG)
    return marks or run_flags(folder) is not None


def misplaced(folder: Path) -> list[str]:
    """What is in the way of the files and folders that a run in `folder` goes on writing, a sentence each."""
    problems = []
    for name in ("best", "last", PROFILE_FOLDER):
        if os.path.islink(folder / name):
            problems.append(f"{name} is a link, and is swapped as a whole folder; put a folder there, or nothing")
    for name in ("best", "last", CHECKPOINT_FOLDER, "lightning_logs", PROFILE_FOLDER, TRACKERS_FOLDER, REPORT_IMAGES):
        if os.path.lexists(folder / name) and not os.path.islink(folder / name) and not os.path.isdir(folder / name):
            problems.append(f"{name} is no folder, and the run needs one; move it away")
    last = f"{CHECKPOINT_FOLDER}/{LAST_NAME}"
    for name in (CONFIG_NAME, STEP_LOG, EPOCH_LOG, TEST_REPORT, REPORT_PAGE, last):
        sharded = name == last and os.path.isfile(folder / name / INDEX_NAME)
        if os.path.exists(folder / name) and not os.path.isfile(folder / name) and not sharded:
            kind = "folder" if os.path.isdir(folder / name) else "device or a pipe"
            problems.append(f"{name} is a {kind}, and the run needs a file; move it away")
    return problems


def foreign_names(folder: Path) -> list[str]:
    """Files in `folder` that have the name of a run's file and are not of a run: nobody may delete or replace them."""
    there = [name for name in OVERWRITTEN if os.path.lexists(folder / name)]
    if holds_run(folder):
        return [CONFIG_NAME] if CONFIG_NAME in there and run_flags(folder) is None else []
    return there


@contextmanager
def run_lock(folder: Path, place: str = "", use: str = "trains in this folder") -> Iterator[None]:
    """Keep other processes out of `folder`, which is made if need be; one that stays empty goes again.

    The kernel gives the lock back when the process dies, so that a lock file that is left behind locks nothing.

    Args:
        place: the flag and its value that name the folder; by default that of a training.
        use: what a process that has the lock does.

    Raises:
        UserError: another process holds the lock, or the folder cannot be written.
    """
    place = place or f"-save_path {folder}"
    made = [path for path in (folder, *folder.absolute().parents) if not os.path.exists(path)]

    def held() -> None:
        raise UserError(f"{place}: another process {use}")

    with ExitStack() as stack:
        stack.callback(_remove_empty, made)
        try:
            locked = stack.enter_context(file_lock(folder / LOCK_NAME, held))
        except OSError as error:
            raise UserError(f"{place}: cannot be written ({error.strerror})") from error
        if not locked:
            tell(f"{place}: this file system has no locks; see to it that no other process {use}")
        yield


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def check_unlocked(folder: Path) -> None:
    """Raise `UserError` when another process trains in `folder`; touches nothing."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return
    try:
        if try_lock(descriptor, shared=True) is False:
            raise UserError(f"-save_path {folder}: another process trains in this folder")
    finally:
        os.close(descriptor)


def clean_leftovers(folder: Path) -> None:
    """Remove what a killed write of a run left behind in its folder, and put back a folder that was being swapped.

    Files of anybody else, whatever their ending, stay.
    """
    for name in ("best", "last", PROFILE_FOLDER):
        clean_folder_leftovers(folder / name)
    for name in (CONFIG_NAME, EPOCH_LOG, STEP_LOG, TEST_REPORT, REPORT_PAGE):
        clean_temporary(folder / name)
    clean_all_leftovers(folder / CHECKPOINT_FOLDER, r"[^/]+\.ckpt")


def resume_candidates(config: TrainConfig) -> list[Path]:
    """The checkpoints that -resume_checkpoint stands for, the one to try first in front; none = start afresh.

    Raises:
        UserError: nothing there to resume, or a URL.
    """
    value, folder = config.run.resume_checkpoint, Path(config.run.save_path)
    if not value:
        return []
    if "://" in value:
        raise UserError(f"-resume_checkpoint {value}: a file on this machine is expected, not a URL")
    place = folder if value in ("last", "auto", "best") else Path(value)
    sharded = os.path.isdir(place) and is_checkpoint(place)
    found = [place] if sharded else checkpoints_of(place) if os.path.isdir(place) else []
    if value == "best":
        best = validated_checkpoint(folder, exported_step(folder, "best"))
        if best is None:
            raise UserError(
                f"-resume_checkpoint best: no checkpoint of {folder / 'best'} in {folder / CHECKPOINT_FOLDER};"
                " -resume_checkpoint last continues from the newest"
            )
        return [best]
    if value == "auto" and not found:
        models = [name for name in ("best", "last") if os.path.lexists(folder / name)]
        if models and holds_run(folder):
            raise UserError(
                f"-resume_checkpoint auto: {folder} holds a model ({', '.join(models)}) and no checkpoint to continue"
                " from; -overwrite in its place begins again, or choose another -save_path"
            )
        return []
    if found:
        return found
    if value == "last" or os.path.isdir(place):
        raise UserError(
            f"-resume_checkpoint {value}: no such file: {place / CHECKPOINT_FOLDER / LAST_NAME}, nor any other"
            " checkpoint there"
        )
    if not os.path.isfile(place):
        raise UserError(f"-resume_checkpoint {value}: no such file: {place}")
    return [place]
