"""Trials of the fuzzer: each makes one hostile file in a folder of its own and reads it as the commands do."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from checkpoints import model_source
from checkpoints.saved_run import read_run
from config.flags.optim import OptimFlags
from config.flags.train import TrainConfig
from datamodules.encoding import cache as cache_files
from datamodules.encoding.templates import render
from datamodules.readers.read import read_rows
from datamodules.readers.rows import ReadOptions, RowReport, text_array
from datamodules.splits import RowEncoder
from models.loading import from_config
from models.optimizers.build import build_optimizer
from models.presets import read_config
from task_utils import Template, get_task
from tests.fuzzing import JSON_VALUES, change_bytes, change_one, json_change, outcome, torch_values
from tests.saved_runs import whole_checkpoint
from tests.small_configs import config_of
from training.lightning_loop import DurableCheckpointIO
from training.resuming import check_optimizer, finished_words, flag_differences, limit_words
from training.trainer import optim_settings
from utils.json_files import read_json

Trial = Callable[[Path, random.Random], tuple[str, Callable[[], Any]]]
ROWS = [("이 영화 정말 좋았다", "긍정"), ("boring, really", "부정"), ('"quoted"\\t', "긍정")] * 4


@cache
def _checkpoint() -> dict[str, Any]:
    """A whole checkpoint, with an optimizer that has taken a step."""
    model = from_config(config_of("bart"), seed=1)
    optimizer = build_optimizer(model, optim_settings(OptimFlags()))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    log = {"meters": [[0.0] * 6], "epoch_totals": [], "epoch_seconds": 1.0, "learning_rate": None}
    return {**whole_checkpoint(), "optimizer_states": [optimizer.state_dict()], "s2s_log": log}


def checkpoint(folder: Path, chance: random.Random) -> tuple[str, Callable[[], Any]]:
    """One entry of a .ckpt is another, and torch.save takes it; or bytes of the file are others."""
    path = folder / "a.ckpt"
    content, told = change_one(_checkpoint(), [*JSON_VALUES, *torch_values()], chance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, path)
    if chance.random() < 0.1:
        new, told = change_bytes(path.read_bytes(), chance)
        path.write_bytes(new)

    def use() -> None:
        model_source._checkpoint.cache_clear()
        config = TrainConfig()
        try:
            model_source.InferenceModel(str(path))()
        finally:
            run = read_run(path)
        flag_differences(run, config, [get_task("seq2seq")])
        finished_words(run, config)
        limit_words(run, config)
        model = model_source.model_source(config, [get_task("seq2seq")], run.model).build(1, False)
        check_optimizer(run, [], model, config)
        loaded = DurableCheckpointIO(run).load_checkpoint(path)
        optimizer = build_optimizer(model, optim_settings(OptimFlags()))
        for state in loaded["optimizer_states"]:
            optimizer.load_state_dict(state)

    return told, use


@cache
def _word_tokenizer() -> PreTrainedTokenizerFast:
    """A small tokenizer with a tokenizer.json."""
    words = ["<pad>", "</s>", "<unk>", *sorted({word for row in ROWS for text in row for word in text.split()})]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="</s>"
    )


def model_folder(folder: Path, chance: random.Random) -> tuple[str, Callable[[], Any]]:
    """One entry or some bytes of a file of a from_pretrained folder are others."""
    from_config(config_of("bart"), seed=1).save_pretrained(folder)
    chance.choice((ByT5Tokenizer(), _word_tokenizer())).save_pretrained(folder)
    (folder / "training_state.json").write_text(json.dumps({"task": get_task("nsmc-naive").to_dict(), "flags": {}}))
    path = chance.choice(sorted(folder.iterdir()))
    if path.suffix == ".json":
        told = json_change(path, chance)
    else:
        content, told = change_bytes(path.read_bytes(), chance)
        path.write_bytes(content)

    def use() -> None:
        model = model_source.InferenceModel(str(folder))
        model.saved_state()
        model()

    return told, use


def preset(folder: Path, chance: random.Random) -> tuple[str, Callable[[], Any]]:
    """One entry or some bytes of a -config_path JSON are others."""
    path = folder / "small.json"
    path.write_text(json.dumps(config_of(chance.choice(("bart", "t5")))), encoding="utf-8")
    told = json_change(path, chance)

    def use() -> None:
        read_config(str(path))
        config = TrainConfig()
        named = replace(config, model=replace(config.model, config_path=str(path), tokenizer="bytes"))
        model_source.model_source(named, [get_task("seq2seq")], None)

    return told, use


def task_file(folder: Path, chance: random.Random) -> tuple[str, Callable[[], Any]]:
    """One entry or some bytes of a task's YAML are others."""
    path = folder / "task.yaml"
    content = {key: value for key, value in get_task("nsmc-prompted").to_dict().items() if value is not None}
    changed, told = change_one(content, list(JSON_VALUES), chance)
    text = yaml.safe_dump(changed, allow_unicode=True).encode("utf-8", "surrogatepass")
    if chance.random() < 0.5:
        text, told = change_bytes(text, chance)
    path.write_bytes(text)
    return told, lambda: get_task(str(path))


PIECES = (
    *("{{", "}}", "{%", "%}", "{#", "#}", "source", "target", "x", "if", "endif", "endfor", " for a in ", "range("),
    *("(", ")", "[", "]", ".", "|", "upper", "join", "9**9", "**99999", " * 1000000", "''", '"a"', "((((((((("),
    *("~", ":", ",", "{", "}", "__class__", "set", "macro", "include", "'/etc/passwd'", "loop", "lipsum(99999)"),
    *(" ", "\n", "-", "가"),
)


def template(folder: Path, chance: random.Random) -> tuple[str, Callable[[], Any]]:
    """A template of random pieces of the language."""
    del folder
    text = "".join(chance.choice(PIECES) for _ in range(chance.randrange(1, 25)))
    if chance.random() < 0.1:
        text = text * 300
    columns = {"source": text_array([row[0] for row in ROWS]), "target": text_array([row[1] for row in ROWS])}
    return repr(text[:200]), lambda: render(Template(text, "-input_template"), columns, len(ROWS))


def data_file(folder: Path, chance: random.Random) -> tuple[str, Callable[[], Any]]:
    """Some bytes of a data file are others."""
    kind = chance.choice(("tsv", "csv", "jsonl", "json", "parquet"))
    path = folder / f"rows.{kind}"
    records = [{"source": source, "target": target} for source, target in ROWS]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        separator = {"tsv": "\t", "csv": ","}.get(kind, "")
        lines = [separator.join(record.values()) for record in records]
        if not separator:
            lines = [json.dumps(record, ensure_ascii=False) for record in records]
        text = f"[{','.join(lines)}]" if kind == "json" else "\n".join(lines)
        path.write_text(text, encoding="utf-8")
    content, told = change_bytes(path.read_bytes(), chance)
    path.write_bytes(content)
    options = ReadOptions(keep_all=chance.random() < 0.5, strict=chance.random() < 0.2)

    def use() -> None:
        list(read_rows([str(path)], get_task("seq2seq"), frozenset(), options, RowReport()))

    return f"{path.name}: {told}", use


def cache_file(folder: Path, chance: random.Random) -> tuple[str, Callable[[], Any]]:
    """A cache file of encoded rows with an entry of its report, or bytes of its rows, changed, and the right sums."""
    rows = folder / "rows.tsv"
    rows.write_text("\n".join("\t".join(row) for row in ROWS), encoding="utf-8")
    config = TrainConfig()
    encoder = RowEncoder(config.data, config.length, get_task("seq2seq"), ByT5Tokenizer(), 0, folder / "cache")

    def use() -> None:
        split = encoder.encode("-train_data", (str(rows),), keep_all=False)
        for row in range(len(split)):
            (split.source_ids(row), split.target_ids(row), split.source_text(row), split.reference(row))

    use()
    sidecar = chance.choice(sorted((folder / "cache").glob("*.json")))
    content = read_json(sidecar)
    if chance.random() < 0.5:
        report, told = change_one(content["report"], list(JSON_VALUES), chance)
        content["report"] = report
    else:
        data = sidecar.with_suffix(".arrow")
        changed, told = change_bytes(data.read_bytes(), chance)
        data.write_bytes(changed)
        content |= {"size": data.stat().st_size, "checksum": cache_files._checksum(data)}
    sidecar.write_text(json.dumps(content), encoding="utf-8")
    return f"{sidecar.name}: {told}", use


TRIALS: dict[str, Trial] = {
    trial.__name__: trial for trial in (checkpoint, model_folder, preset, task_file, template, data_file, cache_file)
}


def try_one(name: str, seed: int, folder: Path) -> tuple[str, str]:
    """What the trial of that name and seed did, and what was wrong with what came of it; empty if nothing."""
    place = folder / f"{name}{seed}"
    place.mkdir()
    told, use = TRIALS[name](place, random.Random(f"{name} {seed}"))
    wrong = outcome(use)
    shutil.rmtree(place)
    return told, wrong
