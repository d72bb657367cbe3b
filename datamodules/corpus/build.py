"""A corpus to token shards: by several processes, each piece once, and only those that are not there yet.

Start at `encoded_pieces`. A shard is named by a digest of the bytes of its piece, in a folder of the tokenizer and the
options: when files are moved, or text is appended to them, the shards of all other pieces stay in use.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NoReturn

from datamodules.corpus.documents import read_part
from datamodules.corpus.encoders import DocumentEncoder, EncoderSpec, OtherIdsError
from datamodules.corpus.shards import ShardRecord, ShardWriter, new_shard, whole_shard
from datamodules.corpus.sources import DocumentOptions, Part, Piece
from datamodules.readers.paths import file_state
from datamodules.readers.rows import PLACES_KEPT, RowReport
from utils.errors import RunError, UserError
from utils.files import TEMPORARY_SUFFIX, file_lock, leftovers, write_failure, write_json
from utils.json_files import read_json
from utils.progress import ProgressLine

FORMAT_VERSION = 1  # raised whenever the same text would be encoded or stored in another way
STATES = "files.json"
_BLOCK = 4 << 20
_MEGA = 1_000_000
SECONDS_BETWEEN_LINES = 60.0  # of the progress, where it is no bar


# Of the bytes of a part, and how many lines end in it (for the line numbers of the parts behind it).
PartDigest = tuple[str, int]
State = list[int] | None  # of a file (`file_state`)


@dataclass(frozen=True)
class Job:
    """What one process does at a time: encode a piece whose digest may be known."""

    folder: Path
    number: int
    piece: Piece
    options: DocumentOptions
    digests: tuple[PartDigest, ...] = ()  # of its parts, where they were computed before


@dataclass(frozen=True)
class Shard:
    """A finished piece: its shard, and the digests of its parts with the states that their files had."""

    name: str
    record: ShardRecord
    digests: tuple[PartDigest, ...]
    states: list[State]


def settings_key(spec: EncoderSpec, tokenizer_digest: str, options: DocumentOptions) -> str:
    """The name of the folder of the shards: what decides the ids of a text, and what is a document."""
    settings = [FORMAT_VERSION, spec.name, spec.key, tokenizer_digest, {**asdict(options), "flag": ""}]
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=10).hexdigest()


def encoded_pieces(
    folder: Path, pieces: Sequence[Piece], options: DocumentOptions, spec: EncoderSpec, workers: int, notes: list[str]
) -> list[Shard]:
    """A shard for every piece, in order; those that are in `folder` are taken as they are.

    Of several processes that want the same corpus one encodes, the others wait. Interrupted, it goes on where it was
    when it is called again.

    Raises:
        UserError: a file is damaged, has no such column, or changes while it is read; the folder cannot be written.
        OtherIdsError: a fast encoder gives a document other ids than the tokenizer.
        RunError: the disk is full, or a process was ended.
    """
    found = _known_shards(folder, pieces)
    missing = [number for number in range(len(pieces)) if number not in found.shards]
    if missing:
        with _writable(folder), file_lock(folder / "build.lock") as alone:
            for path in leftovers(folder, r"\w+\.\w+", TEMPORARY_SUFFIX) if alone else ():
                path.unlink()  # of processes that were killed: nobody writes now
            found = _known_shards(folder, pieces)  # another process may have been at work
            if found.lost:
                notes.append(
                    f"{options.flag}: {found.lost:,} token shards were missing or damaged and are written anew"
                )
            jobs = [
                Job(folder, number, pieces[number], options, found.digests.get(number, ()))
                for number in range(len(pieces))
                if number not in found.shards
            ]
            try:
                if jobs:  # else another process has done them all
                    _encode(jobs, spec, workers, found.shards)
            finally:
                _write_states(folder, pieces, found.shards)
            for number, shard in found.shards.items():
                _check_unchanged(pieces[number], shard.states)
    return [found.shards[number] for number in range(len(pieces))]


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"-cache_dir {folder}: cannot be written ({error.strerror or error})") from error


@dataclass(frozen=True)
class _Known:
    shards: dict[int, Shard]
    digests: dict[int, tuple[PartDigest, ...]]
    lost: int


def _known_shards(folder: Path, pieces: Sequence[Piece]) -> _Known:
    """The shards of the pieces whose files have not changed since they were digested."""
    try:
        states = read_json(folder / STATES)
    except (OSError, ValueError):
        states = {}
    shards: dict[int, Shard] = {}
    known: dict[int, tuple[PartDigest, ...]] = {}
    lost = 0
    current: dict[str, State] = {}
    for number, piece in enumerate(pieces):
        digests: list[PartDigest] = []
        for part in piece.parts:
            if part.path not in current:
                current[part.path] = _state(part)
            saved = states.get(os.path.abspath(part.path), {}) if isinstance(states, dict) else {}
            if saved.get("state") == current[part.path] and (digest := saved.get(_range(part))):
                digests.append((digest[0], digest[1]))
        if len(digests) < len(piece.parts):
            continue
        known[number] = tuple(digests)
        name = shard_name(piece, digests)
        record = whole_shard(folder, name)
        if record:
            shards[number] = Shard(name, record, known[number], [current[part.path] for part in piece.parts])
        else:
            lost += 1
    return _Known(shards, known, lost)


def _state(part: Part) -> State:
    state = file_state(part.path)
    return [*state] if state else None


def _range(part: Part) -> str:
    return f"{part.start}-{'' if part.stop is None else part.stop}"


def shard_name(piece: Piece, digests: Sequence[PartDigest]) -> str:
    """The name of a shard: a digest of what its piece holds and how it is read."""
    kinds = [[part.kind, part.compression, digest] for part, (digest, _) in zip(piece.parts, digests, strict=True)]
    return hashlib.blake2b(json.dumps(kinds).encode(), digest_size=16).hexdigest()


def _write_states(folder: Path, pieces: Sequence[Piece], shards: dict[int, Shard]) -> None:
    """Remember the digests of the files, so that they are not read again to find their shards."""
    path = folder / STATES
    try:
        content = read_json(path)
        states: dict[str, Any] = content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        states = {}
    for number, shard in shards.items():
        for part, digest, state in zip(pieces[number].parts, shard.digests, shard.states, strict=True):
            name = os.path.abspath(part.path)
            if states.get(name, {}).get("state") != state:
                states[name] = {"state": state}
            states[name][_range(part)] = digest
    if folder.exists():
        write_json(path, states)


def _encode(jobs: list[Job], spec: EncoderSpec, workers: int, shards: dict[int, Shard]) -> None:
    """Do the jobs; the shards are put into `shards` as they are finished."""
    total = sum(part.size for job in jobs for part in job.piece.parts)
    progress = ProgressLine("[CORPUS]", max(1, total // _MEGA), unit="MB")
    size = tokens = 0
    told = time.monotonic()
    try:
        for job, shard in _results(jobs, spec, workers):
            shards[job.number] = shard
            size += sum(part.size for part in job.piece.parts)
            tokens += shard.record.tokens
            progress.advance_to(size // _MEGA)
            if time.monotonic() - told > SECONDS_BETWEEN_LINES:
                progress.report(tokens=f"{tokens:,}")
                told = time.monotonic()
    finally:
        progress.close()


def _results(jobs: list[Job], spec: EncoderSpec, workers: int) -> Iterator[tuple[Job, Shard]]:
    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    if workers == 1:
        encoder = DocumentEncoder(spec)
        yield from ((job, encode_piece(job, encoder)) for job in jobs)
        return
    resource_tracker.ensure_running()  # started later, it would unblock the signal again
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _prepare, (spec,))
    waiting: dict[Future[Shard], Job] = {}
    rest = iter(jobs)
    # The processes inherit the block: Ctrl-C is for this one, which ends them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        try:
            waiting = {pool.submit(_encode_here, job): job for job in islice(rest, 2 * workers)}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                job = waiting.pop(future)
                yield job, future.result()
                waiting |= {pool.submit(_encode_here, following): following for following in islice(rest, 1)}
    except BrokenProcessPool:
        raise RunError(
            f"{jobs[0].options.flag}: a process that encodes was ended (out of memory, perhaps); what is finished is"
            " kept: start again"
        ) from None
    finally:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


_encoders: list[DocumentEncoder] = []  # that of a process which encodes


def _prepare(spec: EncoderSpec) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _encoders[:] = [DocumentEncoder(spec)]


def _leave_with_parent() -> NoReturn:
    """End this process when its parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_here(job: Job) -> Shard:
    return encode_piece(job, _encoders[0])


def encode_piece(job: Job, encoder: DocumentEncoder) -> Shard:
    """Write the shard of a piece, unless a shard of the same content is there."""
    states = [*map(_state, job.piece.parts)]
    digests = job.digests or tuple(map(_digest, job.piece.parts))
    name = shard_name(job.piece, digests)
    record = whole_shard(job.folder, name)
    if record is None:
        encoder.start_piece()
        try:
            with new_shard(job.folder, name, encoder.spec.dtype) as writer:
                for number, part in enumerate(job.piece.parts):
                    _encode_part(number, part, job.options, encoder, writer)
                _check_unchanged(job.piece, states)
                record = writer.record
                record.compared, record.ties = encoder.compared, encoder.ties
        except OSError as error:
            raise RunError(
                f"{job.folder}: a token shard could not be written: {write_failure(error, job.folder)};"
                " -cache_dir names another place"
            ) from error
    _check_unchanged(job.piece, states)
    return Shard(name, record, digests, states)


def _encode_part(
    number: int, part: Part, options: DocumentOptions, encoder: DocumentEncoder, writer: ShardWriter
) -> None:
    report = RowReport()
    for batch in read_part(part, options, report):
        try:
            values, lengths = encoder.encode(batch.texts)
        except OtherIdsError as error:
            line = batch.lines[error.at] + lines_before(part)
            raise OtherIdsError(error.at, f"{part.path}:{line}") from None
        writer.add(values, lengths, batch.texts)
    for reason, (count, places) in report.malformed.items():
        of_reason = writer.record.skipped.setdefault(reason, [0, []])
        of_reason[0] += count
        found = [f"{number}:{place.removeprefix(part.path).removeprefix(':') or 0}" for place in places]
        of_reason[1] += found[: PLACES_KEPT - len(of_reason[1])]


def _check_unchanged(piece: Piece, states: list[State]) -> None:
    for part, state in zip(piece.parts, states, strict=True):
        if _state(part) != state:
            raise UserError(f"{part.path} has changed while it was read; start again when it is complete")


def _digest(part: Part) -> PartDigest:
    digest, lines = hashlib.blake2b(digest_size=16), 0
    for block in _blocks(part.path, part.start, part.stop):
        digest.update(block)
        lines += block.count(b"\n")
    return digest.hexdigest(), lines


def lines_before(part: Part) -> int:
    """How many lines end before a part of a file."""
    return sum(block.count(b"\n") for block in _blocks(part.path, 0, part.start)) if part.start else 0


def _blocks(path: str, start: int, stop: int | None) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            left = file.seek(0, os.SEEK_END) - file.seek(start) if stop is None else stop - start
            while left > 0 and (block := file.read(min(_BLOCK, left))):
                left -= len(block)
                yield block
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
