"""The flags of a command in a file: where they count, and every mistake in it with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from config.checks import check_combinations
from config.flags.export import ExportConfig
from config.flags.inference import InferenceConfig
from config.flags.pretrain import PretrainConfig
from config.flags.train import TrainConfig
from config.parser import information, parse_flags, to_dict, without_run_file
from datamodules.mixture import mixture_of
from tests.documents import ROOT
from training.signals import resume_command
from utils.errors import UserError

COMMANDS = {"prediction.yaml": InferenceConfig, "pretrain": PretrainConfig}  # by the beginning of the name
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.yaml"))


def write(folder: Path, text: str, name: str = "run.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def flags_of(*argv: str) -> tuple[dict[str, Any], frozenset[str]]:
    config, given, problems = parse_flags(TrainConfig, argv)
    assert problems == []
    return to_dict(config), given


def problems_of(*argv: str) -> list[str]:
    try:
        return parse_flags(TrainConfig, argv)[2]
    except UserError as error:
        return list(error.problems)


def test_flags_stand_flat_or_in_their_groups_and_the_command_line_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL", "google/byt5-small")
    path = write(
        tmp_path,
        "# a comment\ntask: nsmc-prompted\nmodel:\n  init_model: ${MODEL}\n  target-modules: [q, v]\n"
        "batch: {batch_size: 8}\nsave_path: /runs/a\nfloat_precision: 32\nlearning_rate: 1e-4\ndo_truncate: no\n"
        "input_template: 'cost $${X} {{ a }}'\nmax_epoch:\nfreeze: encoder\nlength:\n",
    )
    tokens = ["-task=nsmc-prompted", "-init_model=google/byt5-small", "-target_modules=q", "-target_modules=v"]
    tokens += ["-batch_size=8", "-save_path=/runs/a", "-float_precision=32", "-learning_rate=1e-4", "-do_truncate=no"]
    tokens += ["-input_template=cost ${X} {{ a }}", "-freeze=encoder"]
    assert flags_of(path) == flags_of(*tokens)
    more = ["-target_modules", "k", "-batch_size", "4"]
    values, given = flags_of(path, *more)
    assert (values["target_modules"], values["batch_size"]) == (["k"], 4)
    assert flags_of(*without_run_file([path, *more], parse_flags(TrainConfig, [path, *more])[0], given)) == (
        values,
        given,
    )


def test_files_are_relative_to_the_run_file_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp" / "models" / "mine").mkdir(parents=True)
    files = "train_data: [a.tsv, b.jsonl:3, ../c.csv, /d.tsv, org/name:ko:train, ./folder:2]\nteacher: models/mine\n"
    names = "init_model: google/byt5-small\nconfig_path: bart-mini\ntask: klue-nli\nresume_checkpoint: last\n"
    others = (
        "tokenizer: ../tokenizer\nlabel_map: 0=no,1=yes\ntrain_task: [one.yaml:0.3, klue-ner:0.7]\nsave_path: run\n"
    )
    values, _ = flags_of(write(Path("exp"), files + names + others))
    assert values["train_data"] == [
        "exp/a.tsv",
        "exp/b.jsonl:3",
        "c.csv",
        "/d.tsv",
        "org/name:ko:train",
        "./exp/folder:2",
    ]
    assert values["teacher"] == "exp/models/mine"
    kept = ("init_model", "config_path", "task", "resume_checkpoint", "label_map")
    assert [values[name] for name in kept] == ["google/byt5-small", "bart-mini", "klue-nli", "last", "0=no,1=yes"]
    assert [values[name] for name in ("tokenizer", "save_path")] == ["./tokenizer", "exp/run"]
    assert values["train_task"] == ["exp/one.yaml:0.3", "klue-ner:0.7"]


def test_files_joined_by_commas_are_relative_to_the_run_file_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp" / "run" / "best").mkdir(parents=True)
    for text, expected in (("a.ckpt, run/best,/b.ckpt", "exp/a.ckpt,exp/run/best,/b.ckpt"), ("best:3", "best:3")):
        config, _, problems = parse_flags(ExportConfig, [write(Path("exp"), f"average: '{text}'")])
        assert (config.export.average, problems) == (expected, [])


def test_every_mistake_is_told_at_once_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    path = write(
        tmp_path,
        "tsk: a\ndata:\n  train_dta: x\n  batch_size: 3\n  valid_data: ['${NOT_SET}', '${a b}']\noptim:\n"
        "  learning_rate: fast\n  max_epoch: [1, 2]\nlabel_map: {0: no}\nseed: 1\nrun:\n  seed: 2\nfreeze: [[a]]\n",
    )
    assert problems_of(path, "-gpus", "x", "-save_path", "r") == [
        f"{path}:1: unknown key 'tsk' (did you mean task?)",
        f"{path}:3: unknown key 'train_dta' (did you mean train_data?)",
        f"{path}:4: batch_size belongs to the group batch, not to data",
        f"{path}:5: the environment variable NOT_SET is not set",
        f"{path}:5: ${{a b}} names no environment variable; the text itself is $${{...}}",
        f"{path}:8: max_epoch takes one value, not a list",
        f"{path}:9: label_map takes a value, not keys of its own",
        f"{path}:12: seed stands at {path}:10 as well; give it once",
        f"{path}:13: a list holds plain values here",
        f"{path}:7: -learning_rate fast: a number expected",
        "-gpus x: a whole number expected",
    ]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("seed: &a 1", 1, "anchors (&name) are not read; write it out"),
        ("seed: 1\nmax_epoch: *a", 2, "aliases (*name) are not read; write it out"),
        ("task: !!python/object/apply:os.system [x]", 1, "tags (!name) are not read; write the value itself"),
        ("%YAML 1.1\n---\nseed: 1", 1, "directives (%NAME) are not read"),
        ("run:\n\tseed: 1", 2, "found character '\\t' that cannot start any token"),
        ("run:\n  seed: 1\n  seed: 2", 3, "key 'seed' occurs more than once"),
        ("seed: 1\n? [a]\n: 2", 2, "a key is plain text"),
    ],
)
def test_what_is_no_list_of_flags_is_refused(tmp_path: Path, text: str, line: int, problem: str) -> None:
    path = write(tmp_path, text)
    assert problems_of(path) == [f"run file {path}:{line}: {problem}"]


def test_a_merge_key_a_list_and_a_deep_file_are_refused(tmp_path: Path) -> None:
    merging = write(tmp_path, "<<: {seed: 1}\nsave_path: a")
    assert problems_of(merging) == [f"{merging}:1: merge keys (<<) are not read; write the flags out"]
    listed = write(tmp_path, "- a")
    assert problems_of(listed) == [f"run file {listed}: holds no flags; write name: value, a line each"]
    deep = write(tmp_path, '{"a":' * 5000 + "1" + "}" * 5000, "deep.json")
    assert "nested too deep" in problems_of(deep)[0]
    assert problems_of("-seed", "1", "-save_path", "a", "run.yaml") == [
        "'run.yaml' belongs to no flag; a run file stands first"
    ]


def test_the_config_of_a_run_is_given_back_as_it_was(tmp_path: Path) -> None:
    saved = {
        **to_dict(TrainConfig()),
        "train_data": ["a.tsv"],
        "save_path": "runs/a",
        "learning_rate": 1e-7,
        "input_template": "${X}",
        "resume_checkpoint": "last",
        "overwrite": True,
        "max_hours": 2.0,
        "user_code": ["mine.py"],
        "resolved": {"steps": 7},
    }
    path = write(tmp_path, json.dumps(saved, indent=2), "config.json")
    given = ["-train_data=a.tsv", "-learning_rate=1e-7", "-input_template=${X}", "-save_path=runs/b"]
    assert flags_of(path, "-save_path", "runs/b") == flags_of(*given)
    path = write(tmp_path, json.dumps({**saved, "max_epoch": "many", "xyz": 3}, indent=2), "config.json")
    numbers = [
        next(number for number, line in enumerate(Path(path).read_text().splitlines(), 1) if f'"{name}":' in line)
        for name in ("xyz", "max_epoch")
    ]
    assert problems_of(path) == [
        f"{path}:{numbers[0]}: unknown key 'xyz'; -h lists the flags",
        f"{path}:{numbers[1]}: -max_epoch many: a whole number expected",
    ]


def test_the_config_of_a_pretraining_is_given_back_without_the_flags_that_it_has_not(tmp_path: Path) -> None:
    saved = {**to_dict(PretrainConfig()), "corpus": ["a.txt"], "max_steps": 9, "save_path": "runs/a", "resolved": {}}
    path = write(tmp_path, json.dumps(saved, indent=2), "config.json")
    config, given, problems = parse_flags(PretrainConfig, [path, "-save_path", "runs/b"])
    assert (problems, given) == ([], {"corpus", "max_steps", "save_path"})
    assert (config.corpus.corpus, config.run.max_steps, config.run.save_path) == (("a.txt",), 9, "runs/b")
    path = write(tmp_path, json.dumps({**saved, "lora_r": 3}, indent=2), "config.json")
    assert "unknown key 'lora_r'" in parse_flags(PretrainConfig, [path])[2][0]


def test_a_printed_config_gives_the_same_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path(), "train_data: [a.tsv, 'b c.tsv:2']\nlabel_map: '0=아니오,1=null'\nmodel: {init_model: org/name}")
    more = ["-input_template", 'a: "$${x}" \\n {{ b }}\t#', "-seed", "-1", "-save_path", "null", "-max_epoch", "2"]
    printed = information(
        TrainConfig, "usage: python train.py\n           [flags]\n\n  x", ["-print-config", "run.yaml", *more]
    )
    assert printed.startswith("# python train.py\n#     [flags]\n# Flags behind # have")
    assert flags_of(write(Path(), printed, "printed.yaml")) == flags_of("run.yaml", *more)
    for spec_line in ("  # Epochs to train.\n  max_epoch: 2", "  # batch_size: 48", "# Batches\nbatch:"):
        assert spec_line in printed
    with pytest.raises(UserError, match="-seed x: a whole number expected"):
        information(TrainConfig, "usage", ["-print_config", "-seed", "x"])


def test_the_command_that_resumes_says_what_the_file_said(tmp_path: Path) -> None:
    path = write(tmp_path, "overwrite: true\nmax_steps: 5\nseed: 7\nrun: {save_path: /a b}\ntrain_data: [/x, /y]\n")
    argv = [path, "-max_epoch", "3"]
    config, given, _ = parse_flags(TrainConfig, argv)
    command = resume_command(without_run_file(argv, config, given), 7, steps_are_done=True)
    expected = ["-train_data=/x", "-train_data=/y", "-max_epoch=3", "-save_path=/a b", "-max_steps", "0"]
    assert command[2:] == [*expected, "-seed", "7", "-resume_checkpoint", "last"]
    assert without_run_file(["-seed", "7"], config, given) == ["-seed", "7"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_run_files(name: str) -> None:
    """Their flags go together, and their tasks are there."""
    config, _, problems = parse_flags(COMMANDS.get(name.partition("-")[0], TrainConfig), [f"{ROOT}/examples/{name}"])
    check_combinations(config, problems)
    if isinstance(config, TrainConfig):
        mixes = [Path(path).resolve() for path in config.task.train_task]
        assert mixes == ([ROOT / "run_scripts" / "klue_mixture.yaml"] if name == "mixture.yaml" else [])
        assert mixes or mixture_of(config.task, config.data).tasks
        assert config.run.save_path == f"{ROOT}/runs/{name.removesuffix('.yaml')}"
    assert problems == []
