"""`-compile`: what both commands need of it, and training steps through `torch.compile`, block by block.

What was compiled serves every block of its kind (encoder or decoder), any number of rows, and in a decoder sources of
any length. It is compiled anew for the padded length of an encoder's sources, of a decoder's targets, for a single row,
and where PyTorch chooses its code by the number of rows. Beyond `MOST` compilations blocks run as they are written.
Parameters, state dict, hooks and copies of the model stay as they were.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from models.architectures import architecture
from models.kernels.accelerate import blocks
from utils.errors import RunError, UserError, first_line
from utils.tables import counted

PADDED_TO = 64  # tokens: the lengths of a batch are rounded up to it, so that there are few of them
MOST = 64  # compilations of a process; what comes beyond them runs uncompiled


class CompiledBlocks:
    """The blocks of `model`, compiled for `device` (cpu or cuda) while `on`; counts compilations and their seconds."""

    def __init__(self, model: nn.Module, device: str, most: int = MOST) -> None:
        self.on = False
        self.most = most
        self.seconds = 0.0
        self._began = 0.0
        self._before = graphs()
        torch._dynamo.callback.on_compile_start(self._start)
        torch._dynamo.callback.on_compile_end(self._end)
        for block in blocks(model):
            block.always_shared = True
            compiled = compiled_for(device, block._call_impl, most, dynamic=False)
            block._compiled_call_impl = partial(self._run, block._call_impl, compiled)

    @property
    def compilations(self) -> int:
        """How often a block was compiled."""
        return graphs() - self._before

    def describe(self) -> str:
        """Compilations and their cost in words."""
        limit = f"; other batches run uncompiled (at most {self.most})" if self.compilations >= self.most else ""
        return f"-compile: {counted(self.compilations, 'compilation')} took {self.seconds:,.1f} s{limit}"

    def _run(self, plain: Callable[..., Any], compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.on:
            return plain(*args, **kwargs)
        rows = len(args[0])
        for tensor, sizes in _tensors(args, kwargs):
            if rows > 1 and len(tensor) == rows:
                torch._dynamo.mark_dynamic(tensor, 0)
            for place in sizes:
                torch._dynamo.mark_dynamic(tensor, place)
        return compiled(*args, **kwargs)

    def _start(self, _: Any) -> None:
        self._began = time.monotonic()

    def _end(self, _: Any) -> None:
        self.seconds += time.monotonic() - self._began


def _tensors(args: Any, kwargs: Any) -> list[tuple[Tensor, tuple[int, ...]]]:
    """The tensors among a block's inputs, and which sizes of them are free besides that of the batch.

    In a decoder the encoder's states are the second tensor of three dimensions, and their mask comes after them.
    """
    found: list[tuple[Tensor, tuple[int, ...]]] = []
    of_encoder = False
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor):
            of_encoder = of_encoder or (bool(found) and leaf.dim() == 3)
            found.append((leaf, (1 if leaf.dim() == 3 else leaf.dim() - 1,) if of_encoder else ()))
    return found


def graphs() -> int:
    """How often this process has compiled."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def compiled_for(device: str, function: Callable[..., Any], most: int = MOST, **options: Any) -> Callable[..., Any]:
    """Give `torch.compile(function, **options)` for `device` (cpu or cuda), at most so often in this process.

    On a CPU nothing is kept for later processes: the library or the precompiled header that a killed one was writing
    would be taken for whole.

    Raises:
        RunError: when it is called, where the compiler is there and does not work.
    """
    if device == "cpu":
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = _own_folder().name
        torch._inductor.config.cpp_cache_precompile_headers = False  # one folder for all processes
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = most
    torch.fx.experimental._config.use_duck_shape = False  # that two sizes are the same is chance
    compiled = torch.compile(function, **options)

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(*args, **kwargs)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise compiler_failed(error) from error

    return run


@cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """Where this process keeps what it compiled, to its end."""
    return tempfile.TemporaryDirectory(prefix="compiled_")


def compiler_failed(error: torch._dynamo.exc.BackendCompilerFailed) -> RunError:
    """What to raise where the compiler is there and does not work: what it said, and the way out."""
    output = str(error).partition("Output:\n")[2]
    words = ": ".join((first_line(error), *output.strip().splitlines()[:1]))
    return RunError(f"-compile: nothing can be compiled here ({words}): mend that, or leave -compile out")


def check_compiler(device: str, model_type: str) -> None:
    """Raise `UserError` where the machine lacks what `torch.compile` needs for `device` (cpu or cuda), or for a model
    that was not tried."""
    if architecture(model_type).experts:
        raise UserError(f"-compile: not with a {model_type} model, whose experts were not tried; leave it out")
    if device == "cuda" and not find_spec("triton"):
        raise UserError("-compile: needs Triton on a GPU: pip install triton, or leave -compile out")
    variable, names = ("CC", ("gcc", "clang")) if device == "cuda" else ("CXX", ("g++",))
    names = (os.environ[variable],) if variable in os.environ else names
    if not any(map(shutil.which, names)):
        named = " or ".join(names) or f"{variable}=''"
        raise UserError(
            f"-compile: needs a compiler, and {named} is not found: install one, name yours in the"
            f" environment variable {variable}, or leave -compile out"
        )
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if not headers.exists():
        raise UserError(f"-compile: needs {headers}: install Python's headers (python3-dev), or leave -compile out")
