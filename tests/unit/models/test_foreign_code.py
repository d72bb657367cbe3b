"""Code that a model, tokenizer, config or checkpoint brings: refused in one line, never run, asked about or copied."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer

import export
import inference
from checkpoints.format import CONTENT_KEY
from checkpoints.model_source import InferenceModel, model_source
from checkpoints.saved_run import SavedModel, read_model
from config.flags.train import TrainConfig
from models.loading import describe, from_config
from models.tokenizers import pack_tokenizer
from task_utils import get_task
from tests.small_configs import config_of
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
EVIL = "import pathlib\npathlib.Path({!r}).write_text('code was run')\n"
MODEL_MAP = {"AutoModelForSeq2SeqLM": "evil.Model"}
TOKENIZER_MAP = {"AutoTokenizer": ["evil.Tokenizer", None]}
TOLD = (
    "{}: brings code of its own (auto_map in its {}), which is never run; a copy without auto_map is loaded with the"
    " library's own classes, if it has them"
)


@pytest.fixture(autouse=True)
def consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Standard input says yes to everything; at the end nothing was read of it, run, or copied."""
    answers = io.StringIO("y\n1\nyes\n" * 20)
    monkeypatch.setattr(sys, "stdin", answers)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield
    assert answers.tell() == 0
    assert not (tmp_path / "sentinel").exists()
    assert not (tmp_path / "modules").exists()


def evil_module(folder: Path) -> str:
    """Put `evil.py` into `folder`; importing it leaves a trace."""
    folder.mkdir(exist_ok=True)
    (folder / "evil.py").write_text(EVIL.format(str(folder.parent / "sentinel")))
    return str(folder)


def model_folder(folder: Path, tokenizer: dict[str, Any] | None = None, **config: Any) -> Path:
    """A from_pretrained folder with code beside it; `tokenizer` and `config` change its JSON files."""
    from_config(config_of("bart"), seed=1).save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    evil_module(folder)
    for name, changes in (("config.json", config), ("tokenizer_config.json", tokenizer or {})):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **changes}))
    return folder


def foreign_config(folder: Path) -> dict[str, Any]:
    """A config for whose model the library has no class, so that it would take the one of `evil.py`."""
    evil_module(folder)
    ids = {"pad_token_id": 0, "decoder_start_token_id": 0, "vocab_size": 384}
    return {
        "model_type": "bert",
        "is_encoder_decoder": True,
        "auto_map": MODEL_MAP,
        "_name_or_path": str(folder),
        **ids,
    }


def pair_config(folder: Path) -> dict[str, Any]:
    """A pair of models, of which the library knows no class for the decoder."""
    evil_module(folder)
    decoder = {"model_type": "clip", "auto_map": {"AutoModelForCausalLM": "evil.Model"}, "_name_or_path": str(folder)}
    ids = {"pad_token_id": 0, "decoder_start_token_id": 0}
    return {"model_type": "encoder-decoder", "encoder": {"model_type": "bert"}, "decoder": decoder, **ids}


def checkpoint(path: Path, config: dict[str, Any] | None = None, tokenizer: dict[str, Any] | None = None) -> Path:
    """A .ckpt whose model config is `config`, or whose tokenizer has `tokenizer` in its configuration."""
    model, files = from_config(config_of("bart"), seed=1), pack_tokenizer(ByT5Tokenizer())
    described = describe(model) | ({"model_config": json.dumps(config)} if config else {})
    if tokenizer:
        evil_module(path.parent / "evil")
        files["evil.py"] = bytes_of((path.parent / "evil" / "evil.py").read_text())
        content = json.loads(files["tokenizer_config.json"].numpy().tobytes())
        files["tokenizer_config.json"] = bytes_of(json.dumps({**content, **tokenizer}))
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    content = {"format_version": 1, "model": described, "tokenizer": files, "flags": {}}
    torch.save({"state_dict": weights, CONTENT_KEY: content}, path)
    return path


def bytes_of(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return "\n".join(caught.value.problems)


def train_source(resumed: SavedModel | None = None, **model: str) -> Any:
    """What train.py does with the flags of the model."""
    config = TrainConfig()
    source = model_source(replace(config, model=replace(config.model, **model)), [get_task("seq2seq")], resumed)
    return source.build(1, False)


# ---- model folders

FOLDERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "own kind": ("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}, {}),
    "known config": ("config.json", {"model_type": "bert", "is_encoder_decoder": True, "auto_map": MODEL_MAP}, {}),
    "known model": ("config.json", {"auto_map": MODEL_MAP}, {}),
    "tokenizer": ("tokenizer_config.json", {}, {"auto_map": TOKENIZER_MAP, "tokenizer_class": "Evil"}),
    "tokenizer of old": ("tokenizer_config.json", {}, {"auto_map": ["evil.Tokenizer", None], "tokenizer_class": None}),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_model_folder_with_code_is_refused_by_every_command(kind: str, tmp_path: Path) -> None:
    part, config, tokenizer = FOLDERS[kind]
    folder = model_folder(tmp_path / "model", tokenizer, **config)
    told = TOLD.format(f"-model {folder}", part)
    assert refusal(inference.main, ["-model", str(folder), "-test_data", "-"]) == told
    assert refusal(InferenceModel(str(folder))) == told
    assert refusal(export.main, ["-model", str(folder), "-save_path", str(tmp_path / "out")]) == told
    assert not (tmp_path / "out").exists()
    assert refusal(lambda: train_source(init_model=str(folder))) == TOLD.format(f"-init_model {folder}", part)
    shutil.copytree(folder, tmp_path / "copy")
    average = ["-average", f"{folder},{tmp_path}/copy", "-save_path", str(tmp_path / "out")]
    assert refusal(export.main, average) == TOLD.format(f"-average {folder}", part)


def test_code_that_only_the_library_s_generate_would_take_is_not_run(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text((folder / "evil.py").read_text())
    model, _ = InferenceModel(str(folder))()
    assert type(model).__name__ == "BartForConditionalGeneration"


def test_an_empty_auto_map_names_no_code(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", {"auto_map": {}}, auto_map={})
    assert InferenceModel(str(folder)).config_and_tokenizer()[0].model_type == "bart"


# ---- tokenizers and configs by flag


def test_a_tokenizer_with_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bart.json").write_text(json.dumps(config_of("bart")))
    folder = model_folder(tmp_path / "tokenizer", {"auto_map": TOKENIZER_MAP, "tokenizer_class": "Evil"})
    told = TOLD.format(f"-tokenizer {folder}", "tokenizer_config.json")
    assert refusal(lambda: train_source(config_path=str(tmp_path / "bart.json"), tokenizer=str(folder))) == told
    model = model_folder(tmp_path / "model")
    flags = ["-model", str(model), "-test_data", "-", "-tokenizer", str(folder)]
    assert refusal(inference.main, flags) == told
    (tmp_path / "bart.json").write_text(json.dumps({**config_of("bart"), "s2s_tokenizer": str(folder)}))
    assert refusal(lambda: train_source(config_path=str(tmp_path / "bart.json"))) == told


@pytest.mark.parametrize("make", [foreign_config, pair_config])
def test_a_config_with_code_is_refused(make: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(make(tmp_path / "evil")))
    told = refusal(lambda: train_source(config_path=str(path), tokenizer="bytes"))
    assert told == TOLD.format(f"-config_path {path}", "config")


# ---- checkpoints


@pytest.mark.parametrize("part", ["config", "pair", "tokenizer_config.json"])
def test_a_checkpoint_with_code_is_refused_by_every_command(part: str, tmp_path: Path) -> None:
    configs = {"config": foreign_config, "pair": pair_config}
    config = configs[part](tmp_path / "evil") if part in configs else None
    tokenizer = None if config else {"auto_map": TOKENIZER_MAP, "tokenizer_class": "Evil"}
    path = checkpoint(tmp_path / "a.ckpt", config, tokenizer)
    told = TOLD.format(f"-model {path}", "config" if config else part)
    assert refusal(inference.main, ["-model", str(path), "-test_data", "-"]) == told
    assert refusal(InferenceModel(str(path))) == told
    resumed = read_model(path, "-resume_checkpoint")
    assert refusal(lambda: train_source(resumed)) == told.replace("-model", "-resume_checkpoint")


# ---- the calls themselves


def test_every_call_of_the_library_forbids_code() -> None:
    """Without the argument the library asks on standard input."""
    calls = []
    for path in (*ROOT.glob("*.py"), *ROOT.glob("models/**/*.py"), *ROOT.glob("datamodules/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and re.match(r"Auto\w+\.(?!register$)", ast.unparse(node.func)):
                calls.append((ast.unparse(node.func), "**NO_CODE" in ast.unparse(node)))
    asking = [name for name, forbids in calls if not forbids]
    assert asking == ["AutoConfig.for_model"]  # which takes no such argument and looks at no auto_map
    assert len(calls) == 6
