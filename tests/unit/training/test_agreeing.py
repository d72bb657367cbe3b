"""What several processes tell each other beside their gradients: over the CPU, and without waiting at every step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.strategies import DDPStrategy

from config.flags.run import RunFlags
from training.checkpointing import Checkpointer, Request
from training.lightning_loop import OurDDP
from utils.errors import RunError


def test_all_ranks_act_on_what_was_asked_for_a_step_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The answers of a step are read at the next one, or when a validation ends; the other rank asks for a save."""
    waited: list[int] = []

    def all_reduce(answers: torch.Tensor, operation: Any, group: str, async_op: bool) -> Any:
        assert (operation, group, async_op) == (torch.distributed.ReduceOp.MAX, "over the CPU", True)
        torch.maximum(answers, torch.tensor([0, 0, 0, 1, 0]), out=answers)
        return SimpleNamespace(wait=lambda: waited.append(int(answers[0])))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    stop: Any = SimpleNamespace(received=0, save_requested=False)
    trainer: Any = SimpleNamespace(is_global_zero=True, strategy=SimpleNamespace(control_group="over the CPU"))
    strategy: Any = None
    checkpointer = Checkpointer(RunFlags(save_path=str(tmp_path)), tmp_path, {}, stop, strategy)
    assert checkpointer._agree(trainer) == Request()
    stop.received = 15
    assert checkpointer._agree(trainer) == Request(save=True)
    assert waited == [0]
    assert checkpointer._answered() == Request(15, save=True)
    assert checkpointer._answered() == Request()
    trainer.strategy.control_group = None  # alone
    assert checkpointer._agree(trainer) == Request(15)


def test_a_network_that_gloo_does_not_find_is_told_with_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def new_group(backend: str) -> None:
        assert backend == "gloo"
        raise RuntimeError("connect [10.0.0.7]:4711: No route to host\nException raised from ...")

    monkeypatch.setattr(DDPStrategy, "setup_environment", lambda _: None)
    monkeypatch.setattr(DDPStrategy, "world_size", 2)
    monkeypatch.setattr(torch.distributed, "new_group", new_group)
    with pytest.raises(RunError) as caught:
        OurDDP().setup_environment()
    assert str(caught.value) == (
        "the processes cannot reach each other over TCP (gloo: connect [10.0.0.7]:4711: No route to host): set"
        " GLOO_SOCKET_IFNAME to the network interface that the machines share, e.g. GLOO_SOCKET_IFNAME=eth0; `ip -brief"
        " address` lists them"
    )


def test_processes_that_do_not_meet_are_told_with_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def setup_environment(_: Any) -> None:
        raise torch.distributed.DistStoreError("Timed out after 1801 seconds waiting for clients. 1/2 clients joined.")

    monkeypatch.setattr(DDPStrategy, "setup_environment", setup_environment)
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(RunError) as caught:
        OurDDP().setup_environment()
    assert str(caught.value) == (
        "the processes do not find each other at node0:29500 (Timed out after 1801 seconds waiting for clients. 1/2"
        " clients joined.): start all of them, with an address of the first machine that the others reach; where"
        " machines have several networks, set GLOO_SOCKET_IFNAME and with GPUs NCCL_SOCKET_IFNAME to the interface that"
        " they share, e.g. eth0; `ip -brief address` lists them"
    )
