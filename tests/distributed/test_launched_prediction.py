"""`inference.py` and `analyze.py` as processes that torchrun or srun started: they share a folder and nothing else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.command import ROOT, TIMEOUT, Result, environment, forked_commands, infer_ok
from tests.cli.test_analyze import command as analysis
from tests.cli.test_analyze import folder as reviews  # noqa: F401 (a fixture)

ROWS = 200
Variables = Callable[[int, int], dict[str, str]]


def by_torchrun(rank: int, count: int) -> dict[str, str]:
    """The environment of a process of torchrun, each on a machine of its own."""
    own = {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return {**own, "TORCHELASTIC_RUN_ID": "7", "MASTER_ADDR": "first", "MASTER_PORT": "29500"}


def by_srun(rank: int, count: int) -> dict[str, str]:
    names = {"SLURM_PROCID": rank, "SLURM_LOCALID": 0, "SLURM_STEP_NUM_TASKS": count, "SLURM_STEP_NUM_NODES": count}
    return {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", **{name: str(value) for name, value in names.items()}}


class Launched:
    """The processes of a launcher, and what they print."""

    def __init__(self, words: list[str], variables: Variables, count: int, place: Path) -> None:
        self.place = place
        self.pids = [
            forked_commands().start(words, ROOT, out, out, environment(**variables(rank, count)))
            for rank, out in enumerate(place / str(rank) for rank in range(count))
        ]

    def kill(self, rank: int, signum: signal.Signals) -> None:
        os.kill(self.pids[rank], signum)

    def wait(self) -> list[Result]:
        codes = [forked_commands().wait(pid, TIMEOUT) for pid in self.pids]
        return [Result(code, (self.place / f"{rank}").read_text(), "") for rank, code in enumerate(codes)]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    (tmp_path / "printed").mkdir()
    started = []

    def start(words: list[str], variables: Variables = by_torchrun, count: int = 2) -> Launched:
        for path in (tmp_path / "printed").iterdir():
            path.unlink()
        started.append(Launched(words, variables, count, tmp_path / "printed"))
        return started[-1]

    yield start
    for launched in started:
        for pid in launched.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def flags(copy_run: Path, letters: Path, output: Path, *more: str) -> list[str]:
    """200 rows in 50 parts, n-best lists with scores."""
    data = ("-model", str(copy_run / "run" / "best"), "-test_data", str(letters / "train.tsv"), "-gpus", "0")
    search = ("-batch_size", "4", "-beam_size", "3", "-num_return", "2")
    return ["inference.py", *data, *search, "-save_output", str(output), *more]


@pytest.fixture(scope="module")
def whole(copy_run: Path, letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process predicts."""
    output = tmp_path_factory.mktemp("whole") / "out.jsonl"
    infer_ok(*flags(copy_run, letters, output)[1:])
    return output


def wait_for(found: Callable[[], object]) -> None:
    until = time.monotonic() + TIMEOUT
    while not found():
        assert time.monotonic() < until
        time.sleep(0.002)


def workers(parts: Path) -> set[int]:
    """Process ids of those that work on the parts."""
    return {int(path.name.split("-")[-2]) for path in parts.glob("worker-*")}


def test_three_processes_one_of_them_killed(
    copy_run: Path, letters: Path, whole: Path, tmp_path: Path, launch: Callable[..., Launched]
) -> None:
    """The bytes of one process, whose chunks the others take over; the first one alone prints, writes and waits."""
    output, parts = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts"
    launched = launch(flags(copy_run, letters, output), count=3)
    told = tmp_path / "out.jsonl.ranks" / "first.json"
    wait_for(lambda: told.exists() and '"jobs": 1' in told.read_text())
    launched.kill(0, signal.SIGSTOP)
    launched.kill(1, signal.SIGSTOP)
    wait_for(lambda: launched.pids[2] in workers(parts) and list(parts.glob("claim-*")))
    launched.kill(2, signal.SIGKILL)
    launched.kill(1, signal.SIGCONT)
    launched.kill(0, signal.SIGCONT)
    first, second, third = launched.wait()
    assert (first.code, second.code, third.code) == (0, 0, -9), first.out + second.out
    assert "3 processes of the launcher share the rows\n" in first.out
    assert (second.out, third.out) == ("", "")
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "printed"]


def test_the_first_is_killed_and_one_process_completes_it(
    copy_run: Path, letters: Path, whole: Path, tmp_path: Path, launch: Callable[..., Launched]
) -> None:
    output, parts = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts"
    launched = launch(flags(copy_run, letters, output), by_srun)
    wait_for(lambda: list(parts.glob("part-*")))
    launched.kill(0, signal.SIGKILL)
    first, second = launched.wait()
    assert (first.code, second.code) == (-9, 1)
    assert second.out == (
        "error: process 0 of the launcher has ended, and process 1 ends too; what is finished is kept, and the same"
        " command goes on from there\n"
    )
    kept = len(list(parts.glob("part-*")))
    done = infer_ok(*flags(copy_run, letters, output)[1:])
    assert f"{4 * kept} of {ROWS} rows were finished before" in done.out
    assert output.read_bytes() == whole.read_bytes()


def test_labels_scored_and_calibrated(label_run: Path, tmp_path: Path, launch: Callable[..., Launched]) -> None:
    """What is fitted is fitted by the first process, for all."""

    def words(name: str) -> list[str]:
        data = ("-model", str(label_run / "run"), "-test_data", str(label_run / "test.tsv"), "-gpus", "0")
        how = ("-label_decoding", "score", "-calibrate", str(label_run / "train.tsv"), "-batch_size", "4")
        return ["inference.py", *data, *how, "-save_output", str(tmp_path / name)]

    infer_ok(*words("one.jsonl")[1:])
    assert [result.code for result in launch(words("two.jsonl")).wait()] == [0, 0]
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_an_analysis(reviews: Path, tmp_path: Path, launch: Callable[..., Launched]) -> None:  # noqa: F811
    """Two predictions, one behind the other."""
    assert launch(["analyze.py", *analysis(reviews, tmp_path / "one.jsonl")], count=1).wait()[0].code == 0
    first, second = launch(["analyze.py", *analysis(reviews, tmp_path / "two.jsonl")]).wait()
    assert (first.code, second.code) == (0, 0), first.out + second.out
    assert first.out.count("2 processes of the launcher share the rows\n") == 2
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "printed", "two.jsonl"]
