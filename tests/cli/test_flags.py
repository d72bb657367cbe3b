"""Command lines: help, spellings, and the defaults of the original tool's flags."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import time
from typing import Any

import pytest

import train
from config.flags.export import ExportConfig
from config.flags.inference import InferenceConfig
from config.flags.train import TrainConfig
from config.parser import flag_groups, help_text, information, parse_flags, to_dict
from tests.cli.command import ROOT, environment, run

# ---- help


@pytest.mark.parametrize("script", ["train.py", "inference.py"])
@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_answers_without_importing_torch(script: str, word: str) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", script, word],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    print(f"{script} {word}: {time.monotonic() - began:.2f} s")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert done.returncode == 0
    assert not imported & {"torch", "transformers", "pytorch_lightning", "datasets", "sklearn", "sacrebleu"}
    assert done.stdout.startswith(f"usage: python {script} ")
    config_class = TrainConfig if script == "train.py" else InferenceConfig
    config, _, _ = parse_flags(config_class, [])
    lines = done.stdout.splitlines()
    for name in to_dict(config):
        assert [line for line in lines if line.startswith((f"  -{name} ", f"  -{name}, "))], name


@pytest.mark.parametrize("config_class", [TrainConfig, InferenceConfig])
def test_every_flag_states_its_default(config_class: Any) -> None:
    sections = [" ".join(part.split()) for part in help_text(config_class, "usage").split("\n  -")[1:]]  # one a flag
    specs = [spec for group in flag_groups(config_class).values() for spec in group]
    assert [re.split("[ ,]", section)[0] for section in sections] == [spec.name for spec in specs]
    for spec, section in zip(specs, sections, strict=True):
        told = r"\(required\)" if spec.required else r"\(default: [^)]+\)"
        assert bool(re.search(told, section)) == (spec.required or spec.default not in ("", ())), spec.name


def test_names_are_not_broken_and_examples_come_first() -> None:
    lines = help_text(TrainConfig, train.USAGE).splitlines()
    assert any("bart-mini" in line for line in lines if line.startswith("        "))
    assert lines[3].startswith("  python train.py -train_data train.tsv ")


@pytest.mark.parametrize("script", sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "task_utils"))
def test_help_is_no_wider_than_a_terminal_of_80_columns(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert importlib.import_module(script).main(["-h"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert lines[0].startswith(f"usage: python {script}.py ")


def test_choices_are_broken_between_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page = help_text(TrainConfig, train.USAGE)
    assert "  -lr_scheduler {cosanneal|linear|cyclic|constant|inverse_sqrt|\n    flat_inverse_sqrt|cosine|" in page


@pytest.mark.parametrize("word", ["--version", "-version"])
def test_the_version_is_that_of_the_project(word: str) -> None:
    for command in (TrainConfig, InferenceConfig, ExportConfig):
        assert (
            information(command, "usage", [word])
            == "seq2seq-finetuner "
            + re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
        )  # type: ignore[index]


# ---- the flags of the original tool

ORIGINAL_TRAIN = {
    "task": ("seq2seq", "nsmc-naive", "nsmc-naive"),
    "valid_data_proportions": (0.0, "0.1", 0.1),
    "test_data_proportions": (0.0, "0.1", 0.1),
    "max_seq_length": (0, "128", 128),
    "do_truncate": (True, "false", False),
    "seed": (123456, "-1", -1),
    "batch_size": (48, "8", 8),
    "config_path": ("", "bart-mini", "bart-mini"),
    "init_model": ("", "google/byt5-small", "google/byt5-small"),
    "tokenizer": ("", "bytes", "bytes"),
    "resume_checkpoint": ("", "last", "last"),
    "grad_acc": (1, "4", 4),
    "max_epoch": (4, "1", 1),
    "optim": ("adam", "adafactor", "adafactor"),
    "learning_rate": (None, "1e-4", 1e-4),  # None: 1e-4 for adam, automatic for adafactor
    "lr_scheduler": ("cosanneal", "linear", "linear"),
    "warmup_steps": (0.0, "100", 100.0),
    "optim_cosanneal_gamma": (0.75, "0.5", 0.5),
    "optim_cosanneal_restarts": (4, "2", 2),
    "optim_cosanneal_min_lr": (1e-7, "1e-8", 1e-8),
    "weight_decay": (0.0, "0.01", 0.01),
    "grad_clip": (1.0, "0", 0.0),
    "save_path": ("", "runs/x", "runs/x"),
    "save_every": (0, "100", 100),
    "save_every_hour": (1.0, "2", 2.0),
    "save_last_k": (2, "3", 3),
    "valid_check_interval": (1.0, "0.25", 0.25),
    "gpus": (-1, "0", 0),  # -1: all that are visible, else the CPU
    "strategy": ("auto", "ddp", "ddp"),
    "float_precision": ("auto", "16", "16"),
    "tuning_method": ("finetune", "finetune", "finetune"),
    "gradient_checkpointing": (False, "1", True),
    "train_data": ([], "a.tsv", ["a.tsv"]),
    "valid_data": ([], "a.tsv", ["a.tsv"]),
    "test_data": ([], "a.tsv:10", ["a.tsv:10"]),
    "freeze": ([], "encoder", ["encoder"]),
}
ORIGINAL_INFERENCE = {
    "model": ([], "x.ckpt", ["x.ckpt"]),
    "tokenizer": ("", "t", "t"),
    "task": ("", "nsmc-naive", "nsmc-naive"),
    "train_data": ([], "a.tsv", ["a.tsv"]),
    "valid_data": ([], "a.tsv", ["a.tsv"]),
    "test_data": ([], "a.tsv", ["a.tsv"]),
    "valid_data_proportions": (0.0, "0.1", 0.1),
    "test_data_proportions": (0.0, "0.1", 0.1),
    "max_seq_length": (0, "128", 128),
    "do_truncate": (True, "no", False),
    "save_output": ("", "o.txt", "o.txt"),
    "save_label": ("", "l.txt", "l.txt"),
    "seed": (123456, "1", 1),
    "batch_size": (128, "1", 1),
    "gpus": (-1, "1", 1),
    "float_precision": ("auto", "16", "16"),
    "beam_size": (1, "4", 4),
    "max_predict_length": (0, "128", 128),
}
ORIGINAL = [(TrainConfig, name, *values) for name, values in ORIGINAL_TRAIN.items()]
ORIGINAL += [(InferenceConfig, name, *values) for name, values in ORIGINAL_INFERENCE.items()]


@pytest.mark.parametrize(("config_class", "name", "default", "text", "value"), ORIGINAL)
def test_original_flags_are_accepted(config_class: Any, name: str, default: Any, text: str, value: Any) -> None:
    config, given, _ = parse_flags(config_class, [])
    assert to_dict(config)[name] == default
    assert given == frozenset()
    for tokens in ([f"-{name}", text], [f"--{name.replace('_', '-')}", text], [f"-{name}={text}"]):
        config, given, problems = parse_flags(config_class, tokens)
        assert [problem for problem in problems if f"-{name}" in problem.split()[0]] == []
        assert to_dict(config)[name] == value
        assert given == {name}


def test_alias_repeats_and_bare_booleans() -> None:
    tokens = ["-optimizer", "adafactor", "-train_data", "a", "-train_data", "b", "-overwrite", "-do_truncate", "False"]
    config, given, problems = parse_flags(
        TrainConfig, [*tokens, "-save_path", "x", "-batch_size", "1", "-batch_size=2"]
    )
    assert problems == []
    assert (config.optim.optim, config.data.train_data, config.run.overwrite) == ("adafactor", ("a", "b"), True)
    assert (config.length.do_truncate, config.batch.batch_size) == (False, 2)
    assert given == {"optim", "train_data", "overwrite", "do_truncate", "save_path", "batch_size"}


def test_values_that_look_like_flags() -> None:
    tokens = ["-input_template", "-{{ source }}", "-seed", "-5", "-label_map", "0=-a", "-save_path=-x"]
    config, _, problems = parse_flags(TrainConfig, tokens)
    assert problems == []
    assert (config.data.input_template, config.run.seed) == ("-{{ source }}", -5)
    assert (config.data.label_map, config.run.save_path) == ("0=-a", "-x")
    _, _, problems = parse_flags(TrainConfig, ["-save_path", "-seed", "1"])
    assert problems[0].startswith("-save_path needs a value: ")


def test_without_its_environment_a_command_says_how_to_get_it() -> None:
    flags = ("-train_data", "samples/text_normalization/train.tsv", "-config_path", "bart-mini", "-save_path", "runs/x")
    result = run(sys.executable, "-S", "train.py", *flags)  # -S: no installed packages
    assert (result.code, result.out, len(result.errors)) == (2, "", 1)
    assert re.fullmatch(
        r"the package (jinja2|yaml) is not installed for \S+; first run: (source|\S+ -m pip) .+", result.errors[0]
    )
