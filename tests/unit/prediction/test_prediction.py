"""Every row is predicted exactly once, whoever works on it, dies, or comes back; what is finished is not done again."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer

from config.flags.data import DataFlags, LengthFlags
from datamodules.encoding.store import EncodedSplit
from datamodules.splits import RowEncoder, prediction_split
from generation.batch_limits import BatchLimits
from generation.decoder import Hypothesis
from generation.engines.base import Prediction
from prediction.parts import PARTS_WANTED, Chunks, Parts, finished_chunks, part_path, write_part
from prediction.parts_folder import claim_path
from prediction.predict import finished_rows, predict
from prediction.workers.claims import DEAD_SECONDS, Claims
from task_utils import get_task
from utils.devices import Devices
from utils.errors import RunError, UserError
from utils.files import write_json

PAIRS = BatchLimits(2)
ONE, TWO = (Devices("cpu", count, 1, "32-true") for count in (1, 2))


def mistaken(_: torch.device) -> NoReturn:
    raise UserError("-model x: 모델이 없음", "-tokenizer y: no such file")


def full(_: torch.device) -> NoReturn:
    raise RunError("the disk is full")


@dataclass(frozen=True)
class Echo:
    """An engine that predicts the row's number and length, and notes in `log` the rows it worked on.

    The process that works on row `dies` is killed; at row `stops` comes Ctrl-C; its memory has room for `room` rows.
    """

    log: Path
    dies: int = -1
    stops: int = -1
    room: int = sys.maxsize

    def __call__(self, _: torch.device) -> partial[list[Prediction]]:
        return partial(_echo, self)


def _echo(
    engine: Echo, row_ids: Sequence[int], sources: Sequence[np.ndarray], languages: Sequence[str]
) -> list[Prediction]:
    assert not languages
    if len(sources) > engine.room:
        no_memory(torch.device("cpu"))
    with open(engine.log, "a") as log:
        log.writelines(f"{row}\n" for row in row_ids)
    if engine.stops in row_ids:
        raise KeyboardInterrupt
    if engine.dies in row_ids:
        os.kill(os.getpid(), signal.SIGKILL)
    return [Prediction(f"row {row} of {len(source)}") for row, source in zip(row_ids, sources, strict=True)]


def split_of(folder: Path, texts: list[str]) -> EncodedSplit:
    (folder / "rows.txt").write_text("".join(f"{text}\n" for text in texts))
    data = DataFlags(test_data=(str(folder / "rows.txt"),), header="false")
    return prediction_split(RowEncoder(data, LengthFlags(), get_task("seq2seq"), ByT5Tokenizer(), 0, folder))[0]


@pytest.fixture
def split(tmp_path: Path) -> EncodedSplit:
    """Nine rows of 1 to 9 letters, the shortest first."""
    return split_of(tmp_path, ["x" * length for length in range(1, 10)])


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    return folder


def worked_on(log: Path) -> list[int]:
    """Row numbers in the order of work; clears the log."""
    rows = [int(line) for line in log.read_text().splitlines()] if log.exists() else []
    log.unlink(missing_ok=True)
    return rows


WANTED = [Prediction(f"row {row} of {row + 2}") for row in range(9)]  # the end token counts


# ---- chunks and part files


def test_chunks_hold_every_row_once_and_like_lengths() -> None:
    lengths = np.array([3, 9, 9, 1, 5, 9, 2])
    chunks = Chunks.of(lengths, BatchLimits(2))
    assert [chunks.rows(chunk).tolist() for chunk in range(len(chunks))] == [[1, 2], [5, 4], [0, 6], [3]]
    many = Chunks.of(np.ones(10_007, dtype=np.int32), BatchLimits(3))
    assert len(many) == 477 <= PARTS_WANTED
    batches = [batch.tolist() for chunk in range(len(many)) for batch in many.batches(chunk)]
    assert {len(batch) for batch in batches[:-1]} == {3}
    assert [row for batch in batches for row in batch] == list(range(10_007))
    assert (many.count([0, 476]), many.count(range(477))) == (3 * 7 + 10_007 - 476 * 21, 10_007)
    assert len(Chunks.of(np.ones(0, dtype=np.int32), BatchLimits(3))) == 0


def test_a_budget_of_tokens_cuts_batches_of_long_rows() -> None:
    """Padding counts; a row that is longer than the budget is alone; short rows are still bounded by their number."""
    lengths = np.array([3, 9, 2, 30, 1, 8, 3, 1, 1])
    chunks = Chunks.of(lengths, BatchLimits(4, 18))
    batches = [batch.tolist() for chunk in range(len(chunks)) for batch in chunks.batches(chunk)]
    assert batches == [[3], [1, 5], [0, 6, 2, 4], [7, 8]]
    assert [rows.tolist() for rows in BatchLimits(4, 18).cut(lengths)] == batches
    assert BatchLimits(4, 18).cut(lengths[:0]) == []


def test_a_part_holds_what_was_written(parts: Path) -> None:
    chunks = Chunks(np.array([2, 0, 1]), [0], 1)
    written = [
        Prediction("탭\t\n\r\u2028끝", -0.12345678, (Hypothesis("a", -0.5), Hypothesis("", -1.0)), (0.25, 0.75)),
        Prediction("half a pair \ud83d", -1.0, cut=True),
        Prediction("", -2.0, (), (0.0, 1.0)),
    ]
    write_part(parts, 0, [2, 0, 1], written)
    found = Parts(parts, chunks)
    assert list(found) == [written[1], written[2], replace(written[0], score=-0.123457)]
    with pytest.raises(IndexError):
        found[3]
    write_part(parts, 0, [2, 0, 1], [Prediction("a", cut=True), Prediction("b"), Prediction("c")])
    assert list(Parts(parts, chunks)) == [Prediction("b"), Prediction("c"), Prediction("a", cut=True)]


def test_torn_parts_are_found_and_made_again(split: EncodedSplit, parts: Path, tmp_path: Path) -> None:
    engine = Echo(tmp_path / "log")
    predict(engine, split, PAIRS, ONE, parts)
    assert worked_on(engine.log) == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    whole = {path.name: path.read_bytes() for path in parts.glob("part-*")}
    damages = (b"", b"\n", whole["part-000000.jsonl"][:-1], whole["part-000000.jsonl"].replace(b"row 8", b"row 0"))
    for number, damage in enumerate((*damages, whole["part-000004.jsonl"], b"[1, 2]\n")):
        part_path(parts, 0).write_bytes(damage)
        assert finished_chunks(parts, Chunks.of(split.source_lengths, PAIRS)) == (
            [1, 2, 3, 4],
            [part_path(parts, 0)],
        ), number
        assert list(predict(engine, split, PAIRS, ONE, parts)) == WANTED
        assert worked_on(engine.log) == [8, 7]
    assert {path.name: path.read_bytes() for path in parts.glob("part-*")} == whole


def test_a_part_of_other_rows_is_made_again(split: EncodedSplit, parts: Path, tmp_path: Path) -> None:
    """Whole by its checksum, but a copy of another one."""
    engine = Echo(tmp_path / "log")
    predict(engine, split, PAIRS, ONE, parts).close()
    worked_on(engine.log)
    part_path(parts, 1).write_bytes(part_path(parts, 2).read_bytes())
    assert list(predict(engine, split, PAIRS, ONE, parts)) == WANTED
    assert worked_on(engine.log) == [6, 5]


FEW_FILES = """
import resource, sys
from pathlib import Path
import numpy as np
from generation.batch_limits import BatchLimits
from prediction.parts import Chunks, Parts, write_part
from generation.engines.base import Prediction
chunks = Chunks.of(np.ones(300), BatchLimits(1))
for chunk in range(300):
    write_part(Path(sys.argv[1]), chunk, [chunk], [Prediction(str(chunk))])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[2])))
try:
    print(Parts(Path(sys.argv[1]), chunks)[299].text)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_more_parts_than_files_may_be_open(parts: Path) -> None:
    """The limit is raised as far as a process may; beyond that the way out is told."""
    for hard, told in ((400, "299"), (200, f"RunError 300 files of {parts} cannot be open at once: ulimit -n 364")):
        command = [sys.executable, "-c", FEW_FILES, str(parts), str(hard)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"{told}\n"


def test_rows_that_are_missing_or_there_twice_are_told(parts: Path) -> None:
    write_part(parts, 0, [0, 1], [Prediction("a"), Prediction("b")])
    write_part(parts, 1, [1], [Prediction("c")])
    with pytest.raises(RunError, match=r"row 1 was predicted twice, see .*part-000001\.jsonl"):
        Parts(parts, Chunks(np.arange(4), [0, 2], 1))
    write_part(parts, 1, [3], [Prediction("c")])
    with pytest.raises(RunError, match="1 of 4 rows have no prediction in"):
        Parts(parts, Chunks(np.arange(4), [0, 2], 1))


CLAIM = """
import sys
from pathlib import Path
import numpy as np
from prediction.parts import Chunks
from prediction.workers.claims import Claims
with Claims(Path(sys.argv[1])) as claims:
    print(next(claims.open_chunks(Chunks(np.arange(3), [0, 1, 2], 1))), flush=True)
    sys.stdin.read()
"""
THREE = Chunks(np.arange(3), [0, 1, 2], 1)


@pytest.mark.parametrize("links", [True, False])
def test_a_chunk_is_claimed_by_one_process_and_free_when_it_dies(
    parts: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed and not yet waited for by its parent, it is dead all the same."""

    def no_links(*_: object) -> NoReturn:
        raise OSError(errno.EOPNOTSUPP, "no links")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    other = subprocess.Popen(
        [sys.executable, "-c", CLAIM, parts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other, Claims(parts) as claims:
        assert other.stdout is not None
        assert other.stdout.readline() == "0\n"
        assert list(claims.open_chunks(THREE)) == [1, 2]
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert next(claims.open_chunks(THREE)) == 0


def claim_from_elsewhere(parts: Path, seconds: float) -> None:
    """Chunk 0 is claimed by a process of another machine that was seen some seconds ago."""
    with Claims(parts) as other:
        assert next(other.open_chunks(THREE)) == 0
        worker, content = other.worker.path, other.worker.content
    write_json(worker, {**content, "place": "another machine"})
    claim_path(parts, 0).unlink()
    os.link(worker, claim_path(parts, 0))
    os.utime(worker, (os.stat(worker).st_mtime - seconds,) * 2)


def test_a_process_of_another_machine_is_dead_when_it_was_not_seen_for_long(parts: Path) -> None:
    claim_from_elsewhere(parts, DEAD_SECONDS - 10)
    with Claims(parts) as claims:
        assert list(claims.open_chunks(THREE)) == [1, 2]
    claim_path(parts, 0).unlink()
    claim_from_elsewhere(parts, DEAD_SECONDS + 1)
    with Claims(parts) as claims:
        assert next(claims.open_chunks(THREE)) == 0


def test_others_are_waited_for_and_their_chunks_taken_over(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim_from_elsewhere(parts, 0)
    waited: list[int] = []
    monkeypatch.setattr("prediction.workers.claims.POLL_SECONDS", 0)

    def waiting() -> None:
        waited.append(len(waited))
        if len(waited) == 3:
            (worker,) = set(parts.glob("worker-*")) - {claims.worker.path}
            worker.unlink()

    given = []
    with Claims(parts) as claims:
        for chunk in claims.open_chunks(THREE, waiting):
            given.append(chunk)
            write_part(parts, chunk, THREE.rows(chunk).tolist(), [Prediction("a")])
    assert (given, waited) == ([1, 2, 0], [0, 1, 2])


def test_a_process_that_another_run_has_replaced_writes_nothing(split: EncodedSplit, parts: Path) -> None:
    """It slept for long; meanwhile the same output was begun again, perhaps by another command."""

    def replaced(_: torch.device) -> Callable[..., list[Prediction]]:
        def predictor(row_ids: Sequence[int], *_: Any) -> list[Prediction]:
            for path in parts.glob("worker-*"):
                path.unlink()
            return [Prediction("of the old command") for _ in row_ids]

        return predictor

    with pytest.raises(RunError, match=r"worker-.* is gone: another run has taken over, or the file system"):
        predict(replaced, split, PAIRS, ONE, parts)
    assert list(parts.glob("part-*")) == []


# ---- work


def test_a_stopped_prediction_goes_on_where_it_was(split: EncodedSplit, parts: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        predict(Echo(log, stops=3), split, PAIRS, ONE, parts)
    assert worked_on(log) == [8, 7, 6, 5, 4, 3]
    assert finished_rows(split, PAIRS, parts) == 4
    assert list(predict(Echo(log), split, PAIRS, ONE, parts)) == WANTED
    assert worked_on(log) == [4, 3, 2, 1, 0]
    assert list(predict(mistaken, split, PAIRS, ONE, parts)) == WANTED  # nothing is left to do: no model is loaded


def test_the_speed_is_that_of_the_rows_predicted_now(
    split: EncodedSplit, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict(Echo(tmp_path / "log", stops=3), split, PAIRS, ONE, parts)
    predict(Echo(tmp_path / "log"), split, PAIRS, ONE, parts).close()
    lines = capsys.readouterr().out.splitlines()
    assert f"4 of 9 rows were finished before, in {parts}" in lines
    assert re.fullmatch(r"5 rows predicted in 0\.\d s, [\d,.]+ rows/s", lines[-1])


def no_memory(_: torch.device) -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def no_memory_later(_: torch.device) -> Callable[..., list[Prediction]]:
    def predictor(row_ids: Sequence[int], sources: Sequence[np.ndarray], *_: Any) -> list[Prediction]:
        return no_memory(torch.device("cpu")) if 4 in row_ids else [Prediction("a") for _ in sources]

    return predictor


def too_many_beams(_: torch.device) -> NoReturn:
    torch.empty(2**60)
    raise AssertionError


def test_a_device_without_memory_is_told_of_the_model_and_of_the_batch(split: EncodedSplit, parts: Path) -> None:
    with pytest.raises(RunError) as caught:
        predict(no_memory, split, PAIRS, ONE, parts)
    assert str(caught.value) == (
        "the model does not fit into the memory of cpu: a model larger than one GPU is out of scope"
    )
    with pytest.raises(RunError, match="the model does not fit into the memory of cpu"):
        predict(too_many_beams, split, PAIRS, ONE, parts)
    with pytest.raises(RunError, match=r"too small for a row of 6 tokens: give fewer beams, or a smaller -max_seq"):
        predict(no_memory_later, split, PAIRS, ONE, parts)
    assert finished_rows(split, PAIRS, parts) == 4


def test_batches_are_halved_until_they_fit_into_the_memory(
    split: EncodedSplit, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[int] = []

    def small_memory(_: torch.device) -> Callable[..., list[Prediction]]:
        def predictor(row_ids: Sequence[int], sources: Sequence[np.ndarray], *_: Any) -> list[Prediction]:
            tried.append(len(sources))
            if len(sources) > 2:
                no_memory(torch.device("cpu"))
            return [Prediction(str(row)) for row in row_ids]

        return predictor

    found = predict(small_memory, split, BatchLimits(9), ONE, parts)
    assert [one.text for one in found] == [str(row) for row in range(len(split))]
    assert (tried[:2], max(tried[2:]), sum(tried[2:])) == ([9, 4], 2, len(split))
    told = [line for line in capsys.readouterr().out.splitlines() if "memory" in line]
    assert len(told) == 1
    assert told[0].startswith("the memory of cpu is too small for a batch of 9 rows of up to")


def test_each_process_halves_its_batches(split: EncodedSplit, parts: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert list(predict(Echo(log, room=2), split, BatchLimits(5), TWO, parts)) == WANTED
    assert sorted(worked_on(log)) == [*range(9)]


def test_a_killed_process_loses_its_chunk_only(
    split: EncodedSplit, parts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The other one does all the rest; the same command, on one process, completes it."""
    log = tmp_path / "log"
    with pytest.raises(
        RunError, match=r"^prediction process [01] of 2 was ended by SIGKILL \(out of memory, perhaps\)$"
    ):
        predict(Echo(log, dies=8), split, PAIRS, TWO, parts)
    # Whether the other one had looked at chunk 0 while it was claimed decides who has done it: nobody, or it died too.
    assert sorted(set(worked_on(log))) in ([*range(9)], [7, 8])
    left = 9 - finished_rows(split, PAIRS, parts)
    assert left in (2, 9)
    assert list(predict(Echo(log), split, PAIRS, ONE, parts)) == WANTED
    assert len(worked_on(log)) == left
    assert "Traceback" not in capfd.readouterr().err


def test_problems_of_a_process_are_raised_by_the_parent(
    split: EncodedSplit, parts: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as mistakes:
        predict(mistaken, split, PAIRS, TWO, parts)
    assert mistakes.value.problems == ("-model x: 모델이 없음", "-tokenizer y: no such file")
    with pytest.raises(RunError, match=r"^the disk is full$"):
        predict(full, split, PAIRS, TWO, parts)
    assert capfd.readouterr() == ("", "")  # no traceback of a worker
