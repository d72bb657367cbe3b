"""Configs, weights, checkpoints and logs that are wrong or damaged: one telling line, never a random or NaN model."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer

from checkpoints.entries import MODEL_ENTRIES, RUN_ENTRIES
from checkpoints.format import CONTENT_KEY, read_checkpoint
from checkpoints.model_source import InferenceModel
from checkpoints.run_folder import exported_step
from checkpoints.saved_run import read_run
from models.loading import (
    check_config_builds,
    config_from_dict,
    describe,
    from_checkpoint,
    from_config,
    from_pretrained,
)
from models.tokenizers import pack_tokenizer, unpack_tokenizer
from tests.saved_runs import whole_checkpoint
from tests.small_configs import CONFIGS, config_of
from training.run_log import RunLog
from utils.errors import RunError, UserError


def message(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **named)
    return "\n".join(caught.value.problems)


def exported(folder: Path, name: str = "bart", **config: Any) -> Path:
    """A from_pretrained folder of a small model; `config` changes its config.json afterwards."""
    from_config(config_of(name), seed=1).save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    return folder


# ---- weights


@pytest.mark.parametrize("name", CONFIGS)
def test_missing_weights_are_told_instead_of_drawn(name: str, tmp_path: Path) -> None:
    more = {"encoder_layers": 3} if "bart" in name else {"num_layers": 3}
    told = message(from_pretrained, str(exported(tmp_path, name, **more)), "-model")
    assert told.startswith(f"-model {tmp_path}: the weights do not fit the config.json; missing: ")
    assert ".2." in told
    assert "more" in told
    assert "left over" not in told


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    bart = exported(tmp_path / "bart")
    exported(tmp_path / "t5", "t5")
    (bart / "model.safetensors").write_bytes((tmp_path / "t5" / "model.safetensors").read_bytes())
    told = message(from_pretrained, str(bart))
    assert "missing: model.decoder" in told
    assert "left over: decoder.block.0" in told


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    told = message(from_pretrained, str(exported(tmp_path, vocab_size=400)))
    assert "of another shape: " in told
    assert "model.shared.weight [384, 32], not [400, 32]" in told


def test_weights_that_the_model_does_not_use_are_harmless(tmp_path: Path) -> None:
    model = from_pretrained(str(exported(tmp_path, encoder_layers=1)))
    assert len(model.model.encoder.layers) == 1


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("weight", ["model.decoder.layers.1.fc2.weight", "final_logits_bias"])
def test_inference_refuses_weights_that_are_not_finite(weight: str, value: float, tmp_path: Path) -> None:
    model = from_config(config_of("bart"), seed=1)
    model.state_dict()[weight].view(-1)[3] = value
    model.save_pretrained(tmp_path)
    ByT5Tokenizer().save_pretrained(tmp_path)
    told = message(InferenceModel(str(tmp_path)))
    assert told == f"-model {tmp_path}: the weights are not finite: {weight} holds NaN or infinity"


def test_large_weights_are_finite(tmp_path: Path) -> None:
    model = from_config(config_of("bart"), seed=1)
    model.state_dict()["model.decoder.layers.1.fc2.weight"].fill_(3e38)  # their sum is infinite
    model.save_pretrained(tmp_path)
    ByT5Tokenizer().save_pretrained(tmp_path)
    assert not InferenceModel(str(tmp_path))()[0].training


# ---- configs

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("bart", {"activation_function": "zzz"}, "activation_function names the unknown activation 'zzz'; known: .*gelu"),
    ("t5", {"feed_forward_proj": "gated-zzz"}, "feed_forward_proj names the unknown activation 'zzz'"),
    ("bart", {"d_model": 0}, "d_model is 0, it must be at least 1"),
    ("bart", {"d_model": "x"}, "Validation error for field 'd_model': TypeError: Field 'd_model' with value 'x'"),
    ("bart", {"encoder_layers": -1}, "encoder_layers is -1, it must be at least 1"),
    ("bart", {"pad_token_id": 9999}, "pad_token_id is 9999, it must lie within the vocabulary, 0 to 383"),
    ("bart", {"decoder_start_token_id": 384}, "decoder_start_token_id is 384, it must lie within the vocabulary"),
    ("bart", {"eos_token_id": [1, -1]}, r"eos_token_id is \[1, -1\], it must lie within the vocabulary"),
    ("bart", {"decoder_start_token_id": None}, "decoder_start_token_id is null or missing"),
    ("t5", {"decoder_start_token_id": None}, "decoder_start_token_id is null or missing"),
    ("t5", {"pad_token_id": None}, "pad_token_id is null or missing"),
    ("bart", {"dropout": 2.0}, "dropout is 2.0, it must be at least 0 and below 1"),
    ("t5", {"dropout_rate": 1.0}, "dropout_rate is 1.0, it must be at least 0 and below 1"),
]


@pytest.mark.parametrize(("name", "change", "reason"), WRONG)
def test_a_wrong_config_is_told_in_a_line(name: str, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=rf"^-config_path X: not a valid {name} config: {reason}"):
        config_from_dict(config_of(name, **change), "-config_path X")


def test_every_problem_of_a_config_is_told_at_once() -> None:
    told = message(from_config, config_of("bart", vocab_size=0, dropout=-1.0, decoder_layers=0), 1)
    assert [line.split(": ")[-1].split(" is ")[0] for line in told.splitlines()] == [
        "vocab_size",
        "decoder_layers",
        "dropout",
    ]


def test_a_config_that_cannot_be_built_is_told_before_and_while_it_is_built() -> None:
    content = config_of("bart", encoder_attention_heads=5)
    expected = "-config_path X: not a valid bart config: embed_dim must be divisible by num_heads"
    assert message(from_config, content, 1, "-config_path X").startswith(expected)
    config = config_from_dict(content, "-config_path X")
    assert message(check_config_builds, config, "-config_path X").startswith(expected)


def test_mbart_needs_no_decoder_start() -> None:
    config = config_from_dict(config_of("mbart", decoder_start_token_id=None))
    assert config.decoder_start_token_id is None
    check_config_builds(config, "")


def test_a_wrong_config_in_a_folder_is_told_with_its_flag(tmp_path: Path) -> None:
    folder = exported(tmp_path, decoder_start_token_id=None)
    told = message(InferenceModel(str(folder)).config_and_tokenizer)
    assert told.startswith(f"-model {folder}: not a valid bart config: decoder_start_token_id is null")


# ---- checkpoints


def test_one_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(whole_checkpoint(), path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    content[entry.header_offset + entry.file_size // 2] ^= 1
    path.write_bytes(content)
    told = message(read_checkpoint, path, "-model")
    assert told == f"-model {path}: the file is torn or no checkpoint (the checksum of {entry.filename} is wrong)"


@pytest.mark.parametrize("content", [b"hello world\n" * 9, b'{"a": 1}\n', b"e", b"\x80\x02]q\x00.", b"\x93NUMPY", b""])
def test_a_file_of_another_kind_is_told_without_advice(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = message(read_checkpoint, path, "-model")
    reason = "another format, or its end is lost" if content else "it is empty"
    assert told == f"-model {path}: the file is torn or no checkpoint ({reason})"


@pytest.mark.parametrize("names", [("constants.pkl",), ("a/data.pkl", "a/byteorder"), ("word/document.xml",)])
def test_another_archive_is_told_without_advice(names: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "little")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = message(read_checkpoint, path, "-model")
    assert told.startswith(f"-model {path}: ")
    assert "no checkpoint, though its bytes are whole" in told
    assert "PyTorch 2.6" not in told
    assert "\n" not in told


def without(content: dict[str, Any], name: str) -> dict[str, Any]:
    *parents, last = name.split(".")
    inner = content
    for key in parents:
        inner = inner[key]
    del inner[last]
    return content


@pytest.mark.parametrize("name", [*MODEL_ENTRIES, *RUN_ENTRIES])
def test_a_checkpoint_without_an_entry_is_told(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(without(whole_checkpoint(), name), path)
    told = message(read_run, path)
    assert told == f"-resume_checkpoint {path}: a checkpoint of another kind or damaged: {name} is missing"
    if name in MODEL_ENTRIES:
        assert name in message(InferenceModel(str(path)))


def test_a_whole_checkpoint_gives_its_model_and_one_of_other_types_does_not(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(whole_checkpoint(), path)
    assert read_run(path).position.epoch == 1
    model, tokenizer = InferenceModel(str(path))()
    assert (model.config.vocab_size, len(tokenizer)) == (384, 384)
    torch.save({**whole_checkpoint(), CONTENT_KEY: "text"}, path)
    assert message(read_checkpoint, path).endswith("damaged: its format version is missing or no number")
    torch.save({**whole_checkpoint(), "global_step": "1"}, path)
    assert message(read_run, path).endswith("damaged: global_step is '1', not a count")
    forged = whole_checkpoint()
    forged["callbacks"]["Checkpointer"]["kept"]["best"] = [[-9.0, "/home/me/thesis.ckpt"]]
    torch.save(forged, path)  # what it names would be deleted when a better one pushes it out
    assert message(read_run, path) == (
        f"-resume_checkpoint {path}: a checkpoint of another kind or damaged: callbacks.Checkpointer.kept: it"
        " counts [-9.0, '/home/me/thesis.ckpt'] as best, which is no checkpoint of a run"
    )


def test_nan_in_the_state_of_an_optimizer_is_refused(tmp_path: Path) -> None:
    """Lion takes the sign of its momentum, which is 0 for NaN, and the run went on as if nothing was wrong."""
    path, forged = tmp_path / "a.ckpt", whole_checkpoint()
    forged["optimizer_states"] = [
        {"param_groups": [], "state": {3: {"step": 2, "exp_avg": torch.tensor([1.0, torch.nan])}}}
    ]
    torch.save(forged, path)
    assert message(read_run, path) == (
        f"-resume_checkpoint {path}: optimizer_states: state.3.exp_avg holds NaN or infinity; resume from an earlier"
        " checkpoint"
    )
    assert read_run(path, checked=True).global_step  # by another process, and it says so for all


def test_an_archive_that_unpacks_to_more_than_the_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: pytest.fail("unpacked to check its sums"))
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1 << 20))
    assert message(read_checkpoint, path).endswith("torn or no checkpoint (a/data.pkl is compressed)")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data/0", bytes(1000))
        one = archive.infolist()[0]
        for number in range(1, 50):
            other = copy.copy(one)
            other.filename = f"a/data/{number}"
            archive.filelist.append(other)
        archive._didModify = True  # type: ignore[attr-defined]
    assert path.stat().st_size < 5000
    assert message(read_checkpoint, path).endswith("(a/data/1 overlaps another member)")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", bytes((1 << 26) + 1))
    told = message(read_checkpoint, path)
    assert told.endswith("(a/data.pkl has 67,108,865 bytes, more than 67,108,864)")


def test_weights_that_a_checkpoint_lacks_are_listed() -> None:
    model = from_config(config_of("bart"), seed=1)
    weights = model.state_dict()
    start = "-model X: a checkpoint of another kind or damaged: "
    name = "model.encoder.layers.0.fc1.bias"
    one_less = {key: value for key, value in weights.items() if key != name}
    assert message(from_checkpoint, describe(model), one_less, "-model X") == f"{start}{name} is missing"
    told = message(from_checkpoint, describe(model), {}, "-model X")
    assert told.startswith(f"{start}final_logits_bias, ")
    assert told.endswith(f" and {len(weights) - 3} more are missing")
    reshaped = {**weights, name: torch.zeros(3)}
    assert f"{start}size mismatch for {name}" in message(from_checkpoint, describe(model), reshaped, "-model X")
    torn = {**describe(model), "model_config": "{"}
    assert message(from_checkpoint, torn, weights, "-model X") == f"{start}its model_config is no config"


def test_pickled_weights_are_refused_without_advice_to_run_them(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(os.system))
    assert message(from_pretrained, str(folder)) == (
        f"-init_model {folder}: the weights are torn, or hold pickled objects that could run code, which is never done;"
        " give a model with .safetensors"
    )
    told = message(from_pretrained, str(exported(tmp_path / "text", vocab_size="384")))
    assert told.endswith("'vocab_size': TypeError: Field 'vocab_size' expected int, got str (value: '384')")


NAMES = ["a\0b", "x" * 300, "\ud800", 5, "tokenizer_config.json/inner", ""]


@pytest.mark.parametrize("name", NAMES, ids=map(repr, range(len(NAMES))))
def test_tokenizer_files_of_impossible_names_are_told(name: Any) -> None:
    files: dict[Any, Any] = {**pack_tokenizer(ByT5Tokenizer()), name: torch.zeros(1, dtype=torch.uint8)}
    told = message(unpack_tokenizer, files)
    assert "the checkpoint: its tokenizer " in told
    assert repr(name)[:80] in told


@pytest.mark.parametrize(
    "content",
    [
        torch.nn.Parameter(torch.ones(3)),
        torch.ones(3, dtype=torch.bfloat16),
        torch.eye(3).to_sparse(),
        torch.zeros(3, device="meta"),
        torch.ones(3, dtype=torch.complex64).conj(),
        torch.zeros(1, dtype=torch.uint8).expand(1 << 40),
    ],
    ids=["parameter", "bf16", "sparse", "meta", "conjugate", "stride-0"],
)
def test_tensors_of_odd_kinds_are_no_tokenizer_files_and_no_weights(content: Any, tmp_path: Path) -> None:
    assert "'x' holds no bytes" in message(unpack_tokenizer, {"x": content})
    changed = whole_checkpoint()
    changed["state_dict"]["model.final_logits_bias"] = content
    torch.save(changed, tmp_path / "a.ckpt")
    if content.dtype != torch.bfloat16:
        assert "state_dict is a dict of" in message(read_run, tmp_path / "a.ckpt")


def test_a_full_folder_of_temporary_files_is_not_the_fault_of_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    files = {"tokenizer_config.json": torch.zeros(2, dtype=torch.uint8)}
    with pytest.raises(RunError, match=r"no room for temporary files .* TMPDIR names another folder"):
        unpack_tokenizer(files)


def test_a_damaged_tokenizer_in_a_checkpoint_is_told() -> None:
    files: dict[str, Any] = copy.copy(pack_tokenizer(ByT5Tokenizer()))
    files["tokenizer_config.json"] = "text"
    assert "tokenizer_config.json' holds no bytes" in message(unpack_tokenizer, files)
    assert "the checkpoint: its tokenizer is damaged" in message(unpack_tokenizer, {})


# ---- the files beside


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[1]", "an object is expected, not [1]"),
        ('{"task": 5}', "task is 5"),
        ('{"task": {"name": "x", "metrics": 7}}', "metrics"),
        ('{"task": {"name": "x", "zzz": 7}}', "unknown key 'zzz'"),
        ('{"flags": []}', "flags is a list of 0"),
        ('{"flags": {"tsv_escapes": "no"}}', "flags.tsv_escapes is 'no'"),
        ('{"flags": {"max_seq_length": null}}', "flags.max_seq_length is None"),
        ("{", "torn or no JSON"),
    ],
)
def test_a_damaged_training_state_is_told(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "training_state.json").write_text(content)
    said = message(InferenceModel(str(tmp_path)).saved_state)
    assert said.startswith(f"-model {tmp_path}: {tmp_path}/training_state.json is ")
    assert told in said


@pytest.mark.parametrize("content", ["[1]", "{}", '{"global_step": null}', "{"])
def test_a_damaged_state_of_best_is_no_known_best(content: str, tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "training_state.json").write_text(content)
    assert exported_step(tmp_path, "best") is None


def test_lines_of_metrics_that_cannot_be_read_are_dropped(tmp_path: Path) -> None:
    good = '{"step": 1, "phase": "가"}\n{"step": 2}\n'.encode()
    (tmp_path / "metrics.jsonl").write_bytes(good + b'{"step": 9}\n[1]\n\xff\xfe\n{"step": 2, "loss"\xed')
    RunLog(tmp_path, 1, 100)._cut_logs(5)
    assert (tmp_path / "metrics.jsonl").read_bytes() == good


@pytest.mark.parametrize("content", [b'[{"epoch": 0, "glob', b"\xff\xfe", b"7", b"[1]", b'{"a": 1}', b'[{"epoch": 0}]'])
def test_a_torn_epoch_log_is_begun_anew(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.json").write_bytes(content)
    log = RunLog(tmp_path, 1, 100)
    log._cut_logs(5)
    assert log.epochs == []
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}/log.json could not be read (")
    assert said.endswith("): it is begun anew\n")
