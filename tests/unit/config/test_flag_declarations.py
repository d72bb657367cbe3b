"""What a flag decides stands on its declaration alone: a new one is compared without a word about it elsewhere."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from config.checks import check_combinations
from config.flags.analyze import AnalyzeConfig
from config.flags.data import DataFlags
from config.flags.export import ExportConfig
from config.flags.inference import DecodeFlags, InferenceConfig
from config.flags.optim import OptimFlags
from config.flags.pretrain import PretrainConfig
from config.flags.retrieval.embed import EmbedConfig
from config.flags.select_rows import SelectConfig
from config.flags.serve import ServeConfig
from config.flags.train import TrainConfig
from config.flags.train_tokenizer import TokenizerConfig
from config.flags.tune import SearchConfig
from config.parser import deciding_flags, flag, flag_specs, free, help_text, parse_flags, to_dict
from prediction.run import parts_of
from prediction.setup import with_trained_settings
from task_utils import get_task
from tests.saved_runs import saved_run
from training.resuming import flag_differences
from utils.differences import Difference
from utils.errors import UserError

COMMANDS = (TrainConfig, InferenceConfig, ExportConfig)
ALL_COMMANDS = (
    *COMMANDS,
    AnalyzeConfig,
    ServeConfig,
    SelectConfig,
    SearchConfig,
    TokenizerConfig,
    PretrainConfig,
    EmbedConfig,
)
RESUMES = {"fixed", "free", "process", "once", "if given", "kept", "batches", "optimizer", "measure", "generated rows"}
RESUMES |= {"arithmetic", "never"}
TEXTS = {  # flags of a text that names no file
    *("source_column", "target_column", "review_column", "keyword_column", "sentiment_column", "group_by"),
    *("proportional_to", "source_language", "target_language", "input_template", "target_template", "label_separator"),
    *("no_keyword", "metrics", "monitor", "freeze", "target_modules", "modules_to_save", "logger", "push_to_hub"),
    *("license", "host", "allowed_host", "corpus_column", "required_chars", "mode_rates", "negative_column"),
    *("id_column", "relevant_column"),
}
WRITTEN = {"save_path", "save_output", "save_label", "save_report", "save_page", "cache_dir"}


def with_flags(config_class: type, group: str, group_class: type, **fields: Any) -> Any:
    """A command whose group has these imaginary flags as well, numbers all of them."""
    own = dataclasses.make_dataclass(
        group_class.__name__, [(name, int, made) for name, made in fields.items()], bases=(group_class,), frozen=True
    )
    made = (group, own, dataclasses.field(default_factory=own))
    return dataclasses.make_dataclass(config_class.__name__, [made], bases=(config_class,), frozen=True)


def test_a_stopped_prediction_is_not_completed_with_another_value_of_a_new_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = with_flags(InferenceConfig, "decode", DecodeFlags, depth=flag(0, "0 = off."), colour=free(0, "0 = off."))
    monkeypatch.setattr("prediction.run.tokenizer_digest", lambda _: "same")
    devices = SimpleNamespace(accelerator="cpu", arithmetic="32")

    class Rows(list[int]):
        fingerprint = "same"

        def text_digest(self) -> str:
            return "same"

    split: Any = Rows(range(3))

    def ready(*flags: str) -> Any:
        argv = ["-model", "m", "-save_output", str(tmp_path / "out.txt"), *flags]
        config, _, problems = parse_flags(command, argv)
        assert problems == []
        return SimpleNamespace(config=config, models=[], encoder=SimpleNamespace(tokenizer=None), devices=devices)

    with pytest.raises(KeyboardInterrupt), parts_of(ready("-colour", "1"), split, None) as folder:
        (folder / "part-000000.jsonl").touch()
        raise KeyboardInterrupt
    with pytest.raises(UserError) as refused, parts_of(ready("-depth", "2"), split, None):
        pytest.fail("completed")
    assert str(refused.value).splitlines()[1:] == ["  what    parts  now", "  -depth  0      2"]
    with parts_of(ready("-colour", "2"), split, None) as taken:
        assert taken == folder


def test_a_resume_with_another_value_of_a_new_flag_is_refused() -> None:
    """Also where the run was saved by a version that did not have the flag: it had the default then."""
    command = with_flags(TrainConfig, "optim", OptimFlags, depth=flag(0, "0 = off."), colour=free(0, "0 = off."))
    task = get_task("seq2seq")
    resumed = saved_run(state={"flags": to_dict(TrainConfig()), "task": task.to_dict()})
    for flags, found in (([], []), (["-colour", "1"], []), (["-depth", "2"], [Difference("-depth", 0, 2)])):
        config, _, _ = parse_flags(command, ["-save_path", "x", *flags])
        assert flag_differences(resumed, config, [task]) == found


def test_a_new_flag_excludes_others_by_its_declaration() -> None:
    command = with_flags(
        InferenceConfig,
        "decode",
        DecodeFlags,
        depth=flag(0, "", needs={"engine=ctranslate2": "it is theirs"}, excludes={"top_k do_sample": "no"}),
        colour=flag(0, "", needs={"engine=ctranslate2": "it is theirs"}),
    )
    for flags, told in (
        ([], []),
        (["-depth", "0"], []),
        (["-depth", "1", "-colour", "2"], ["-depth 1, -colour 2: only with -engine ctranslate2: it is theirs"]),
        (
            ["-depth", "1", "-engine", "ctranslate2", "-top_k", "3", "-do_sample"],
            ["-depth 1: not with -top_k 3 -do_sample: no"],
        ),
    ):
        problems: list[str] = []
        check_combinations(parse_flags(command, flags)[0], problems)
        assert [problem for problem in problems if "-depth" in problem] == told


@pytest.mark.parametrize("command", COMMANDS)
def test_declarations_name_flags_and_ways_that_there_are(command: Any) -> None:
    specs = {spec.name: spec for other in COMMANDS for spec in flag_specs(other)}
    for spec in flag_specs(command):
        assert spec.resume in RESUMES
        assert isinstance(spec.decides, bool) or spec.decides in specs
        for condition in (*spec.needs, *spec.excludes):
            for part in condition.split():
                name, _, wanted = part.partition("=")
                assert name in specs, spec.name
                choices = specs[name].choices
                assert not choices or not wanted or {*wanted.split("|")} <= {*choices}, spec.name


def test_a_flag_of_a_text_names_files_unless_it_is_known_to_name_none() -> None:
    """What names files is seen from the folder of a run file, by its mark: a new flag has the mark, or stands here."""
    specs = [spec for command in ALL_COMMANDS for spec in flag_specs(command) if spec.kind is str and not spec.choices]
    unmarked = {spec.name for spec in specs if not spec.path}
    assert unmarked == TEXTS
    assert {spec.name for spec in specs if spec.path == "written"} == WRITTEN
    assert {spec.name for spec in specs if spec.path == "listed"} == {"average"}
    metavars = {spec.metavar for spec in specs if not spec.path}
    assert [metavar for metavar in metavars if re.search("FILE|FOLDER|PATH|MODEL", metavar)] == []


def test_seeds_decide_samples_only() -> None:
    def seed(*flags: str) -> Any:
        return deciding_flags(parse_flags(InferenceConfig, ["-seed", "7", *flags])[0]).get("-seed")

    assert (seed(), seed("-do_sample")) == (None, 7)


def test_predictions_take_the_value_of_the_training_where_a_flag_says_so() -> None:
    own = {"depth": free(0, "", trained=True), "width": free(0, "", trained=True), "colour": free(0, "")}
    command = with_flags(InferenceConfig, "data", DataFlags, **own)
    config, given, _ = parse_flags(command, ["-width", "1"])
    saved = {"depth": 3, "width": 3, "colour": 3, "tsv_escapes": False, "max_seq_length": 9, "batch_size": 7}
    taken = to_dict(with_trained_settings(config, given, {"flags": saved}))
    expected = {**to_dict(config), "depth": 3, "tsv_escapes": False, "max_seq_length": 9}
    assert taken == expected


@pytest.mark.parametrize(
    ("command", "flags", "required"),
    [
        (TrainConfig, ("-list_tasks",), []),
        (TrainConfig, ("-list_tasks", "false"), ["-save_path"]),
        (TrainConfig, ("-show_examples", "2"), []),
        (TrainConfig, ("-show_examples", "0"), ["-save_path"]),
        (InferenceConfig, ("-score_only",), []),
        (InferenceConfig, ("-score_only=false",), ["-model"]),
    ],
)
def test_a_flag_that_is_off_excuses_none_that_is_required(
    command: type, flags: tuple[str, ...], required: list[str]
) -> None:
    _, _, problems = parse_flags(command, flags)
    assert [problem.partition(" is required")[0] for problem in problems] == required


def test_a_command_may_leave_flags_of_another_out_and_declare_some_otherwise() -> None:
    changes = {"without": {"max_epoch"}, "otherwise": {"seed": {"required": True}}}
    command: Any = type("Shorter", (TrainConfig,), changes)
    config, _, problems = parse_flags(command, ["-max_epoch", "3", "-save_path", "x"])
    assert problems == [
        "unknown flag -max_epoch; did you mean -max_steps?",
        "-seed is required: Seed of weights, dropout and row order; below 0 = drawn at random and printed.",
    ]
    assert (config.optim.max_epoch, config.run.seed) == (4, 123456)
    assert "-max_epoch" in help_text(TrainConfig, "")
    assert "-max_epoch N" not in help_text(command, "")
