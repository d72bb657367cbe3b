"""CTranslate2 gives the texts and scores of our own engine, or refuses; its cache is made once and fits the weights."""

from __future__ import annotations

import pickle
import subprocess
import sys
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer, GenerationConfig, PreTrainedModel

from checkpoints.model_source import InferenceModel
from config.flags.inference import DecodeFlags
from generation.decoder import Decoder, Hypothesis, generation_config
from generation.engines import conversion as ctranslate2_conversion
from generation.engines import ctranslate2 as engines
from generation.engines.conversion import cached_conversion, check_convertible, content_key, save_converted, vocabulary
from generation.engines.ctranslate2 import CTranslate2Engine, supported_compute_types
from models.loading import from_config
from tests.small_configs import config_of
from tests.small_models import bart_tokenizer
from tests.trained_models import TOKENIZER, half_trained, words
from utils.errors import RunError, UserError
from utils.padding import pad_sources

ROWS = 60


@cache
def sources() -> tuple[np.ndarray, ...]:
    return tuple(np.array(TOKENIZER(text).input_ids) for text in words(ROWS, seed=77))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a half-trained model, converted when it is first asked for."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            save_converted(made[name], half_trained(name), TOKENIZER, "float32")
        return made[name]

    return get


def engine(folder: Path, model: PreTrainedModel, options: DecodeFlags, **more: Any) -> CTranslate2Engine:
    return CTranslate2Engine(
        folder, TOKENIZER, options, generation_config(model, TOKENIZER, options), threads=1, **more
    )


@pytest.mark.parametrize("name", ["t5", "t5-untied", "mt5", "umt5", "bart", "mbart"])
def test_greedy_and_beams_are_those_of_our_engine(name: str, folders: Any) -> None:
    model = half_trained(name)
    batch = pad_sources(sources(), 0, torch.device("cpu"))
    for settings in (
        {},
        {"length_penalty": 0.5},
        {"beam_size": 4, "num_return": 4},
        {"beam_size": 4, "length_penalty": 0.0},
        {"beam_size": 4, "max_predict_length": 3},
    ):
        options = DecodeFlags(**{"max_predict_length": 20, "early_stopping": True, **settings})  # type: ignore[arg-type]
        ours = Decoder(model, TOKENIZER, options).decode(*batch)
        theirs = engine(folders(name), model, options)(range(ROWS), sources())
        assert [outputs[0].text for outputs in ours] == [prediction.text for prediction in theirs]
        assert [outputs[0].cut for outputs in ours] == [prediction.cut for prediction in theirs]
        assert max(abs(a[0].score - b.score) for a, b in zip(ours, theirs, strict=True) if b.score is not None) < 1e-4
        if options.num_return > 1:
            expected = [[output.text for output in outputs] for outputs in ours]
            assert [[output.text for output in prediction.nbest] for prediction in theirs] == expected
        assert len({prediction.text for prediction in theirs}) > 5


@pytest.mark.parametrize(
    "settings",
    [{"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.5}, {"min_predict_length": 9}],
)
def test_rules_are_those_of_our_greedy_search(settings: dict[str, Any], folders: Any) -> None:
    model = half_trained("t5")
    options = DecodeFlags(max_predict_length=20, **settings)
    ours = Decoder(model, TOKENIZER, options).decode(*pad_sources(sources(), 0, torch.device("cpu")))
    theirs = engine(folders("t5"), model, options)(range(ROWS), sources())
    assert [outputs[0].text for outputs in ours] == [prediction.text for prediction in theirs]
    assert max(abs(a[0].score - (b.score or 9)) for a, b in zip(ours, theirs, strict=True)) < 1e-4


def test_a_fixed_first_token_is_kept_and_noted(tmp_path: Path) -> None:
    tokenizer = bart_tokenizer(tmp_path / "tokenizer")
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    model = from_config(config_of("bart", vocab_size=len(tokenizer) + 7, **tokens), seed=3).eval()
    save_converted(tmp_path, model, tokenizer, "float32")
    assert vocabulary(model, tokenizer)[-7:] == [f"<unused_{number}>" for number in range(len(tokenizer), 407)]
    rows = [np.array(tokenizer(text).input_ids) for text in ("좋았다", "ab", "")]
    for beams in (1, 2):
        options = DecodeFlags(beam_size=beams, max_predict_length=6, early_stopping=True)
        config = generation_config(model, tokenizer, options)
        found = CTranslate2Engine(tmp_path, tokenizer, options, config, threads=1)
        told = found.check_parity(Decoder(model, tokenizer, options), rows)
        assert told == "CTranslate2 (float32): 3 of the first 3 texts are those of -engine torch"
        assert len(found.notes()) == beams - 1


@pytest.mark.parametrize("name", ["t5", "bart", "mbart"])
@pytest.mark.parametrize("num_return", [1, 2])
def test_an_empty_source_is_decoded_as_by_our_engine(name: str, num_return: int, tmp_path: Path) -> None:
    """CTranslate2 by itself gives an empty text with the score 0 for it, without a look at the model."""
    model = half_trained(name)
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    options = DecodeFlags(max_predict_length=20, beam_size=num_return, num_return=num_return, early_stopping=True)
    texts = [np.array(ids) for ids in ([1], [100, 1], [0, 1], [1, 1], [1], [2, 1])]
    inference_model, cpu = InferenceModel(str(tmp_path / "model")), torch.device("cpu")
    converted = engines.convert(inference_model, options, True, texts, cpu)
    found = pickle.loads(pickle.dumps(converted))(cpu)(range(6), texts)
    decoder = Decoder(model, TOKENIZER, options)
    wanted = [decoder.decode(*pad_sources([ids], 0, cpu))[0] for ids in texts]
    for prediction, outputs in zip(found, wanted, strict=True):
        assert (prediction.text, prediction.score) == (outputs[0].text, pytest.approx(outputs[0].score, abs=1e-4))
        listed = outputs if num_return > 1 else []
        assert [output.text for output in prediction.nbest] == [output.text for output in listed]
    assert converted(cpu)(range(1), texts[:1])[0].text == wanted[0][0].text  # a batch of nothing else


def test_what_has_another_meaning_is_refused(folders: Any) -> None:
    model = half_trained("t5")
    with pytest.raises(UserError, match=r"^-repetition_penalty 1\.2: .* for a model that begins with its end token"):
        engine(folders("mbart"), half_trained("mbart"), DecodeFlags(repetition_penalty=1.2))
    if "float16" not in supported_compute_types("cpu"):
        with pytest.raises(UserError, match=r"^-compute_type float16: not on this cpu, which has float32, int8"):
            engine(folders("t5"), model, DecodeFlags(compute_type="float16"))
    with pytest.raises(UserError, match=r"^-model X: a blenderbot model cannot be converted to CTranslate2, only t5,"):
        check_convertible("blenderbot", "-model X")


def test_the_library_that_a_gpu_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "CUDA_LIBRARY", "libnothing.so.12")
    with pytest.raises(
        UserError, match=r"^-engine ctranslate2: libnothing\.so\.12 is not found, which it needs on a GPU"
    ):
        engines.check_compute_type("float16", "cuda")


def test_a_wrong_conversion_is_found_by_the_first_rows(tmp_path: Path, folders: Any) -> None:
    model, options = half_trained("t5"), DecodeFlags(max_predict_length=20)
    decoder = Decoder(model, TOKENIZER, options)
    told = engine(folders("t5"), model, options).check_parity(decoder, sources())
    assert told == "CTranslate2 (float32): 16 of the first 16 texts are those of -engine torch"
    other = from_config(config_of("t5"), seed=4)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.decoder.final_layer_norm.weight.mul_(1.05)
    save_converted(tmp_path, other, TOKENIZER, "float32")
    with pytest.raises(UserError, match=r"^X: the converted model decodes row \d+ otherwise than -engine torch, and"):
        engine(tmp_path, model, options).check_parity(decoder, sources(), "X")
    swapped = engine(folders("t5"), model, options)
    swapped.ids |= {"a": swapped.ids["b"], "b": swapped.ids["a"]}  # right scores of wrong texts
    with pytest.raises(UserError, match=r"^-engine ctranslate2: the converted model decodes row \d+ otherwise"):
        swapped.check_parity(decoder, sources())


def test_the_cache_is_made_once_and_follows_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = tmp_path / "best"
    name.mkdir()
    model = from_config(config_of("t5"), seed=4)
    key = content_key(model, TOKENIZER)
    first = cached_conversion(str(name), model, TOKENIZER, "int8")
    assert content_key(model, TOKENIZER) == key  # int8 leaves the loaded weights alone
    assert first == tmp_path / f"best.ctranslate2-int8-{key}"
    written = (first / "model.bin").stat().st_mtime_ns
    assert cached_conversion(str(name), model, TOKENIZER, "int8") == first
    assert (first / "model.bin").stat().st_mtime_ns == written
    assert capsys.readouterr().out.count("converting") == 1
    with torch.no_grad():
        model.shared.weight[5, 5] += 1
    second = cached_conversion(str(name), model, TOKENIZER, "int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", second.name]


@pytest.mark.parametrize("lost", ["model.bin", "config.json", "shared_vocabulary.json"])
@pytest.mark.parametrize("content", [None, b"", b'["<pad>", "</'])
def test_a_cache_that_lacks_a_file_is_made_again(lost: str, content: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    model = half_trained("t5")
    folder = cached_conversion(str(tmp_path / "best"), model, TOKENIZER, "float32")
    (folder / lost).unlink()
    if content is not None:
        (folder / lost).write_bytes(content)
    again = cached_conversion(str(tmp_path / "best"), model, TOKENIZER, "float32")
    assert again == folder
    options = DecodeFlags(max_predict_length=20)
    if lost == "model.bin" and content is not None:
        with pytest.raises(RunError, match=rf"^{folder}: the converted model cannot be loaded: .*; delete the folder$"):
            engine(folder, model, options)
        return
    assert len(engine(folder, model, options)(range(ROWS), sources())) == ROWS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", folder.name]


def test_two_that_ask_at_once_convert_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has the lock converts while this one waits, and this one takes what it finds."""
    model = from_config(config_of("t5"), seed=4)
    (tmp_path / "best").mkdir()
    folder = cached_conversion(str(tmp_path / "best"), model, TOKENIZER, "float32")
    folder.rename(tmp_path / "converted")
    lock = tmp_path / f".{folder.name.rpartition('-')[0]}.lock"
    hold = f"import fcntl\nfile = open({str(lock)!r}, 'a')\nfcntl.lockf(file, fcntl.LOCK_EX)"
    hold += "\nprint('locked', flush=True)\ninput()"
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"locked\n"
    told = []

    def tell(line: str) -> None:
        told.append(line)
        (tmp_path / "converted").rename(folder)
        other.communicate(b"\n", timeout=30)

    monkeypatch.setattr(ctranslate2_conversion, "tell", tell)
    assert cached_conversion(str(tmp_path / "best"), model, TOKENIZER, "float32") == folder
    assert told == ["another process converts the model: waiting for it"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", folder.name]  # no lock, no half


def test_a_hub_model_is_kept_in_the_user_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = from_config(config_of("t5"), seed=4)
    folder = cached_conversion("some/model", model, TOKENIZER, "float32")
    assert folder.parent.parent == tmp_path / "ctranslate2-models"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.bin", "shared_vocabulary.json"]


def test_a_missing_package_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    model = from_config(config_of("t5"), seed=4)
    with pytest.raises(UserError, match=r"^-engine ctranslate2 needs the package .* pip install ctranslate2==4\.8\.5$"):
        cached_conversion(str(tmp_path), model, TOKENIZER, "float32")


def test_the_check_of_a_conversion_leaves_the_gpu_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Model and engine lay on the GPU for it: both are gone when its memory is given back. (No GPU is needed here.)"""

    class OnDevice:
        def __init__(self, *_: object, **__: object) -> None:
            self.itself = self  # freed by the garbage collector only, as models may be
            lying.append(weakref.ref(self))

        def __call__(self) -> tuple[OnDevice, ByT5Tokenizer]:
            return OnDevice(), TOKENIZER

        def to(self, _: torch.device) -> OnDevice:
            return self

        def notes(self) -> list[str]:
            return []

        def check_parity(self, *_: object) -> str:
            return "all the same"

        def decode(self, *_: object) -> list[list[Hypothesis]]:
            return [[], [], []]

    lying: list[weakref.ref[OnDevice]] = []
    left: list[list[bool]] = []
    model = OnDevice()
    model.name = "m"  # type: ignore[attr-defined]
    for name in ("CTranslate2Engine", "Decoder"):
        monkeypatch.setattr(engines, name, OnDevice)
    config = GenerationConfig(decoder_start_token_id=0, eos_token_id=1)
    monkeypatch.setattr(engines, "generation_config", lambda *_: config)
    monkeypatch.setattr(engines, "cached_conversion", lambda *_: tmp_path)
    monkeypatch.setattr(engines, "pad_sources", lambda *_: ())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append([there() is not None for there in lying]))
    options = DecodeFlags()
    engines.convert(model, options, False, [], torch.device("cuda", 0))  # type: ignore[arg-type]
    assert left == [[True, False, False, False]]
