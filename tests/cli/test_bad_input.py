"""Bad input: exit code 2, one line for each problem, no traceback, nothing written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.command import Result, infer, listing, train
from tests.cli.tiny import BART, letter_rows, write_config, write_tsv

# ---- bad input that shows before torch is imported


def refused(result: Result, *messages: str) -> None:
    """Exit code 2, every message on a line of its own, nothing else, no traceback."""
    assert result.code == 2, result.out + result.err
    assert result.out == ""
    assert result.errors == list(messages)
    assert len(result.err.splitlines()) == len(messages)


def test_many_problems_are_told_at_once(tmp_path: Path) -> None:
    result = train(
        *("-batchsize", 8, "-optim", "adem", "-max_epoch", "two", "-grad_acc", 0, "-do_truncate", "maybe"),
        *("-valid_data_proportions", 0.6, "-test_data_proportions", 0.5, "-config_path", "bart-mino", "stray"),
        *("-task", "nsmc-naiv", "-freeze", "(", "-monitor", "f2", "-float_precision", 8),
    )
    assert result.code == 2
    assert "Traceback" not in result.err
    assert result.errors[:2] == [
        "unknown flag -batchsize; did you mean -batch_size?",
        "'stray' belongs to no flag; quote a value that holds blanks",
    ]
    for part in (
        "-do_truncate maybe: true or false expected",
        "-max_epoch two: a whole number expected",
        "-grad_acc 0: at least 1 expected",
        "-optim adem: one of adam, adafactor, adam8, lion, muon, schedulefree, adamwscale expected; did you mean adam?",
        "-float_precision 8: one of auto, 32, tf32, 16, bf16, fp16 expected",
        "-save_path is required: Folder of this run: checkpoints, logs, config.json.",
        "-train_data is required: a file, a folder or a hub name with the training rows",
        "-freeze (: no regular expression: missing ), unterminated subpattern at position 0",
        "-valid_data_proportions 0.6 and -test_data_proportions 0.5 leave no training rows: their sum must be below 1",
    ):
        assert part in result.errors
    for start in (
        "-task nsmc-naiv",
        "-config_path bart-mino: no such file; presets: ",
        "-monitor f2: one of val_loss, ",
    ):
        assert any(error.startswith(start) for error in result.errors), start
    task = next(error for error in result.errors if "nsmc-naiv" in error)
    assert "did you mean nsmc-naive" in task
    assert all(name in task for name in ("hfdataset", "jsonlines", "nsmc-naive", "nsmc-prompted", "seq2seq"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with good data, a config, and many kinds of bad files."""
    write_tsv(tmp_path / "good.tsv", letter_rows(20, 0))
    write_config(tmp_path / "bart.json", BART)
    (tmp_path / "empty.tsv").write_bytes(b"")
    (tmp_path / "one_column.tsv").write_text("source\ttarget\nonly\nthese\n")
    (tmp_path / "data.xyz").write_text("a\tb\n")
    (tmp_path / "broken.json").write_text("{")
    write_tsv(tmp_path / "labels.tsv", [("good", "1"), ("bad", "0"), ("odd", "7")], ("text", "label"))
    (tmp_path / "a_file").write_text("x")
    return tmp_path


TRAIN_BASE = ["-train_data", "good.tsv", "-config_path", "bart.json", "-save_path", "run"]
BAD_TRAIN = {
    "missing file": (["-train_data", "nothing.tsv"], "-train_data: {}/nothing.tsv: no such file"),
    "empty file": (["-valid_data", "empty.tsv"], "-valid_data: {}/empty.tsv: the file is empty"),
    "unknown type": (
        ["-train_data", "data.xyz"],
        "-train_data: {}/data.xyz: unknown type of data file '.xyz'; known: ",
    ),
    "shard 0": (
        ["-train_data", "good.tsv:0"],
        "-train_data: '{}/good.tsv:0': the suffix after ':' must be a whole number",
    ),
    "no config": (["-config_path", "none.json"], "-config_path {}/none.json: no such file; presets: "),
    "broken config": (["-config_path", "broken.json"], "-config_path {}/broken.json: cannot be read as JSON: "),
    "both sizes": (["-batch_size", "4", "-max_tokens", "100"], "-batch_size and -max_tokens exclude each other"),
    "both models": (["-init_model", "x"], "-config_path {}/bart.json: not with -init_model x: give pre"),
    "two valid": (
        ["-valid_data", "good.tsv", "-valid_data_proportions", "0.1"],
        "-valid_data_proportions 0.1: not with -valid_data {}/good.tsv: ",
    ),
    "save_path file": (["-save_path", "a_file"], "-save_path {}/a_file: exists and is no folder"),
    "negative": (["-warmup_steps", "-1"], "-warmup_steps -1: at least 0 expected"),
    "fraction": (["-warmup_steps", "1.5"], "-warmup_steps 1.5: whole steps, or a share below 1, expected"),
    "rate 0": (["-learning_rate", "0"], "-learning_rate 0: above 0 expected"),
    "long config": (["-config_path", "c" * 300], f"-config_path {'c' * 300}: no such file; presets: "),
    "lowest rate": (
        ["-optim_cosanneal_min_lr", "0.001"],
        "-optim_cosanneal_min_lr 0.001 is above adam's rate 0.0001; give -learning_rate",
    ),
    "one column": (["-source_column", "2"], "-source_column and -target_column (or those of -task seq2seq) are both 2"),
    "nan": (["-learning_rate", "nan"], "-learning_rate nan: a number expected"),
    "no generation": (
        ["-monitor", "bleu", "-valid_generate_rows", "0", "-valid_data", "good.tsv"],
        "-monitor bleu needs generated rows",
    ),
    "resume nothing": (
        ["-resume_checkpoint", "last"],
        "-resume_checkpoint last: no such file: {}/run/",
    ),
    "resume file": (["-resume_checkpoint", "x.ckpt"], "-resume_checkpoint {}/x.ckpt: no such file: {}/x.ckpt"),
    "resume url": (["-resume_checkpoint", "http://x/y"], "-resume_checkpoint http://x/y: a file on this machine"),
    "label map": (["-label_map", "0"], "-label_map '0': entry 1 ('0') is not ID=TEXT; write 0=부정,1=긍정"),
    "template": (["-input_template", "{{ x"], "-input_template, line 1 ('{{ x'): "),
    "frozen": (["-freeze", "embedding", "-freeze", "encoder", "-freeze", "decoder"], "-freeze embedding, encoder and"),
    "processes": (["-cpu_processes", "1000"], "-cpu_processes 1000: this machine has "),
    "devices": (["-cpu_processes", "2", "-gpus", "1"], "-cpu_processes 2 and -gpus 1 exclude each other"),
    "scheduler": (
        ["-optim", "adafactor", "-lr_scheduler", "linear"],
        "-lr_scheduler linear has no effect",
    ),
}


def at(place: Path, tokens: list[str]) -> list[str]:
    """`tokens` with the names of files in `place` as full paths."""
    names = {path.name for path in place.iterdir()} | {"nothing.tsv", "none.json", "run", "x.ckpt", "good.tsv:0"}
    return [str(place / token) if token in names or token.startswith("no/") else token for token in tokens]


def replaced(base: list[str], flags: list[str]) -> list[str]:
    """`base` without the flags that `flags` gives, then `flags`; -train_data and the like are not joined."""
    given = set(flags[::2])
    kept = [
        token for name, value in zip(base[::2], base[1::2], strict=True) if name not in given for token in (name, value)
    ]
    return [*kept, *flags]


@pytest.mark.parametrize("name", BAD_TRAIN)
def test_bad_train_flags(place: Path, name: str) -> None:
    flags, message = BAD_TRAIN[name]
    before = listing(place)
    result = train(*at(place, replaced(TRAIN_BASE, flags)))
    assert len(result.errors) == 1, result.err
    refused(result, result.errors[0])
    assert result.errors[0].startswith(message.replace("{}", str(place)))
    assert listing(place) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")
def test_unreadable_file(place: Path) -> None:
    (place / "good.tsv").chmod(0)
    refused(train(*at(place, TRAIN_BASE)), f"-train_data: {place}/good.tsv: cannot be read (Permission denied)")


BAD_INFERENCE = {
    "exists": (["-save_report", "a_file"], "-save_report {}/a_file: exists; -overwrite replaces it"),
    "folder": (["-save_label", "{}"], "-save_label {}: is a folder; give a file"),
    "twice": (["-save_label", "{}/o", "-save_output", "{}/o"], "-save_label {}/o: the same file as -save_output"),
    "input": (
        ["-save_output", "good.tsv", "-overwrite", "true"],
        "-save_output {}/good.tsv: the same file as",
    ),
    "beams": (["-beam_size", "0"], "-beam_size 0: at least 1 expected"),
    "task": (["-task", "nothing"], "-task"),
    "unknown": (["-beams", "4"], "unknown flag -beams"),
    "missing": (["-test_data", "nothing.tsv"], "-test_data: {}/nothing.tsv: no such file"),
}


@pytest.mark.parametrize("name", BAD_INFERENCE)
def test_bad_inference_flags(place: Path, name: str) -> None:
    flags, message = BAD_INFERENCE[name]
    flags = [token.replace("{}", str(place)) for token in flags]
    before = listing(place)
    result = infer(*at(place, replaced(["-model", "owner/model", "-test_data", "good.tsv"], flags)))
    assert len(result.errors) == 1, result.err
    refused(result, result.errors[0])
    assert message.replace("{}", str(place)) in result.errors[0]
    assert listing(place) == before


def test_a_share_of_rows_that_are_not_given(place: Path) -> None:
    result = infer("-model", "owner/model", "-valid_data", place / "good.tsv", "-test_data_proportions", 0.2)
    refused(
        result,
        "-test_data_proportions 0.2: a share of the rows of -train_data, which is not given; give it, or leave the"
        " share out and give -test_data",
    )


def test_required_inference_flags() -> None:
    result = infer()
    assert result.code == 2
    assert [error.partition(" is required")[0] for error in result.errors] == ["-model", "-test_data"]


# ---- bad input that only reading shows: data, then checkpoints

BAD_DATA = {
    "no valid row": (["-train_data", "one_column.tsv"], "-train_data", ("one_column.tsv", "no valid row")),
    "wrong column": (
        ["-source_column", "text"],
        "",
        ("good.tsv: no column 'text'; columns there are: 1=source, 2=target",),
    ),
    "not a label": (
        ["-train_data", "labels.tsv", "-label_map", "0=no,1=yes"],
        "",
        ("labels.tsv:4: value '7' of column 2 is not in the label map; known: 0=no, 1=yes",),
    ),
    "valid label": (  # the training rows are fine and encoded before: they do not stay behind either
        ["-valid_data", "labels.tsv", "-label_map", "a=A,b=B,c=C,d=D"],
        "",
        ("labels.tsv:2: value '1' of column 2 is not in the label map; known: a=A, b=B",),
    ),
    "unknown variable": (
        ["-input_template", "{{ nothing }}"],
        "",
        ("good.tsv: no column 'nothing'; columns there are: ",),
    ),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(place: Path, name: str) -> None:
    flags, flag, parts = BAD_DATA[name]
    before = listing(place)
    result = train(*at(place, replaced(TRAIN_BASE, flags)))
    assert result.code == 2, result.out + result.err
    assert "Traceback" not in result.err
    assert len(result.errors) == 1
    assert flag in result.errors[0]
    assert [part for part in parts if part not in result.errors[0]] == [], result.errors[0]
    assert listing(place) == before


class Payload:
    """Pickled, it would make a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def bad_checkpoint(kind: str, folder: Path, good: Path) -> Path:
    path = folder / f"{kind}.ckpt"
    if kind == "torn":
        path.write_bytes(good.read_bytes()[:20000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "another":
        torch.save({"state_dict": {"weight": torch.zeros(2)}, "epoch": 1}, path)
    elif kind == "pickled":
        torch.save({"s2s": {"format_version": 1}, "x": Payload(folder / "was_run")}, path)
    elif kind == "text":
        path.write_text("hello")
    return path


KINDS = {
    "torn": "torn",
    "empty": "torn",
    "text": "torn",
    "another": "a checkpoint of another kind; ours are written by train.py",
    "pickled": "pickled objects that could run code",
}


@pytest.mark.parametrize("kind", KINDS)
def test_bad_checkpoints(place: Path, copy_run: Path, kind: str) -> None:
    """Both commands refuse them; what a pickle would run is not run."""
    path = bad_checkpoint(kind, place, copy_run / "run" / "saved_checkpoints" / "last.ckpt")
    before = listing(place)
    resumed = train(*at(place, TRAIN_BASE), "-resume_checkpoint", path)
    results = [("-resume_checkpoint", resumed)]
    if kind in ("torn", "pickled"):
        predicted = infer("-model", path, "-test_data", place / "good.tsv", "-save_output", place / "out.txt")
        results.append(("-model", predicted))
    for flag, result in results:
        refused(result, *result.errors)
        assert len(result.errors) == 1
        assert result.errors[0].startswith(f"{flag} {path}: ")
        assert KINDS[kind] in result.errors[0]
    assert listing(place) == before


def test_no_such_hub_model_offline(place: Path) -> None:
    tokens = at(place, replaced(TRAIN_BASE[:2] + TRAIN_BASE[4:], ["-init_model", "nobody/nothing"]))
    before = listing(place)
    result = train(*tokens)
    assert result.code == 2
    assert len(result.errors) == 1
    assert result.errors[0].startswith("-init_model nobody/nothing: no model could be loaded: ")
    assert listing(place) == before
