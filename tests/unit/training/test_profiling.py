"""The table of -profile: each moment belongs to the innermost part, each kernel to the part that launched it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from training.profiling import PREFIX, part_table


def event(name: str, start: float, end: float, kernels: tuple[float, ...] = (), annotation: bool = False) -> Any:
    """One of a trace, in milliseconds."""
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=1e3 * start, end=1e3 * end),
        device_type=SimpleNamespace(name="CPU"),
        kernels=[SimpleNamespace(duration=1e3 * length) for length in kernels],
        is_user_annotation=annotation,
    )


def part(name: str, start: float, end: float, kernels: tuple[float, ...] = ()) -> Any:
    return event(PREFIX + name, start, end, kernels, annotation=True)


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
    """Kernels of the backward pass are launched by another thread, and the parts bear those of all within."""
    launched = [
        part("forward", 20, 40, (99.0,)),
        event("aten::mm", 30, 31, (12.0, 8.0)),
        event("aten::mm", 45, 46, (50.0,)),
        event("aten::mm", 300, 310, (77.0,)),  # of a validation
        event("cudaStreamSynchronize", 92, 98),
        event("cudaStreamSynchronize", 300, 310),
    ]
    assert part_table([*STEPS[:3], STEPS[4], *launched], 1) == [
        "             program, ms  share  GPU, ms  share",
        "  data              10.0    10%      0.0     0%",
        "  forward           20.0    20%     20.0    20%",
        "  backward          30.0    30%     50.0    50%",
        "  optimizer         20.0    20%      0.0     0%",
        "  waiting            6.0     6%     30.0    30%",
        "  other             14.0    14%      0.0     0%",
        "  step             100.0   100%    100.0   100%",
    ]
