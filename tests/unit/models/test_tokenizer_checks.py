"""A folder without its tokenizer files is refused; every tokenizer that is there is taken, however few files it has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, T5Config

from checkpoints.model_source import InferenceModel
from models.loading import config_from_dict, from_config
from models.tokenizers import fitting_tokenizer, load_tokenizer
from tests.small_configs import config_of
from tests.small_models import (
    KOREAN_CORPUS,
    bart_tokenizer,
    byte_tokenizer,
    kobart_tokenizer,
    m2m100_tokenizer,
    unigram_tokenizer,
)
from utils.errors import UserError

CLASS_LOST = "no tokenizer files of a run there: tokenizer_config.json is missing or names no tokenizer_class; "
FILES_LOST = "no tokenizer files there: only special tokens would be known; "
MAKERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "bytes": ("t5", byte_tokenizer),
    "bytes of bart": ("bart", byte_tokenizer),
    "bytes of mbart": ("mbart", byte_tokenizer),
    "unigram": ("t5", unigram_tokenizer),
    "bpe": ("bart", bart_tokenizer),
    "kobart": ("bart", kobart_tokenizer),
}


def model_folder(folder: Path, name: str) -> Path:
    kind, make = MAKERS[name]
    from_config(config_of(kind, vocab_size=400), seed=1).save_pretrained(folder)
    make(folder)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        InferenceModel(str(folder)).config_and_tokenizer()
    (problem,) = caught.value.problems
    assert problem.endswith("copy them from where the model was saved (train.py and inference.py also take -tokenizer)")
    return problem.removeprefix(f"-model {folder}: ")


@pytest.mark.parametrize("name", MAKERS)
def test_a_tokenizer_without_its_files_is_refused(name: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, name)
    assert len(InferenceModel(str(folder)).config_and_tokenizer()[1]) > 150
    kept = (folder / "tokenizer_config.json").read_text()
    for lost in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        (folder / lost).unlink(missing_ok=True)
    assert refusal(folder).startswith(FILES_LOST)
    if name in ("unigram", "bpe"):  # KoBART's class refuses by itself; the bytes need no more than this file
        (folder / "tokenizer_config.json").write_text(kept)
        assert refusal(folder).startswith(FILES_LOST)
    (folder / "tokenizer_config.json").write_text("{}")
    assert refusal(folder).startswith(FILES_LOST)
    assert len(InferenceModel(str(folder), "bytes").config_and_tokenizer()[1]) == 384


@pytest.mark.parametrize("content", [None, "{}", '{"tokenizer_class": ""}'])
def test_a_run_whose_tokenizer_has_lost_its_class_is_refused(content: str | None, tmp_path: Path) -> None:
    """BART's usual class would put `<s>` and `</s>` around every text."""
    folder = model_folder(tmp_path, "kobart")
    (folder / "training_state.json").write_text("{}")
    expected = load_tokenizer(str(folder))("좋았다").input_ids
    (folder / "tokenizer_config.json").unlink()
    if content:
        (folder / "tokenizer_config.json").write_text(content)
    assert refusal(folder).startswith(CLASS_LOST)
    assert expected == kobart_tokenizer(tmp_path / "again")("좋았다").input_ids


def test_models_of_others_may_name_no_class(tmp_path: Path) -> None:
    for name in ("unigram", "bpe"):
        folder = model_folder(tmp_path / name, name)
        expected = load_tokenizer(str(folder))("좋았다 ab").input_ids
        (folder / "tokenizer_config.json").unlink()
        assert load_tokenizer(str(folder), "-model")("좋았다 ab").input_ids == expected


def test_a_tokenizer_of_added_tokens_alone_is_taken(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({}, "<unk>")), **tokens)
    tokenizer.add_tokens(["C", "N", "=O"])
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("CN=O").input_ids == [3, 4, 5]


@pytest.mark.parametrize("kind", ["T5Tokenizer", "M2M100Tokenizer"])  # Rust from its file; the library in Python
def test_a_sentencepiece_model_is_taken(kind: str, tmp_path: Path) -> None:
    import sentencepiece

    name = "spiece.model" if kind == "T5Tokenizer" else "sentencepiece.bpe.model"
    with open(tmp_path / name, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(KOREAN_CORPUS), model_writer=file, vocab_size=70, minloglevel=2
        )
    pieces = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "\u2581": 4, "a": 5}
    (tmp_path / "vocab.json").write_text(json.dumps(pieces))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.is_fast == (kind == "T5Tokenizer")
    assert tokenizer.unk_token_id not in tokenizer("a").input_ids


# ---- tokenizer.json and tokenizer_config.json that are wrong


def word_tokenizer(folder: Path, file: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A tokenizer of words, with one of its files changed."""
    tokenizer = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3}, unk_token="<unk>"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


CONFIG, WHOLE = "tokenizer_config.json", "tokenizer.json"
SINGLE = [{"SpecialToken": {"id": "X", "type_id": 0}}]
TEMPLATE = {"type": "TemplateProcessing", "single": SINGLE, "pair": [], "special_tokens": {}}
SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        (CONFIG, lambda content: content.pop("pad_token"), "the tokenizer has no pad_token, which training"),
        (CONFIG, lambda content: content.pop("eos_token"), "the tokenizer has no eos_token, which training"),
        (CONFIG, lambda content: content.update(model_max_length="x"), "no tokenizer could be loaded: '>' not supp"),
        (WHOLE, lambda content: content["model"]["vocab"].update(b=9999), r"has 5 tokens with ids up to 9999 .*384;"),
        (WHOLE, lambda content: content.update(post_processor=TEMPLATE), "a damaged tokenizer: no entry found"),
        (WHOLE, lambda content: content.update(pre_tokenizer=SPLIT), r"expression \(a\+\)\+\$ may never end"),
    ],
)
def test_what_a_tokenizer_cannot_be_is_told(file: str, change: Any, told: str, tmp_path: Path) -> None:
    folder = word_tokenizer(tmp_path, file, change)
    with pytest.raises(UserError, match=told):
        fitting_tokenizer(config_from_dict(config_of("bart")), load_tokenizer(str(folder)))


def test_the_languages_of_an_m2m100_behind_its_vocabulary_count(tmp_path: Path) -> None:
    tokenizer = m2m100_tokenizer(tmp_path)
    with pytest.raises(
        UserError, match=r"^the tokenizer has \d+ tokens with ids up to 1\d\d but the model's vocabulary"
    ):
        fitting_tokenizer(T5Config(vocab_size=len(tokenizer) + 8), tokenizer)
    assert fitting_tokenizer(T5Config(vocab_size=len(tokenizer) + 100), tokenizer) is tokenizer
