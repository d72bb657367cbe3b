"""What processes of a launcher are refused, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import prediction.workers.ranks as ranks
from prediction.checks import check_launched
from prediction.parts import Chunks
from prediction.parts_folder import claim_path
from prediction.workers.claims import Claims, Presence
from prediction.workers.processes import raise_problem
from prediction.workers.ranks import shared_temporary, work_for_first
from prediction.workers.work import PredictionJob
from utils.devices import Devices, launched_devices
from utils.errors import RunError, UserError
from utils.launch import global_rank, launch_id, local_world_size, world_size

RANK = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the second of two of torchrun, and waits for nobody."""
    for name, value in RANK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "MEETING_SECONDS", 0.05)
    monkeypatch.setattr(ranks, "LEAVING_SECONDS", 0.05)
    monkeypatch.setattr(ranks, "POLL_SECONDS", 0.01)


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Presence]:
    folder = tmp_path / "out.txt.ranks"
    folder.mkdir()
    with Presence(folder / "first.json", launch=launch_id(), jobs=0, ended=0, done=False) as presence:
        yield presence


def test_a_folder_that_is_not_shared_is_told(tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    with pytest.raises(RunError) as caught:
        work_for_first(str(output))
    assert str(caught.value) == (
        f"-save_output {output}: process 1 of the launcher has seen nothing of process 0 in {output}.ranks for 0.05 s:"
        " give a folder that all machines share, or see what process 0 told"
    )


def test_the_first_process_of_another_launch_is_not_followed(
    tmp_path: Path, first: Presence, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first.path.exists()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(RunError, match="has seen nothing of process 0"):
        work_for_first(str(tmp_path / "out.txt"))


def test_a_launch_of_the_same_name_on_another_machine_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process 1 would take the place of that of the first launch, and end both."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr("socket.gethostname", lambda: "first")
    (tmp_path / "out.txt.ranks").mkdir()
    with Presence(tmp_path / "out.txt.ranks" / "first.json", launch=launch_id(), jobs=0, ended=0, done=True):
        work_for_first(str(tmp_path / "out.txt"))
        monkeypatch.setattr("socket.gethostname", lambda: "second")
        with pytest.raises(RunError, match="has seen nothing of process 0"):
            work_for_first(str(tmp_path / "out.txt"))


@pytest.mark.parametrize("content", ["[]", "{}", '{"launch": 1}'])
def test_something_else_in_place_of_the_first_process_is_not_followed(tmp_path: Path, content: str) -> None:
    (tmp_path / "out.txt.ranks").mkdir()
    (tmp_path / "out.txt.ranks" / "first.json").write_text(content)
    with pytest.raises(RunError, match="has seen nothing of process 0"):
        work_for_first(str(tmp_path / "out.txt"))


@pytest.mark.parametrize("claimed", ["a folder", "a link to nothing", "no object"])
def test_a_claim_of_nobody_is_taken_over(tmp_path: Path, claimed: str) -> None:
    claim = claim_path(tmp_path, 0)
    if claimed == "a folder":
        (claim / "inside").mkdir(parents=True)
    elif claimed == "a link to nothing":
        claim.symlink_to(tmp_path / "nothing")
    else:
        claim.write_text("[]")
    chunks = Chunks(np.arange(2), [0], 1)
    with Claims(tmp_path) as claims:
        assert list(claims.open_chunks(chunks)) == [0]
        assert claim.samefile(claims.worker.path)


def test_a_first_process_that_is_dead_is_not_followed(tmp_path: Path, first: Presence) -> None:
    """Left behind by an earlier launch, which torchrun may have called the same."""
    first.update(pid=2**22 + 1)
    with pytest.raises(RunError, match="has seen nothing of process 0"):
        work_for_first(str(tmp_path / "out.txt"))
    first.update(place="another machine")
    os.utime(first.path, (os.stat(first.path).st_mtime - 20,) * 2)
    with pytest.raises(RunError, match="has seen nothing of process 0"):
        work_for_first(str(tmp_path / "out.txt"))


def test_a_job_that_others_may_write_is_not_read(tmp_path: Path, first: Presence) -> None:
    """Reading a pickle runs what it says. The first process raises what the others could not go on for."""
    job = first.path.with_name("job-1")
    job.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    job.chmod(0o620)
    first.update(jobs=1)
    told = f"{job} is of another user, or others may write it: it is not read"
    with pytest.raises(RunError, match=told):
        work_for_first(str(tmp_path / "out.txt"))
    assert first.path.with_name("left-1").exists()
    with pytest.raises(RunError, match=told):
        raise_problem(first.path.parent, 1)


def test_when_all_is_done_the_others_end(tmp_path: Path, first: Presence) -> None:
    first.update(done=True)
    work_for_first(str(tmp_path / "out.txt"))
    assert sorted(path.name for path in first.path.parent.iterdir()) == ["first.json", "left-1"]


@pytest.mark.parametrize("ended", [1, 0])
def test_parts_that_go_while_a_process_looks_for_one_are_no_error(
    tmp_path: Path, first: Presence, monkeypatch: pytest.MonkeyPatch, ended: int
) -> None:
    def work(*_: object, **__: object) -> None:
        first.update(ended=ended, done=True)
        raise FileNotFoundError("out.txt.parts/part-000000.jsonl")

    monkeypatch.setattr(ranks, "work", work)
    monkeypatch.setattr(ranks, "_read_job", lambda *_: (None, PredictionJob(*[None] * 4)))  # type: ignore[arg-type]
    for name in ("use_arithmetic", "use_threads", "own_device"):
        monkeypatch.setattr(ranks, name, lambda _: None)
    first.update(jobs=1)
    with nullcontext() if ended else pytest.raises(FileNotFoundError):
        work_for_first(str(tmp_path / "out.txt"))


def test_a_job_that_has_ended_is_not_begun(tmp_path: Path, first: Presence, monkeypatch: pytest.MonkeyPatch) -> None:
    def done_now(*_: object) -> None:
        first.update(done=True)

    monkeypatch.setattr(ranks.time, "sleep", done_now)
    first.update(jobs=1, ended=1)  # no job-1 is there: reading it would be an error
    work_for_first(str(tmp_path / "out.txt"))


def test_a_folder_in_the_way_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    for name in ("thesis.doc", "rank-1"):
        (tmp_path / "out.txt.ranks" / name).mkdir(parents=True)
        with (
            pytest.raises(
                UserError, match=r"out\.txt\.ranks is in the way and no folder of ours; choose another name$"
            ),
            shared_temporary(str(tmp_path / "out.txt")),
        ):
            pytest.fail("taken")
        (tmp_path / "out.txt.ranks" / name).rmdir()
    with shared_temporary(str(tmp_path / "out.txt")) as shared:  # nobody else comes: it does not wait for ever
        assert shared.folder == tmp_path / "out.txt.ranks" / "rows"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "inputs", "told"),
    [
        ("", "-", "-test_data -: one process reads standard input; start it without a launcher"),
        (
            "",
            "rows.tsv",
            "-save_output is required where torchrun or srun starts several processes: what they share lies beside it",
        ),
        ("out.txt", "rows.tsv", None),
    ],
)
def test_what_several_processes_cannot_do(output: str, inputs: str, told: str | None) -> None:
    problems: list[str] = []
    check_launched(output, (inputs,), problems)
    assert problems == ([told] if told else [])


def test_devices_of_launched_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpus = (Devices(name, count, 1, "32-true") for name, count in (("cpu", 1), ("cuda", 8)))
    assert launched_devices(cpu, asked=False).count == 2
    with pytest.raises(UserError) as caught:
        launched_devices(Devices("cpu", 3, 1, "32-true"), asked=True)
    assert str(caught.value) == (
        "the launcher started 2 processes on this machine, and -gpus or -cpu_processes ask for 3: leave the flag out"
    )
    with pytest.raises(UserError, match=r"2 processes on this machine, and visible GPUs: 8; start as many"):
        launched_devices(gpus, asked=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert launched_devices(gpus, asked=False) == gpus


def test_ranks_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANK:
        monkeypatch.delenv(name)
    assert (global_rank(), world_size(), local_world_size()) == (0, 1, 1)
    variables = {"JOB_ID": "12", "STEP_ID": "3", "PROCID": "5", "STEP_NUM_TASKS": "6", "STEP_NUM_NODES": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert (global_rank(), world_size(), local_world_size(), launch_id()) == (5, 6, 3, "12 3 -")
