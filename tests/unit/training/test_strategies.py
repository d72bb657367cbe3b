"""What does not go with a strategy is refused before anything is read, in a line that says what does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import PreTrainedConfig

from config.flags.run import DEEPSPEED_STRATEGIES
from config.flags.train import TrainConfig
from config.parser import parse_flags
from models.loading import config_from_dict
from tests.small_configs import config_of
from training.checks import check_train
from training.strategies.deepspeed import Zero
from training.strategies.registry import STRATEGIES
from utils.devices import Devices
from utils.errors import UserError


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("-optim adafactor", "-strategy fsdp: not with -optim adafactor, which needs whole matrices or was not tried on"
         " parts of them; give -optim adam, lion, adamwscale"),
        ("-gradient_compression bf16", "-gradient_compression bf16: not with -strategy fsdp: its parts of gradients are"
         " sent as they are"),
        ("-compile", "-compile: not with -strategy fsdp: the two were not tried together"),
        ("-attention fused", "-attention fused: not with -strategy fsdp: the two were not tried together"),
        ("-deterministic", ""),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together(flags: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("a\tb\n")
    argv = [
        "-train_data",
        str(tmp_path / "train.tsv"),
        "-config_path",
        "bart-mini",
        "-save_path",
        str(tmp_path / "run"),
    ]
    config, given, problems = parse_flags(TrainConfig, [*argv, "-strategy", "fsdp", *flags.split()])
    check_train(config, given, problems)
    assert problems == ([told] if told else [])


@pytest.mark.parametrize("strategy", DEEPSPEED_STRATEGIES)
def test_deepspeed_names_its_package_its_optimizer_and_what_it_trains(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    (tmp_path / "train.tsv").write_text("a\tb\n")
    argv = [
        "-train_data",
        str(tmp_path / "train.tsv"),
        "-config_path",
        "bart-mini",
        "-save_path",
        str(tmp_path / "run"),
    ]
    config, given, problems = parse_flags(
        TrainConfig, [*argv, "-strategy", strategy, "-freeze", "embedding", "-optim", "adamwscale"]
    )
    check_train(config, given, problems)
    frozen = [
        f"-freeze embedding: not with -strategy {strategy}: DeepSpeed takes a layer apart in the middle of its backward"
        " pass where nothing below it is trained; give -strategy fsdp or deepspeed_2"
    ]
    assert problems == [
        f"-strategy {strategy} needs the package deepspeed, which is missing; install it: pip install"
        " deepspeed==0.19.8",
        *(frozen if "deepspeed_3" in strategy else []),
        f"-strategy {strategy}: not with -optim adamwscale, which needs whole matrices or was not tried on parts of"
        " them; give -optim adam",
    ]


def test_deepspeed_is_asked_for_what_the_strategy_says() -> None:
    host = {"device": "cpu", "pin_memory": True}
    asked = {}
    for name in DEEPSPEED_STRATEGIES:
        strategy = STRATEGIES[name]
        assert isinstance(strategy, Zero)
        config = strategy.settings.config(accumulate=3, grad_clip=0.5, pinned=True)
        assert (config["gradient_accumulation_steps"], config["gradient_clipping"]) == (3, 0.5)
        asked[name] = {key: value for key, value in config["zero_optimization"].items() if "bucket" not in key}
    assert asked == {
        "deepspeed_1": {"stage": 1},
        "deepspeed_2": {"stage": 2},
        "deepspeed_2_fusedadam": {"stage": 2},
        "deepspeed_2_optim_offload": {"stage": 2, "offload_optimizer": host},
        "deepspeed_3": {"stage": 3},
        "deepspeed_3_full": {"stage": 3, "offload_optimizer": host, "offload_param": host},
    }


def model_config(name: str, **changes: float) -> PreTrainedConfig:
    return config_from_dict(config_of(name, **changes))


def test_models_and_devices_that_cannot_be_taken_apart() -> None:
    cpu, gpu = Devices("cpu", 2, 1, "32-true"), Devices("cuda", 2, 1, "16-mixed")
    told = []
    for strategy, config, devices in (
        ("fsdp_offload", model_config("t5-untied"), cpu),
        ("fsdp", model_config("bart"), gpu),
        ("fsdp", model_config("bart", encoder_layerdrop=0.1), cpu),
        ("deepspeed_2_fusedadam", model_config("bart"), cpu),
        ("deepspeed_3", model_config("bart"), gpu),
        ("deepspeed_1", model_config("bart", decoder_layerdrop=0.1), cpu),
    ):
        STRATEGIES["ddp"].check(config, devices)
        with pytest.raises(UserError) as caught:
            STRATEGIES[strategy].check(config, devices)
        told += caught.value.problems
    assert told == [
        "-strategy fsdp_offload: only on GPUs; on the CPU -strategy fsdp has its parts in the memory of the host",
        "-strategy fsdp: not in fp16, whose scale the processes do not share; give -float_precision bf16",
        "-strategy fsdp: not with layers that are dropped at random (encoder_layerdrop or decoder_layerdrop above 0),"
        " since every process must go through the same ones; give -strategy ddp",
        "-strategy deepspeed_2_fusedadam: only on GPUs, for which its optimizer is built; give -strategy deepspeed_2",
        "-strategy deepspeed_3: not in fp16, which was not tried with it; give -float_precision bf16",
        "-strategy deepspeed_1: not with layers that are dropped at random (encoder_layerdrop or decoder_layerdrop"
        " above 0), since every process must go through the same ones; give -strategy ddp",
    ]
    STRATEGIES["fsdp"].check(model_config("t5-untied"), cpu)
