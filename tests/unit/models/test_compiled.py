"""`-compile`: blocks give what they give uncompiled, a bounded number of compilations serves all batches.

The blocks are traced, and no code is generated for them: a C++ compiler needs half a minute for the first.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from datamodules.collate import collate
from models.kernels.accelerate import accelerate
from models.kernels.compiled import CompiledBlocks, check_compiler, compiled_for, compiler_failed
from models.loading import from_config
from models.losses.objective import batch_loss
from tests.small_configs import config_of
from training.setup import check_padded
from utils.errors import RunError, UserError


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """As in a new process."""
    config, shapes = torch._dynamo.config, torch.fx.experimental._config
    with config.patch(), shapes.patch():
        torch._dynamo.reset()
        yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilation without a backward pass of its own, in a part of the time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def gradients(model: PreTrainedModel, rows: int, length: int, precision: torch.dtype = torch.float32) -> Tensor:
    """All gradients of a batch of `rows` rows, of which the longest has `length` tokens."""
    random = np.random.default_rng(rows)
    lengths = [length, *random.integers(1, length, rows - 1)]
    batch = collate([(random.integers(3, 384, n), random.integers(3, 384, 5)) for n in lengths], 0, 64)
    model.zero_grad()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        loss, _ = batch_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.cat([part.grad.flatten() for part in model.parameters() if part.grad is not None])


def both(kind: str, **options: Any) -> tuple[PreTrainedModel, PreTrainedModel, CompiledBlocks]:
    """A model as it is, its copy with compiled blocks, and these."""
    plain = from_config(config_of(kind), seed=1).train()
    accelerate(plain)
    compiled = copy.deepcopy(plain)
    blocks = CompiledBlocks(compiled, "cpu", **options)
    blocks.on = True
    return plain, compiled, blocks


def assert_same(got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape
    assert (got - wanted).norm() <= 1e-5 * wanted.norm()


def test_a_compiled_model_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, compiled, blocks = both("t5")
    assert_same(gradients(compiled, 3, 100), gradients(plain, 3, 100))
    assert_same(gradients(compiled, 5, 70), gradients(plain, 5, 70))
    assert blocks.compilations == 2  # encoder and decoder, each of two layers
    assert blocks.describe().startswith("-compile: 2 compilations took ")


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_compilation_serves_any_rows_and_in_decoders_any_source(kind: str) -> None:
    plain, compiled, blocks = both(kind)
    for rows, length in ((3, 100), (64, 40), (5, 40), (9, 80)):
        assert_same(gradients(compiled, rows, length), gradients(plain, rows, length))
    assert blocks.compilations == 3  # encoder of 128 and of 64 tokens, decoder
    assert_same(gradients(compiled, 1, 40), gradients(plain, 1, 40))
    assert blocks.compilations == 5  # a single row is a kind of its own


@pytest.mark.usefixtures("traced")
def test_beyond_the_limit_blocks_run_as_they_are_written() -> None:
    plain, compiled, blocks = both("t5", most=2)
    for length in (40, 100, 150, 40):
        assert_same(gradients(compiled, 3, length), gradients(plain, 3, length))
        assert blocks.compilations == 2
    assert blocks.describe().endswith("; other batches run uncompiled (at most 2)")


@pytest.mark.usefixtures("traced")
def test_bf16_and_gradient_checkpointing_compile() -> None:
    plain, compiled, _ = both("t5")
    exact, wanted = gradients(plain, 3, 100), gradients(plain, 3, 100, torch.bfloat16)
    compiled.activation_checkpointing_enable({"use_reentrant": False})
    got = gradients(compiled, 3, 100, torch.bfloat16)
    assert (got - exact).norm() <= 1.25 * (wanted - exact).norm()


@pytest.mark.usefixtures("traced")
def test_only_training_steps_compile_and_names_stay() -> None:
    plain, compiled, blocks = both("t5")
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in compiled.named_modules()] == [name for name, _ in plain.named_modules()]
    blocks.on = False
    compiled.eval().generate(torch.tensor([[5, 6, 1]]), max_new_tokens=3)
    assert blocks.compilations == 0
    again = copy.deepcopy(compiled).train()
    blocks.on = True
    assert_same(gradients(again, 3, 40), gradients(plain, 3, 40))
    assert blocks.compilations == 0


def test_a_machine_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    check_compiler("cpu", "t5")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as caught:
        check_compiler("cpu", "t5")
    assert str(caught.value) == (
        "-compile: needs a compiler, and g++ is not found: install one, name yours in the environment variable CXX,"
        " or leave -compile out"
    )
    monkeypatch.setenv("CXX", "")
    with pytest.raises(UserError, match=r"^-compile: needs a compiler, and CXX='' is not found: install one"):
        check_compiler("cpu", "t5")
    monkeypatch.setattr("models.kernels.compiled.find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=r"^-compile: needs Triton on a GPU: pip install triton, or leave -compile out$"
    ):
        check_compiler("cuda", "t5")


def test_processes_share_no_file_that_a_killed_one_may_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "shared")
    with torch._inductor.config.patch(cpp_cache_precompile_headers=True):
        compiled_for("cpu", torch.neg)
        assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).name.startswith("compiled_")
        assert not torch._inductor.config.cpp_cache_precompile_headers  # of C++; they lie in a folder of the user


def test_a_compiler_that_fails_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=full))
    _, compiled, _ = both("t5")
    with pytest.raises(RunError) as caught:
        gradients(compiled, 3, 40)
    assert str(caught.value) == (
        "-compile: nothing can be compiled here (backend='full' raised: OSError: [Errno 28] No space left on device):"
        " mend that, or leave -compile out"
    )
    failed = torch._inductor.exc.CppCompileError(["c++"], "Cannot create temporary file\n")
    assert str(compiler_failed(torch._inductor.exc.InductorError(failed, None))) == (
        "-compile: nothing can be compiled here (CppCompileError: C++ compile error: Cannot create temporary file):"
        " mend that, or leave -compile out"
    )


def test_lengths_that_the_model_has_no_positions_for_are_refused() -> None:
    config = from_config(config_of("bart", max_position_embeddings=100), seed=1).config
    train = SimpleNamespace(source_lengths=np.array([3, 64]), target_lengths=np.array([9, 65]))
    with pytest.raises(UserError) as caught:
        check_padded([SimpleNamespace(train=train, valid=None)], config)  # type: ignore[list-item]
    assert str(caught.value) == (
        "-compile pads rows of 65 tokens to a multiple of 64, and the model has positions for 100: give"
        " -max_target_length 64, or leave -compile out"
    )
    train.target_lengths = np.array([9, 64])
    check_padded([SimpleNamespace(train=train, valid=None)], config)  # type: ignore[list-item]
