"""export.py as a user runs it: a folder that predicts as the run's best/, and nothing of anybody else's replaced."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

import export
from checkpoints.averaging import best_checkpoints
from checkpoints.model_folder import fill_folder
from checkpoints.model_source import InferenceModel
from checkpoints.run_folder import checkpoints_of
from config.flags.inference import DecodeFlags
from generation.decoder import generation_config
from generation.engines.ctranslate2 import CTranslate2Engine
from tests.cli.command import infer_ok, listing, run
from tests.cli.tiny import letter_rows
from utils.errors import UserError

PYTHON = "python"


def exported(*flags: str | Path) -> None:
    """`export.py` in this process."""
    assert export.main([str(flag) for flag in flags]) == 0


def refusal(*flags: str | Path) -> str:
    with pytest.raises(UserError) as error:
        export.main([str(flag) for flag in flags])
    return str(error.value)


def test_a_checkpoint_becomes_a_folder_that_predicts(copy_run: Path, letters: Path, tmp_path: Path) -> None:
    checkpoint = checkpoints_of(copy_run / "run")[0]
    result = run(PYTHON, "export.py", "-model", checkpoint, "-save_path", tmp_path / "a" / "model")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [f"-model {checkpoint}", f"exported: {tmp_path / 'a' / 'model'}"]
    folder, last = tmp_path / "a" / "model", copy_run / "run" / "last"
    for name in ("model.safetensors", "config.json", "generation_config.json", "training_state.json"):
        assert (folder / name).read_bytes() == (last / name).read_bytes()  # the newest checkpoint is what last/ holds
    assert set(listing(folder)) == {*listing(last), "export.json"}
    infer_ok("-model", folder, "-test_data", letters / "test.tsv", "-save_output", tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == "".join(f"{target}\n" for _, target in letter_rows(30, 2))


def test_a_run_becomes_hfmodel_beside_it(copy_run: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.symlink_to(copy_run / "run")
    exported("-model", place)
    folder = tmp_path / "run_hfmodel"
    assert (folder / "model.safetensors").read_bytes() == (copy_run / "run/best/model.safetensors").read_bytes()
    assert json.loads((folder / "export.json").read_text())["model"] == [f"{place.name}/best"]
    before = listing(tmp_path)
    assert refusal("-model", place) == (
        f"-save_path {folder}: holds an export already; -overwrite replaces it, or choose another folder"
    )
    (folder / "notes.txt").write_text("mine")
    assert "holds what no export wrote (notes.txt)" in refusal("-model", place, "-overwrite")
    (folder / "notes.txt").unlink()
    assert {name: time for name, time in listing(tmp_path).items() if name != "run_hfmodel"} == {
        name: time for name, time in before.items() if name != "run_hfmodel"
    }
    exported("-model", place, "-average", "best:2", "-overwrite")
    state = json.loads((folder / "training_state.json").read_text())
    assert len(state["average_of"]) == 2
    assert (state["best_score"], state["validation"]) == (None, {})
    assert (folder / "model.safetensors").read_bytes() != (copy_run / "run/best/model.safetensors").read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_ctranslate2_predicts_as_the_run(copy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = copy_run / "run" / "best"
    for compute_type in ("float32", "int8"):
        folder = tmp_path / compute_type
        exported("-model", best, "-save_path", folder, "-format", "ctranslate2", "-compute_type", compute_type)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        options = DecodeFlags(max_predict_length=10, compute_type=compute_type)
        config = generation_config(InferenceModel(str(best))()[0], tokenizer, options)
        engine = CTranslate2Engine(folder, tokenizer, options, config, threads=1)
        rows = letter_rows(30, 2)
        found = engine(range(30), [np.array(tokenizer(source).input_ids) for source, _ in rows])
        assert [prediction.text for prediction in found] == [target for _, target in rows]
    assert "CTranslate2 (float32): 4 of the first 4 texts are those of -engine torch" in capsys.readouterr().out
    names = set(listing(tmp_path / "float32"))
    assert {"model.bin", "shared_vocabulary.json", "training_state.json", "export.json"} <= names


def test_mistakes_are_told_and_nothing_is_written(copy_run: Path, tmp_path: Path) -> None:
    best = copy_run / "run" / "best"
    before = listing(copy_run / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    assert refusal("-save_path", tmp_path / "x").startswith("-model is required")
    assert "-save_path is required" in refusal("-model", tmp_path / "mine")
    assert "goes with -format ctranslate2" in refusal("-model", best, "-compute_type", "int8")
    assert "holds what no export wrote (thesis.txt)" in refusal(
        "-model", best, "-save_path", tmp_path / "mine", "-overwrite"
    )
    assert "exists and is no folder" in refusal("-model", best, "-save_path", tmp_path / "file", "-overwrite")
    assert "holds what no export wrote" in refusal("-model", best, "-save_path", best, "-overwrite")
    assert "no such file" in refusal("-model", "gone.ckpt", "-save_path", tmp_path / "x")
    assert "exclude each other" in refusal(
        "-model", best, "-model", best, "-average", "best:2", "-save_path", tmp_path / "x"
    )
    assert "-model must be the folder of a run" in refusal(
        "-model", tmp_path / "mine", "-average", "last:2", "-save_path", tmp_path / "x"
    )
    result = run(PYTHON, "export.py", "-model", best, "-save_path", tmp_path / "x", "-format", "gguf")
    choices = "safetensors, ctranslate2, onnx, sentence-transformers"
    assert (result.code, result.errors) == (2, [f"-format gguf: one of {choices} expected"])
    assert "Traceback" not in result.err
    assert listing(copy_run / "run") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]


def test_only_an_export_is_replaced_and_nothing_else_is_entered(
    copy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, folder = copy_run / "run" / "best", tmp_path / "model"
    exported("-model", best, "-save_path", folder)
    entered = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: entered.append(str(path)) or scandir(path))
    (folder / "mine" / "deep").mkdir(parents=True)  # no file in it
    told = refusal("-model", best, "-save_path", folder, "-overwrite")
    assert told == f"-save_path {folder}: holds what no export wrote (mine/); choose another folder"
    told = refusal("-model", best, "-save_path", "/", "-overwrite")
    assert told.startswith("-save_path /: holds what no export wrote (")
    assert entered == [str(folder), "/"]

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    told = refusal("-model", best, "-save_path", folder, "-overwrite")
    assert told == f"-save_path {folder}: cannot be read (Permission denied); choose another folder"


@pytest.mark.parametrize("name", ["thesis.txt", "../victim.txt", "mine/thesis.txt", "{tmp_path}/victim.txt", 7])
def test_a_forged_export_json_gives_no_files_away(copy_run: Path, tmp_path: Path, name: str | int) -> None:
    folder = tmp_path / "model"
    (folder / "mine").mkdir(parents=True)
    for path in (folder / "thesis.txt", folder / "mine" / "thesis.txt", tmp_path / "victim.txt"):
        path.write_text("x")
    files = [str(name).format(tmp_path=tmp_path), "thesis.txt", "mine/thesis.txt", "mine"]
    (folder / "export.json").write_text(json.dumps({"files": files}))
    before = listing(tmp_path)
    told = refusal("-model", copy_run / "run" / "best", "-save_path", folder, "-overwrite")
    assert told == f"-save_path {folder}: holds what no export wrote (mine/, thesis.txt); choose another folder"
    assert listing(tmp_path) == before


def test_models_that_are_not_there_or_torn_are_named_with_their_flag(copy_run: Path, tmp_path: Path) -> None:
    told = refusal("-model", tmp_path / "nope")
    assert told == f"-model {tmp_path}/nope: no such folder; a hub name is NAME or OWNER/NAME"
    run_folder = tmp_path / "run"
    shutil.copytree(copy_run / "run" / "saved_checkpoints", run_folder / "saved_checkpoints")
    first, second, *_ = (path.resolve() for path in best_checkpoints(run_folder))
    flags = ("-model", run_folder, "-save_path", tmp_path / "x")
    for torn in (first, second):
        whole = torn.read_bytes()
        torn.write_bytes(whole[:20000])
        told = refusal(*flags, "-average", "best:2")
        assert told.startswith(f"-average {torn}: the file is torn or no checkpoint")
        torn.write_bytes(whole)


def test_a_mean_of_the_same_checkpoint_or_of_other_labels_is_refused(
    copy_run: Path, label_run: Path, tmp_path: Path
) -> None:
    checkpoint, last = checkpoints_of(copy_run / "run")[0], copy_run / "run" / "last"
    (tmp_path / "link.ckpt").symlink_to(checkpoint)
    twice = f"{checkpoint},{last},{tmp_path}/link.ckpt"
    told = refusal("-average", twice, "-save_path", tmp_path / "x")
    assert told == (
        f"-average {twice}: {checkpoint} and {tmp_path}/link.ckpt are the same checkpoint; each is named once"
    )
    assert "are the same checkpoint" in refusal("-model", last, "-model", last, "-save_path", tmp_path / "x")
    other = label_run / "run" / "last"
    told = refusal("-average", f"{last},{other}", "-save_path", tmp_path / "x")
    assert told.splitlines()[0] == (  # all that differs is told
        f"-average {other}: trained on other texts than {last}: input_template is '평가: {{{{ document }}}}',"
        " not '{{ source }}'"
    )
    shutil.copytree(last, tmp_path / "swapped")
    state = json.loads((tmp_path / "swapped" / "training_state.json").read_text())
    for folder, labels in (("swapped", {"1": "a", "0": "b"}), ("labels", {"0": "b", "1": "a"})):
        shutil.copytree(last, tmp_path / folder, dirs_exist_ok=True)
        state["task"] |= {"label_map": labels, "metrics": ["accuracy"]}
        (tmp_path / folder / "training_state.json").write_text(json.dumps(state))
    told = refusal("-average", f"{tmp_path}/labels,{tmp_path}/swapped", "-save_path", tmp_path / "x")
    assert told.endswith("label_map is {'1': 'a', '0': 'b'}, not {'0': 'b', '1': 'a'}")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("export_format", ["safetensors", "ctranslate2"])
def test_a_killed_export_leaves_nothing_half_made(copy_run: Path, tmp_path: Path, export_format: str) -> None:
    """The first is killed before anything is there; the second while it replaces; the third does what they did not."""
    folder = tmp_path / "model"
    flags = ["-model", str(copy_run / "run" / "best"), "-save_path", str(folder), "-format", export_format]
    killed = (
        "import os, signal, sys, export, utils.files as durable\n"
        "writing = durable.write_json\n"
        "def die(path, content):\n"
        "    writing(path, content)\n"
        "    if path.name == 'export.json': os.kill(os.getpid(), signal.SIGKILL)\n"
        "durable.write_json = die\n"
        "export.main(sys.argv[1:])\n"
    )
    assert run(sys.executable, "-c", killed, *flags).code == -9
    (half,) = tmp_path.iterdir()
    assert half.name.startswith(".model.")
    exported(*flags)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    before = listing(folder)
    assert run(sys.executable, "-c", killed, *flags, "-overwrite").code == -9
    assert listing(folder) == before
    with write_lock(next(path for path in tmp_path.iterdir() if path.name != "model")):
        exported(*flags, "-overwrite")  # it is not half-made as long as somebody writes it
        assert len(list(tmp_path.iterdir())) == 2
    exported(*flags, "-overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert listing(folder).keys() == before.keys()


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def test_an_export_says_how_it_decodes_the_validation_rows(
    copy_run: Path, letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, data = copy_run / "run" / "best", letters / "valid.tsv"
    for name, more in (("safetensors", []), ("float32", ["ctranslate2"]), ("int8", ["ctranslate2"])):
        flags = ["-format", *more, "-compute_type", name] if more else []
        exported("-model", best, "-save_path", tmp_path / name, "-valid_data", data, "-rows", "25", *flags)
        proof = json.loads((tmp_path / name / "export.json").read_text())["proof"]
        assert (proof["valid_data"], proof["rows"], proof["equal_texts"]) == (["valid.tsv"], 25, 25)
        assert proof["metrics"]["model"] == proof["metrics"]["export"]
        assert proof["bytes"]["export"] > 10_000
        difference = proof["largest_score_difference"]
        assert difference == 0.0 if name == "safetensors" else difference < (1e-4 if name == "float32" else 1.0)
    lines = capsys.readouterr().out.splitlines()
    words = "the largest difference of a length-normalised log-probability is 0"
    assert f"25 of 25 texts of -valid_data are equal; {words}" in lines
    assert next(line.split() for line in lines if "ctranslate2" in line and "int8" in line and "model" in line) == [
        "model",
        "ctranslate2",
        "int8",
    ]


def test_onnx_decodes_as_the_run(
    copy_run: Path, letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, folder = copy_run / "run" / "best", tmp_path / "onnx"
    exported("-model", best, "-save_path", folder, "-format", "onnx", "-valid_data", letters / "valid.tsv")
    assert "ONNX Runtime: 4 of the first 4 texts are those of -engine torch" in capsys.readouterr().out.splitlines()
    content = json.loads((folder / "export.json").read_text())
    assert (content["format"], set(content["components"])) == ("onnx", {"encoder", "prefill", "decode"})
    assert (content["proof"]["rows"], content["proof"]["equal_texts"]) == (40, 40)
    assert content["proof"]["largest_score_difference"] < 1e-4
    assert {"encoder.onnx", "prefill.onnx", "decode.onnx", "training_state.json"} <= set(content["files"])


def test_an_export_that_decodes_otherwise_is_not_kept(
    copy_run: Path, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, data, folder = copy_run / "run" / "best", letters / "valid.tsv", tmp_path / "model"
    exported("-model", best, "-save_path", folder)
    before = listing(folder)

    def damage(target: Path, model: PreTrainedModel, tokenizer: Any, state: Any) -> None:
        model = copy.deepcopy(model)
        with torch.no_grad():
            next(model.parameters()).neg_()
        fill_folder(target, model, tokenizer, state)

    monkeypatch.setattr("checkpoints.model_folder.fill_folder", damage)
    told = refusal("-model", best, "-save_path", folder, "-overwrite", "-valid_data", data)
    assert re.match(r"-format safetensors: \d+ of 40 texts differ from the model's, and nothing is written: ", told)
    assert listing(folder) == before
    assert "no such file" in refusal("-model", best, "-save_path", tmp_path / "x", "-valid_data", tmp_path / "gone.tsv")
    assert "-rows 3: only with -valid_data: no rows are decoded" in refusal(
        "-model", best, "-save_path", tmp_path / "x", "-rows", "3"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
