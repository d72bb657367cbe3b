"""Where a benchmark computes: the CPU, a GPU, or the counting device of the tests, which says `cuda:0`."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any


class Place:
    """A device and its clock; make it before torch is imported where `name` may be `fake`.

    Args:
        name: cpu, cuda or fake; fake computes on the CPU, and its times mean nothing.
    """

    def __init__(self, name: str) -> None:
        if name == "fake":
            from tests.counting.__main__ import believe_in_the_device

            believe_in_the_device()
        import torch

        self.name = name
        self.torch = torch
        self.device = torch.device("cpu") if name == "cpu" else torch.device("cuda", 0)

    @contextmanager
    def working(self) -> Iterator[Any]:
        """Tensors may move to the device within; gives its counts on the fake one."""
        if self.name == "fake":
            from tests.counting.device import counting

            with counting() as counts:
                yield counts
        else:
            yield None

    def moved(self, model: Any) -> Any:
        """A copy of a model, on the device."""
        model = copy.deepcopy(model)
        if self.name == "fake":
            from tests.counting.device import on_device

            return on_device(model)
        return model.to(self.device)

    def arithmetic(self, ours: bool) -> None:
        """Set up a GPU as our commands do, or as PyTorch comes."""
        from utils.devices import Devices, use_arithmetic

        if self.name == "cuda":
            use_arithmetic(Devices("cuda", 1, 1, "32-true"))
            self.torch.backends.cuda.enable_cudnn_sdp(not ours)

    def bf16(self) -> AbstractContextManager[Any]:
        """Autocast to bf16."""
        return self.torch.autocast(self.device.type, self.torch.bfloat16)

    def made(self, make: Callable[[Any], Any], model: Any) -> Any:
        """Our decoder or scorer that `make` makes of a model (of a copy, beside a CPU), with its weights held as
        `inference.py` holds them: once, in the precision that is used."""
        if self.name == "cpu":
            return make(model)
        made = make(self.moved(model))
        with self.working(), self.bf16():
            made.release()
        return made

    def precision(self) -> AbstractContextManager[Any]:
        """The arithmetic that speed is measured in: bf16, on a CPU fp32."""
        return nullcontext() if self.name == "cpu" else self.bf16()

    def synchronize(self) -> None:
        """Wait until the device has done all that it was asked for."""
        if self.name == "cuda":
            self.torch.cuda.synchronize()

    def fresh(self) -> None:
        """Forget what is left over of others, and measure the peak of memory anew."""
        gc.collect()
        if self.name == "cuda":
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float | None:
        """The most memory of a GPU since `fresh`, in GB."""
        return self.torch.cuda.max_memory_allocated() / 1e9 if self.name == "cuda" else None

    def seconds(self, work: Callable[[], Any]) -> float:
        """How long `work` took, with all that the device did for it."""
        self.synchronize()
        began = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - began


class StepClock:
    """Seconds of so many steps after a warm-up; waits for the device where it is read, and nowhere else."""

    def __init__(self, place: Place, steps: int, warm_up: int) -> None:
        self.place = place
        self.steps = steps
        self.warm_up = warm_up
        self.done = 0
        self.times: list[float] = []  # at the end of the warm-up, and of the last step

    def tick(self) -> bool:
        """A step is done; whether it was the last one."""
        self.done += 1
        if self.done in (self.warm_up, self.warm_up + self.steps):
            self.place.synchronize()
            self.times.append(time.perf_counter())
        return self.done >= self.warm_up + self.steps

    @property
    def running(self) -> bool:
        """Whether the warm-up is over."""
        return self.done >= self.warm_up

    def figures(self, rows: int) -> dict[str, float]:
        """Rows a second at `rows` a step, and on a GPU the peak memory."""
        peak = self.place.peak_gb()
        speed = self.steps * rows / (self.times[-1] - self.times[0])
        return {"rows_per_second": speed, **({} if peak is None else {"peak_gb": peak})}
