"""Optimizers, rates and schedules that do not go together are told in a line, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config.flags.optim import OPTIMIZERS, OptimFlags
from config.flags.run import RunFlags
from config.flags.train import TrainConfig
from config.parser import parse_flags, to_dict
from task_utils import get_task
from tests.saved_runs import saved_run
from training.checks import check_train
from training.resuming import flag_differences
from training.setup import check_gradients
from training.trainer import optim_settings
from utils.devices import Devices
from utils.differences import Difference
from utils.errors import UserError

REFUSED = {
    "-optim schedulefree -lr_scheduler linear": (
        "-lr_scheduler linear: not with -optim schedulefree, which has no schedule beyond its warm-up; leave it out"
    ),
    "-optim adafactor -scheduler_steps 5": (
        "-scheduler_steps 5 has no effect on adafactor's own rate; give -learning_rate as well"
    ),
    "-optim adafactor -embedding_learning_rate 0.1": (
        "-embedding_learning_rate 0.1 has no effect on adafactor's own rate; give -learning_rate as well"
    ),
    "-optim adafactor -adam_beta1 0.5": "-adam_beta1 0.5: not with -optim adafactor: it has no such moments",
    "-optim schedulefree -adam_beta1 0": (
        "-adam_beta1 0.0: at least 0.01 expected with -optim schedulefree, which divides by it"
    ),
    "-optim lion -adam_epsilon 0.5": "-adam_epsilon 0.5: not with -optim lion: it takes the sign alone",
    "-scheduler_steps -1": "-scheduler_steps -1: only with -max_steps: it takes its length from there",
    "-polynomial_power 2": "-polynomial_power 2.0: only with -lr_scheduler polynomial: it has a power",
    "-lr_scheduler wsd -wsd_decay_steps 2.5": "-wsd_decay_steps 2.5: whole steps, or a share below 1, expected",
    "-lr_scheduler plateau": (
        "-lr_scheduler plateau: only with validation rows: give -valid_data or -valid_data_proportions"
    ),
    "-distill_temperature 1e200": "-distill_temperature 1e200: at most 1000 expected",
    "-layerwise_lr_decay 0": "-layerwise_lr_decay 0: above 0 expected; -freeze leaves parts as they are",
    "-lr_scheduler cosine -min_learning_rate 0.1": (
        "-optim_cosanneal_min_lr 0.1 is above adam's rate 0.0001; give -learning_rate"
    ),
}


def problems_of(flags: str, folder: Path) -> list[str]:
    (folder / "data.tsv").write_text("source\ttarget\na\tb\n")
    argv = ["-train_data", str(folder / "data.tsv"), "-config_path", "bart-mini", "-save_path", str(folder / "run")]
    config, given, problems = parse_flags(TrainConfig, [*argv, *flags.split()])
    check_train(config, given, problems)
    return problems


@pytest.mark.parametrize("flags", REFUSED)
def test_combination_is_refused(flags: str, tmp_path: Path) -> None:
    assert problems_of(flags, tmp_path) == [REFUSED[flags]]


@pytest.mark.parametrize(
    "flags",
    [
        "-optim schedulefree -lr_scheduler constant",
        "-optim adafactor -learning_rate 1e-3 -embedding_learning_rate 1e-4",
        "-max_steps 5 -scheduler_steps -1",
    ],
)
def test_combination_is_taken(flags: str, tmp_path: Path) -> None:
    assert problems_of(flags, tmp_path) == []


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lion_pytorch", None)
    assert problems_of("-optim lion", tmp_path) == [
        "-optim lion needs the package lion_pytorch, which is missing; install it: pip install lion_pytorch==0.2.5"
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_in_fp16_are_taken_where_they_were_tried(name: str) -> None:
    config = replace(TrainConfig(), optim=OptimFlags(optim=name))
    check_gradients(config, Devices("cuda", 1, 1, "bf16-mixed"))
    if name in ("adam", "adafactor"):
        check_gradients(config, Devices("cuda", 1, 1, "16-mixed"))
    else:
        with pytest.raises(UserError, match=f"^-optim {name}: was not tried with the fp16 of -float_precision auto: "):
            check_gradients(config, Devices("cuda", 1, 1, "16-mixed"))


def test_the_rate_and_the_schedule_in_force() -> None:
    found = {name: optim_settings(OptimFlags(optim=name)) for name in OPTIMIZERS}
    assert {name: (one.learning_rate, one.lr_scheduler) for name, one in found.items()} == {
        "adam": (1e-4, "cosanneal"),
        "adafactor": (None, "cosanneal"),
        "adam8": (1e-4, "cosanneal"),
        "lion": (2e-5, "cosanneal"),
        "muon": (1e-4, "cosanneal"),
        "schedulefree": (3e-4, "constant"),
        "adamwscale": (1e-3, "cosanneal"),
    }


def test_a_schedule_as_long_as_max_steps_is_another_one_with_other_steps() -> None:
    def run(scheduler_steps: int, max_steps: int) -> Any:
        config = TrainConfig()
        optim = replace(config.optim, scheduler_steps=scheduler_steps)
        return replace(config, optim=optim, run=replace(RunFlags(), max_steps=max_steps))

    task = get_task("seq2seq")
    for before, now, found in (
        ((-1, 5), (-1, 9), [Difference("-scheduler_steps", 5, 9)]),
        ((-1, 5), (5, 9), []),
        ((0, 5), (0, 9), []),
    ):
        resumed = saved_run(state={"flags": to_dict(run(*before)), "task": task.to_dict()})
        assert flag_differences(resumed, run(*now), [task]) == found
