"""The table of -profile: each moment belongs to the innermost part, each kernel to the part that launched it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from training.profiling import PREFIX, part_table


def event(name: str, start: float, end: float, device: str = "CPU", number: int = 0, annotation: bool = False) -> Any:
    """One of a trace, in milliseconds; a kernel has the number of the call that launched it."""
    return SimpleNamespace(
        name=name,
        id=number,
        time_range=SimpleNamespace(start=1e3 * start, end=1e3 * end, elapsed_us=lambda: 1e3 * (end - start)),
        device_type=SimpleNamespace(name=device),
        is_user_annotation=annotation,
    )


def part(name: str, start: float, end: float, device: str = "CPU") -> Any:
    return event(PREFIX + name, start, end, device, annotation=True)


def launched(name: str, call: float, start: float, end: float) -> list[Any]:
    """A kernel, and the call that launched it."""
    number = int(call)
    return [event(name, call, call + 0.01, number=number), event("kernel", start, end, "CUDA", number)]


STEPS = [  # two, of 100 and 60 ms; between them, a validation
    part("other", 0, 100),
    part("data", 0, 10),
    part("optimizer", 20, 90),
    part("forward", 20, 40),
    part("backward", 40, 70),
    part("other", 500, 560),
    part("forward", 500, 530),
]


def test_a_step_on_the_cpu() -> None:
    assert part_table(STEPS, 2) == [
        "             program, ms  share",
        "  data               5.0     6%",
        "  forward           25.0    31%",
        "  backward          15.0    19%",
        "  optimizer         10.0    12%",
        "  waiting            0.0     0%",
        "  other             25.0    31%",
        "  step              80.0   100%",
    ]


def test_a_step_on_a_gpu() -> None:
    """Kernels run later than they are launched, by whatever call and thread."""
    work = [
        *launched("cudaLaunchKernel", 30, 36, 56),
        *launched("cuLaunchKernelEx", 45, 56, 106),
        *launched("cudaLaunchKernel", 300, 301, 378),  # of a validation
        part("forward", 36, 56, "CUDA"),
        event("aten::mm", 30, 31, number=300),
        event("kernel", 106, 107, "CUDA", 9999),  # launched by a call that is not known
        event("cudaStreamSynchronize", 92, 98),
        event("cudaStreamSynchronize", 300, 310),
    ]
    assert part_table([*STEPS[:3], STEPS[4], STEPS[3], *work], 1) == [
        "             program, ms  share  GPU, ms  share",
        "  data              10.0    10%      0.0     0%",
        "  forward           20.0    20%     20.0    20%",
        "  backward          30.0    30%     50.0    50%",
        "  optimizer         20.0    20%      0.0     0%",
        "  waiting            6.0     6%     29.0    29%",
        "  other             14.0    14%      1.0     1%",
        "  step             100.0   100%    100.0   100%",
    ]
