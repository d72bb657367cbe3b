"""Part files: the predictions of a chunk of rows, each whole or not there.

rows longest first, cut into chunks by the input and the flags alone -> a process claims a chunk -> part file
"""

from __future__ import annotations

import errno
import itertools
import json
import resource
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from generation.batch_limits import BatchLimits, longest_first
from generation.decoder import Hypothesis
from generation.engines.base import Prediction
from utils.errors import RunError
from utils.files import write_file

PARTS_WANTED = 500  # all are open at once when they are merged; what a kill loses is one for each process
SCORE_DIGITS = 6
PROBABILITY_DIGITS = 6  # significant ones: a probability of 1e-9 is none of 0
OTHER_OPEN_FILES = 64  # of a process, besides the parts


@dataclass(frozen=True)
class Chunks:
    """The rows of a split, longest first, in batches, and these in chunks that are worked on as wholes."""

    order: np.ndarray  # row numbers
    starts: Sequence[int]  # where the batches begin in `order`
    batches_of_a_chunk: int

    @classmethod
    def of(cls, lengths: np.ndarray, limits: BatchLimits) -> Chunks:
        """Like lengths together; chunks depend on nothing but these arguments."""
        order = longest_first(lengths)
        starts = limits.starts(lengths[order])
        return cls(order, starts, max(1, -(-len(starts) // PARTS_WANTED)))

    def __len__(self) -> int:
        return -(-len(self.starts) // self.batches_of_a_chunk)

    def batches(self, chunk: int) -> list[np.ndarray]:
        """Row numbers of the batches of a chunk, the longest first."""
        first = chunk * self.batches_of_a_chunk
        ends = (*self.starts, len(self.order))[first : first + self.batches_of_a_chunk + 1]
        return [self.order[start:end] for start, end in itertools.pairwise(ends)]

    def rows(self, chunk: int) -> np.ndarray:
        """Row numbers of a chunk, longest first."""
        return np.concatenate(self.batches(chunk))

    def count(self, chunks: Iterable[int]) -> int:
        """Rows of several chunks together."""
        return sum(len(batch) for chunk in chunks for batch in self.batches(chunk))


def part_path(folder: Path, chunk: int) -> Path:
    """Where the predictions of a chunk lie."""
    return folder / f"part-{chunk:06d}.jsonl"


def write_part(folder: Path, chunk: int, rows: Sequence[int], predictions: Sequence[Prediction]) -> None:
    """Write the predictions of a chunk durably: a line each, and a last line with their number and checksum."""
    lines = [_line(row, prediction) for row, prediction in zip(rows, predictions, strict=True)]
    body = "".join(f"{line}\n" for line in lines).encode("utf-8")
    end = json.dumps({"rows": len(lines), "crc32": zlib.crc32(body)}) + "\n"
    content = body + end.encode("ascii")
    write_file(part_path(folder, chunk), lambda file: file.write(content), needed=len(content))


def _line(row: int, prediction: Prediction) -> str:
    values: list[Any] = [int(row), prediction.text]
    if prediction.vector is not None:
        return json.dumps([*values, {"vector": b64encode(prediction.vector).decode("ascii")}])
    if prediction.score is not None:
        written = as_written(prediction)
        values.append(written.score)
        values.append([[output.text, output.score] for output in written.nbest])
        if written.label_probabilities is not None:
            values.append(written.label_probabilities)
        if written.words is not None:
            values.append(written.words)
    if prediction.cut:
        values.append(True)
    return json.dumps(values)  # ASCII: half of a surrogate pair, which a model may write, is kept too


def as_written(prediction: Prediction) -> Prediction:
    """`prediction` with the digits that are written; the rules of label sets and abstention are fitted on these."""
    shares, words = prediction.label_probabilities, prediction.words
    return replace(
        prediction,
        score=None if prediction.score is None else rounded(prediction.score),
        nbest=tuple(replace(output, score=rounded(output.score)) for output in prediction.nbest),
        label_probabilities=None if shares is None else tuple(map(significant, shares)),
        words=None if words is None else tuple((word, rounded(loss)) for word, loss in words),
    )


def rounded(score: float) -> float:
    """A score as it is written."""
    return round(score, SCORE_DIGITS)


def significant(probability: float) -> float:
    """A probability as it is written."""
    return float(f"{probability:.{PROBABILITY_DIGITS}g}")


def _parsed(line: bytes) -> tuple[int, Prediction]:
    row, text, *more = json.loads(line)
    if more and isinstance(more[0], dict):
        return row, Prediction(text, vector=b64decode(more[0]["vector"]))
    cut = bool(more) and more[-1] is True
    more = more[:-1] if cut else more
    score = more[0] if more else None
    nbest = tuple(Hypothesis(*output) for output in more[1]) if more else ()
    probabilities = tuple(more[2]) if len(more) > 2 else None
    words = tuple((word, loss) for word, loss in more[3]) if len(more) > 3 else None
    return row, Prediction(text, score, nbest, probabilities, cut, words)


def _row_of(line: bytes) -> int:
    """The row number of a line of a part; -1 when it is none."""
    number = line[1 : line.find(b",")]
    return int(number) if number.isdigit() else -1


def _body(content: bytes) -> bytes | None:
    """The lines of a part without the last one; None when they are not what was written."""
    start = content.rfind(b"\n", 0, -1) + 1
    if not content.endswith(b"\n"):
        return None
    try:
        end = json.loads(content[start:])
        whole = zlib.crc32(content[:start]) == end["crc32"] and content.count(b"\n", 0, start) == end["rows"]
    except (ValueError, TypeError, KeyError):
        return None
    return content[:start] if whole else None


def finished_chunks(folder: Path, chunks: Chunks) -> tuple[list[int], list[Path]]:
    """Chunks whose part is whole, and the parts that are torn or of other rows: those are removed, to be made again."""
    finished, torn = [], []
    for chunk in range(len(chunks)):
        path = part_path(folder, chunk)
        try:
            body = _body(path.read_bytes())
        except FileNotFoundError:
            continue
        if body is None or [_row_of(line) for line in body.splitlines()] != chunks.rows(chunk).tolist():
            path.unlink()
            torn.append(path)
        else:
            finished.append(chunk)
    return finished, torn


def _allow_open_files(count: int) -> None:
    """Raise this process's own limit of open files as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_OPEN_FILES
    if resource.RLIM_INFINITY not in (soft, hard):
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Parts(Sequence[Prediction]):
    """The predictions of all parts by row number, read from the disk one by one: in memory are 12 bytes a row.

    The files are open until `close`, or until the end of a `with`.

    Raises:
        RunError: a row has no prediction, or more than one.
    """

    def __init__(self, folder: Path, chunks: Chunks) -> None:
        _allow_open_files(len(chunks))
        try:
            self._files = [open(part_path(folder, chunk), "rb") for chunk in range(len(chunks))]  # noqa: SIM115
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            wanted = len(chunks) + OTHER_OPEN_FILES
            raise RunError(f"{len(chunks)} files of {folder} cannot be open at once: ulimit -n {wanted}") from error
        self._file_of = np.full(len(chunks.order), -1, dtype=np.int32)
        self._start_of = np.zeros(len(chunks.order), dtype=np.int64)
        for number, file in enumerate(self._files):
            self._index(number, _body(file.read()) or b"")
        missing = int((self._file_of < 0).sum())
        if missing:
            raise RunError(f"{missing:,} of {len(self):,} rows have no prediction in {folder}")

    def _index(self, number: int, body: bytes) -> None:
        start = 0
        for line in body.splitlines(keepends=True):
            row = _row_of(line)
            if self._file_of[row] >= 0:
                raise RunError(f"row {row:,} was predicted twice, see {self._files[number].name}")
            self._file_of[row], self._start_of[row] = number, start
            start += len(line)

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._file_of)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        file = self._files[self._file_of[row]]
        file.seek(self._start_of[row])
        return _parsed(file.readline())[1]

    def close(self) -> None:
        for file in self._files:
            file.close()
