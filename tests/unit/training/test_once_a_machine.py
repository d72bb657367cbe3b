"""What only the first process of a machine does: the check of a checkpoint, and the drawing of weights."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from models.loading import from_config, is_untied, undrawn
from tests.small_configs import CONFIGS
from training.strategies import cluster
from utils.errors import RunError


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Threads whose names end in their local ranks stand for the processes of torchrun."""
    monkeypatch.setenv("RANK", "4")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(cluster, "local_rank", lambda: int(threading.current_thread().name.rpartition("_")[2]))
    return monkeypatch


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize("whole", [True, False])
def test_the_others_take_the_word_of_the_first(whole: bool) -> None:
    """They wait until it has checked; what it does not find whole each checks by itself, and says so alike."""
    began = threading.Barrier(4)
    done: list[bool] = []

    def read(checked: bool) -> str:
        if not checked:
            done.append(checked)
            if not whole:
                raise RunError("torn")
        return "read"

    def process() -> str:
        began.wait()
        return cluster.checked_once(f"a checkpoint, {whole}", read)

    with ThreadPoolExecutor(4, thread_name_prefix="rank") as pool:
        futures = [pool.submit(process) for _ in range(4)]
    found = [str(future.exception() or future.result()) for future in futures]
    assert found == ["read" if whole else "torn"] * 4
    assert len(done) == (1 if whole else 4)


def test_without_a_word_a_process_checks_by_itself(ranks: pytest.MonkeyPatch) -> None:
    ranks.setattr(cluster, "SECONDS_FOR_THE_FIRST", 0.0)
    with ThreadPoolExecutor(1, thread_name_prefix="rank_1") as pool:
        pool.submit(lambda: threading.current_thread().name).result()
        ranks.setattr(cluster, "local_rank", lambda: 1)
        assert pool.submit(cluster.checked_once, "nobody", lambda checked: checked).result() is False
    ranks.delenv("RANK")
    assert cluster.checked_once("started by itself", lambda checked: checked) is False


@pytest.mark.parametrize("name", ["t5", "t5-untied", "bart"])
def test_a_model_that_gets_its_weights_is_the_same_and_draws_none(name: str) -> None:
    drawn = from_config(CONFIGS[name], seed=3)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with undrawn():
        built = from_config(CONFIGS[name], seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert is_untied(built) == is_untied(drawn)
    assert len(list(built.parameters())) == len(list(drawn.parameters()))
    shapes = [{name: (value.shape, value.dtype) for name, value in one.state_dict().items()} for one in (built, drawn)]
    assert shapes[0] == shapes[1]
    assert built.config.to_dict() == drawn.config.to_dict()
