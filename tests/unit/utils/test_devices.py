"""Which processes a run is made of, in a SLURM job too, and how many threads each of them has."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from training.lightning_loop import _Launcher
from training.strategies.cluster import cluster_environment
from utils.devices import Devices, ShortWaits, _busy_seconds, _cores, check_launcher, resolve_devices, use_threads
from utils.errors import UserError
from utils.launch import local_rank, started_by_launcher

TWO = Devices("cpu", 2, 1, "32-true")
STARTED_BY_SRUN = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_NNODES": "1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
}


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The variables of a batch script that asked for two tasks; to add those of srun."""
    for name in [name for name in os.environ if name.startswith("SLURM_") or name == "RANK"]:
        monkeypatch.delenv(name)
    for name, value in {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_without_srun_the_first_process_starts_the_others(slurm: pytest.MonkeyPatch) -> None:
    check_launcher(TWO)
    assert not started_by_launcher()
    assert type(cluster_environment(TWO)).__name__ == "LightningEnvironment"
    slurm.setenv("TORCHELASTIC_RUN_ID", "run")
    assert cluster_environment(TWO) is None
    slurm.delenv("TORCHELASTIC_RUN_ID")
    slurm.delenv("SLURM_JOB_ID")
    assert cluster_environment(TWO) is None


def test_tasks_of_srun_are_the_processes(slurm: pytest.MonkeyPatch) -> None:
    for name, value in STARTED_BY_SRUN.items():
        slurm.setenv(name, value)
    slurm.setenv("SLURM_NTASKS_PER_NODE", "2")
    check_launcher(TWO)
    assert started_by_launcher()
    environment = cluster_environment(TWO)
    assert type(environment).__name__ == "SLURMEnvironment"
    assert environment is not None
    environment.validate_settings(num_devices=2, num_nodes=1)
    assert (environment.world_size(), environment.global_rank(), environment.local_rank()) == (2, 1, 1)


WRONG_TASKS = {
    "too many": (
        {"SLURM_STEP_NUM_TASKS": "4"},
        "srun started 4 tasks on 1 nodes, and -gpus, -cpu_processes and -num_nodes make 2 on 1: give the same numbers,"
        " or start one task on one node, which starts the others itself",
    ),
    "too many nodes": (
        {"SLURM_NNODES": "2"},
        "srun started 2 tasks on 2 nodes, and -gpus, -cpu_processes and -num_nodes make 2 on 1: give the same numbers,"
        " or start one task on one node, which starts the others itself",
    ),
    "unevenly": (
        {"SLURM_LOCALID": "2"},
        "srun started more tasks on one node than on another: srun --ntasks-per-node=2",
    ),
}


@pytest.mark.parametrize("what", WRONG_TASKS)
def test_other_tasks_than_devices_are_refused(slurm: pytest.MonkeyPatch, what: str) -> None:
    changes, message = WRONG_TASKS[what]
    for name, value in {**STARTED_BY_SRUN, **changes}.items():
        slurm.setenv(name, value)
    with pytest.raises(UserError) as refused:
        check_launcher(TWO)
    assert str(refused.value) == message


def test_other_processes_of_torchrun_than_devices_are_refused(slurm: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        slurm.setenv(name, value)
    check_launcher(TWO)
    slurm.setenv("LOCAL_WORLD_SIZE", "1")
    check_launcher(Devices("cpu", 1, 2, "32-true"))
    with pytest.raises(UserError) as refused:
        check_launcher(TWO)
    assert str(refused.value) == (
        "the launcher started 2 processes, 1 of them on this machine, and -gpus, -cpu_processes and -num_nodes make 2,"
        " 2 on each: give the same numbers (torchrun --nnodes 1 --nproc-per-node 2)"
    )


THREADS = {  # processes, resumed, OMP_NUM_THREADS -> threads on 8 processors; torch has 5 of its own accord
    "one process": (1, 0, None, 8),
    "one process, told": (1, 0, "3", 5),
    "two processes": (2, 0, None, 4),
    "two processes under torchrun": (2, 0, "1", 4),
    "resumed": (2, 3, None, 3),
}


@pytest.mark.parametrize("case", THREADS)
def test_threads_are_shared_out_and_stay(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Also when the launcher of Lightning, which shares them out anew, begins."""
    processes, resumed, told, expected = THREADS[case]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setenv("LOCAL_RANK", "0")  # nothing to start
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        devices = Devices("cpu", processes, 1, "32-true")
        assert use_threads(devices, resumed) == expected
        assert _Launcher(LightningEnvironment(), processes, 1).launch(torch.get_num_threads) == expected
    finally:
        torch.set_num_threads(before)


RANKS = {
    "alone": ({}, 0),
    "started by the first": ({"LOCAL_RANK": "1"}, 1),
    "by torchrun in a SLURM job": ({**STARTED_BY_SRUN, "SLURM_JOB_ID": "7", "RANK": "3", "LOCAL_RANK": "0"}, 0),
    "by srun": ({**STARTED_BY_SRUN, "SLURM_JOB_ID": "7"}, 1),
}


@pytest.mark.parametrize("case", RANKS)
def test_a_process_knows_its_device(slurm: pytest.MonkeyPatch, case: str) -> None:
    slurm.delenv("SLURM_JOB_ID")
    slurm.delenv("LOCAL_RANK", raising=False)
    variables, expected = RANKS[case]
    for name, value in variables.items():
        slurm.setenv(name, value)
    assert local_rank() == expected


def test_fp16_is_for_gpus() -> None:
    """Training and predicting tell it with the same words."""
    with pytest.raises(UserError, match=r"^-float_precision fp16: only on a GPU; on the CPU use bf16 or 32$"):
        resolve_devices(0, 0, "fp16", "")


def test_threads_wait_shortly_while_others_need_the_cores() -> None:
    """An extra team of threads is there, once, as long as others take more than the cores that ours leave them."""

    def teams() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "extra team"]

    waits = ShortWaits(spare=1)
    for others, extra in ((0.2, 0), (1.2, 0), (1.4, 1), (2.0, 1), (1.2, 1), (1.1, 0), (1.25, 0), (1.5, 1), (0.0, 0)):
        before = teams()
        waits.update(others)
        if not extra:
            for thread in before:
                thread.join(30)
        assert len(teams()) == extra, others


def test_busy_seconds_are_those_of_the_whole_machine() -> None:
    """Read a second apart beside a process that works for that second."""
    before = _busy_seconds(_cores())
    work = "import time; end = time.process_time() + 1\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", work], check=True)
    assert _busy_seconds(_cores()) - before >= 0.9


@pytest.mark.parametrize(
    ("given", "watched"), [({}, [2]), ({"GOMP_SPINCOUNT": "5"}, []), ({"OMP_WAIT_POLICY": "ACTIVE"}, [])]
)
def test_the_user_s_own_way_of_waiting_stays(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], watched: list[int]
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "environ", {**os.environ, **given})
    monkeypatch.setattr("utils.devices.share_cores", calls.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    use_threads(Devices("cpu", 1, 1, "32-true"))
    assert calls == watched
