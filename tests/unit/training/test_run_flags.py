"""A run goes on in its own folder without its flags being given again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from checkpoints.run_folder import CONFIG_NAME
from config.flags.train import TrainConfig
from config.parser import parse_flags, to_dict
from training.checks import check_train, parse_training_flags
from utils.errors import UserError

RUN = ["-train_data", "a b.tsv", "-train_data", "-c.tsv", "-config_path", "bart-mini", "-learning_rate", "3e-05"]
RUN += ["-do_truncate", "false", "-max_steps", "3", "-seed", "-7", "-input_template", "가= {{ source }}", "-overwrite"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a checkpoint and a config.json."""
    (tmp_path / "saved_checkpoints").mkdir()
    (tmp_path / "saved_checkpoints" / "last.ckpt").touch()
    write(tmp_path)
    return tmp_path


def write(run: Path, **changes: Any) -> None:
    config, _, problems = parse_flags(TrainConfig, [*RUN, "-save_path", str(run)])
    assert problems == []
    (run / CONFIG_NAME).write_text(json.dumps({**to_dict(config), "resolved": {"steps": 1}, **changes}))


@pytest.mark.parametrize("value", ["last", "auto", "best"])
def test_flags_that_are_not_given_are_those_of_the_run(run: Path, value: str) -> None:
    argv = ["-save_path", str(run), "-resume_checkpoint", value, "-max_epoch", "9", "-seed", "5"]
    config, given, lines, problems = parse_training_flags(TrainConfig, argv)
    assert problems == []
    assert given == {"save_path", "resume_checkpoint", "max_epoch", "seed"}
    # The model is the checkpoint's, and -overwrite was of that one command.
    expected, _, _ = parse_flags(TrainConfig, [*RUN, *argv, "-config_path", "", "-overwrite", "false"])
    assert config == expected
    assert lines == [
        f"flags of {run / CONFIG_NAME}: -train_data 'a b.tsv' -train_data -c.tsv -input_template '가= {{{{ source }}}}'"
        " -do_truncate false -learning_rate 3e-05 -max_steps 3"
    ]


@pytest.mark.parametrize("value", ["", "auto", "other.ckpt"])
def test_a_run_that_does_not_go_on_has_its_own_flags(run: Path, value: str) -> None:
    (run / "saved_checkpoints" / "last.ckpt").unlink()
    argv = ["-save_path", str(run), "-resume_checkpoint", value]
    config, _, lines, _ = parse_training_flags(TrainConfig, argv)
    assert (config, lines) == (parse_flags(TrainConfig, argv)[0], [])


def test_values_and_names_that_are_not_of_this_version(run: Path) -> None:
    write(run, max_epoch="two", optim="sgd", label_map=["a"], freeze="encoder", depth=3, width=4)
    _, _, lines, problems = parse_training_flags(TrainConfig, ["-save_path", str(run), "-resume_checkpoint", "last"])
    path = run / CONFIG_NAME
    assert problems == [
        f"{path}: label_map is ['a'], which is no value of this flag",
        f"{path}: max_epoch is two, which is no value of this flag",
        f"{path}: -optim sgd: one of adam, adafactor, adam8, lion, muon, schedulefree, adamwscale expected",
    ]
    assert lines[1] == f"{path} has flags that this version does not know: depth, width"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read (Expecting property name"),
        ("[" * 100_000, "cannot be read (nested deeper than 100 levels"),
        ('{"a": 1}', "does not hold the flags of a run"),
        ("[1]", "does not hold the flags of a run"),
    ],
    ids=["torn", "deep", "foreign", "list"],
)
def test_a_config_that_cannot_be_read_is_one_error(run: Path, content: str, reason: str) -> None:
    (run / CONFIG_NAME).write_text(content)
    with pytest.raises(UserError) as refused:
        parse_training_flags(TrainConfig, ["-save_path", str(run), "-resume_checkpoint", "last"])
    (problem,) = refused.value.problems
    assert problem.startswith(f"-save_path {run}: config.json {reason}")
    assert problem.endswith("; delete it, and give every flag of the run")


def told(argv: list[str]) -> list[str]:
    """The problems of a command line."""
    config, given, _, problems = parse_training_flags(TrainConfig, argv)
    check_train(config, given, problems)
    return problems


def test_files_that_the_saved_flags_name_are_told_with_their_place(run: Path) -> None:
    argv = ["-save_path", str(run), "-resume_checkpoint", "last"]
    place = f"{run / CONFIG_NAME}: -train_data"
    assert told(argv) == [f"{place}: a b.tsv: no such file", f"{place}: -c.tsv: no such file"]
    assert told([*argv, "-train_data", "d.tsv"]) == ["-train_data: d.tsv: no such file"]


def test_a_run_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    folder = tmp_path / "typo"
    assert told(["-save_path", str(folder), "-resume_checkpoint", "last"]) == [
        f"-resume_checkpoint last: no such file: {folder}/saved_checkpoints/last.ckpt, nor any other checkpoint there"
    ]
