"""What a resumed run is compared with."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from config.flags.model import TrainModelFlags
from config.flags.optim import OptimFlags
from config.flags.train import TrainConfig
from config.parser import to_dict
from task_utils import get_task
from tests.saved_runs import saved_run
from training.resuming import changed_words, check_same, environment, flag_differences, plan_differences
from utils.devices import Devices
from utils.differences import Difference, difference_table
from utils.errors import UserError

TASK = get_task("nsmc-naive")


def config_with(**run: Any) -> TrainConfig:
    config = TrainConfig()
    return replace(config, run=replace(config.run, **run))


def test_columns_of_differences_stand_below_each_other_whatever_the_letters() -> None:
    """A letter of Hangul is two cells wide."""
    found = [Difference("-input_template", "읽기: {{ source }}", "x"), Difference("-seed", 1, 2)]
    assert difference_table(found).splitlines() == [
        "  what             checkpoint          now",
        "  -input_template  읽기: {{ source }}  x",
        "  -seed            1                   2",
    ]


@pytest.mark.parametrize(
    ("monitor", "expected"),
    [("val_loss", []), ("exact_match", [Difference("-valid_generate_rows", 10, 200)])],
)
def test_scores_of_other_generated_rows_are_not_compared(monitor: str, expected: list[Difference]) -> None:
    saved = config_with(monitor=monitor, valid_generate_rows=10)
    resumed = saved_run(state={"flags": to_dict(saved), "task": TASK.to_dict()})
    assert flag_differences(resumed, config_with(monitor=monitor, valid_generate_rows=200), [TASK]) == expected


@pytest.mark.parametrize(
    ("optim", "before", "now", "expected"),
    [
        ("adam", None, 1e-4, []),
        ("adam", 1e-4, None, []),
        ("adam", None, 1e-3, [Difference("-learning_rate", 1e-4, 1e-3)]),
        ("adafactor", None, 1e-3, [Difference("-learning_rate", "automatic", 1e-3)]),
    ],
)
def test_the_rate_in_force_is_compared(
    optim: str, before: float | None, now: float | None, expected: list[Difference]
) -> None:
    saved, present = (
        replace(TrainConfig(), optim=OptimFlags(optim=optim, learning_rate=rate)) for rate in (before, now)
    )
    resumed = saved_run(state={"flags": to_dict(saved), "task": TASK.to_dict()})
    assert flag_differences(resumed, present, [TASK]) == expected


def test_force_does_not_make_another_adapter_of_a_checkpoint() -> None:
    """It would say so, and go on with the same one."""
    resumed = saved_run(state={"flags": to_dict(TrainConfig()), "task": TASK.to_dict()})
    for model, refused in ((TrainModelFlags(freeze=("encoder",)), False), (TrainModelFlags(lora_r=4), True)):
        config = replace(config_with(resume_checkpoint="last", resume_force=True), model=model)
        with pytest.raises(UserError, match="-resume_force cannot change") if refused else nullcontext():
            check_same(flag_differences(resumed, config, [TASK]), config)


@pytest.mark.parametrize(("deterministic", "told"), [(False, 1), (True, 0)])
def test_a_gpu_promises_bits_only_where_its_sums_have_one_order(
    deterministic: bool, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads mean nothing there; a checkpoint of an older version says nothing of the order."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    devices = Devices("cuda", 1, 1, "bf16-mixed", deterministic=deterministic)
    config = replace(TrainConfig(), device=replace(TrainConfig().device, deterministic=deterministic))
    saved = {**environment(devices), "threads": 77, "deterministic": deterministic}
    resumed = replace(saved_run(state={"flags": to_dict(config)}), environment=saved)
    lines = changed_words(resumed, config, devices)
    words = "a GPU adds in another order every time without -deterministic, so that the weights need not be those of"
    assert [line.startswith(words) for line in lines] == [True] * told
    del saved["deterministic"]
    changed = "deterministic was False and is True now: sums may be rounded differently from here"
    found = changed_words(replace(resumed, environment=saved), config, devices)
    assert [line.startswith(changed) for line in found if line not in lines] == [True] * deterministic


def test_the_arithmetic_is_compared_where_the_checkpoint_says_it() -> None:
    """-float_precision 16 is bf16 on one GPU and fp16 on another."""
    now = {"-seed": 1, "-float_precision": "fp16"}
    of = {"-seed": 1, "-float_precision": "bf16-mixed"}
    expected = [Difference("-float_precision", "bf16", "fp16")]
    assert plan_differences(saved_run(fingerprint=of), now) == expected
    assert plan_differences(saved_run(fingerprint={"-seed": 1}), now) == []


@pytest.mark.parametrize(("saved", "now"), [("a1", "b2"), ("a1", "none"), ("none", "b2"), ("none", "none")])
def test_the_teacher_is_compared_as_data_is_and_its_place_is_not(saved: str, now: str) -> None:
    before, present = (
        {"-float_precision": "32"} | ({} if one == "none" else {"-teacher": one}) for one in (saved, now)
    )
    expected = [] if saved == now else [Difference("-teacher", saved, now)]
    assert plan_differences(saved_run(fingerprint=before), present) == expected
