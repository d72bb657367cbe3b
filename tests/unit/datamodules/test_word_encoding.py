"""Tokens put together from words are the tokens of the whole text."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.encoding.tokens import RustEncoder, make_encoder
from datamodules.encoding.words import splits_at_spaces
from tests.small_models import bart_tokenizer, kobart_tokenizer, unigram_tokenizer

WORDS = [
    "영화",
    "재미",
    "있었어요.",
    "movie",
    "it's",
    "The",
    "ㅋㅋㅋ",
    "<3",
    "a<b",
    "…",
    "★",
    "Ĳ",
    "x" * 230,
    "12,000원",
]
ODD = [
    "</s>",
    "<PAD>",
    "<extra_id_0>",
    "<mask>",
    "＜pad＞",
    "\u3000",
    "\u00a0",
    "\u0301",
    "😀",
    "👨‍👩‍👧",
    "\n",
    "\t",
    "\0",
]
ODD += ["", " ", "\u00b4", "\u1161", "ﷺ", "ｶﾞ", "\u200d", "\ufe0f", "▁", "▁a", "\u0600", "é", "ŉ"]
TEXTS = st.lists(
    st.lists(
        st.one_of(st.sampled_from(WORDS), st.sampled_from(WORDS), st.sampled_from(ODD), st.text(max_size=5)), max_size=6
    ).map(" ".join)
    | st.text(max_size=12),
    min_size=1,
    max_size=6,
)


def _with_normalizer(tokenizer: Any, normalizer: Any, pre_tokenizer: Any = None) -> Any:
    tokenizer.backend_tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, RustEncoder]]:
    from tokenizers import Regex, normalizers, pre_tokenizers

    folder = tmp_path_factory.mktemp("tokenizers")
    mt5 = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), "▁")])
    tokenizers = {
        "t5": unigram_tokenizer(folder / "a"),
        "t5-nfkc": _with_normalizer(unigram_tokenizer(folder / "b"), normalizers.NFKC()),
        "mt5": _with_normalizer(unigram_tokenizer(folder / "c"), mt5, pre_tokenizers.Metaspace()),
        "bart": bart_tokenizer(folder / "e"),
        "kobart": _with_normalizer(kobart_tokenizer(folder / "f"), normalizers.NFC()),
    }
    encoders = {}
    for name, tokenizer in tokenizers.items():
        encoder = make_encoder(tokenizer)
        assert isinstance(encoder, RustEncoder)
        assert encoder._words is not None, name
        encoders[name] = (tokenizer, encoder)
    return encoders


def rows(encoder: RustEncoder, texts: list[str]) -> list[list[int]]:
    tokens = encoder.encode(pa.array(texts, pa.large_string()), 0, False)
    assert tokens.full_lengths.tolist() == np.diff(tokens.offsets).tolist()
    return [row.tolist() for row in np.split(tokens.values, tokens.offsets[1:-1])]


@pytest.mark.parametrize("name", ["t5", "t5-nfkc", "mt5", "bart", "kobart"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS)
def test_equal_to_the_tokenizer(encoders: dict[str, tuple[Any, RustEncoder]], name: str, texts: list[str]) -> None:
    tokenizer, encoder = encoders[name]
    end = [tokenizer.eos_token_id] if name == "kobart" else []
    assert rows(encoder, texts) == [tokenizer(text)["input_ids"] + end for text in texts]


def test_words_are_remembered(encoders: dict[str, tuple[Any, RustEncoder]], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, encoder = encoders["t5"]
    texts = ["이 영화 정말 좋다", "정말 이 영화", "다시 영화"]
    expected = [tokenizer(text)["input_ids"] for text in texts]
    assert rows(encoder, texts) == expected
    assert encoder._words is not None
    asked: list[str] = []
    whole = encoder._words._whole

    def recorded(given: list[str]) -> Any:
        asked.extend(given)
        return whole(given)

    monkeypatch.setattr(encoder._words, "_whole", recorded)
    monkeypatch.setattr(encoder._words, "_unigram", None)
    assert rows(encoder, [*texts, "정말 좋다  두칸", "", "끝 "]) == [
        *expected,
        *(tokenizer(text)["input_ids"] for text in ("정말 좋다  두칸", "", "끝 ")),
    ]
    assert asked == [" 두칸", "끝", "정말 좋다  두칸", "", "끝 "]


def test_the_memory_starts_afresh_when_it_is_full(
    encoders: dict[str, tuple[Any, RustEncoder]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, encoder = encoders["t5"]
    monkeypatch.setattr("datamodules.encoding.words._MOST_WORDS", 5)
    for number in range(4):
        texts = [f"단어{number}{n} 영화" for n in range(4)]
        assert rows(encoder, texts) == [tokenizer(text)["input_ids"] for text in texts]
    assert encoder._words is not None
    assert len(encoder._words._memory.numbers) < 15


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "▁"}]}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model": {"type": "BPE", "dropout": 0.1}},
        {"added_tokens": [{"content": "two words"}]},
    ],
)
def test_other_pipelines_are_left_to_the_tokenizer(change: dict[str, Any]) -> None:
    state: dict[str, Any] = {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram"},
        "added_tokens": [],
    }

    class Serialized:
        def __init__(self, content: dict[str, Any]) -> None:
            self.content = content

        def to_str(self) -> str:
            return json.dumps(self.content)

    assert splits_at_spaces(Serialized(state))
    assert not splits_at_spaces(Serialized({**state, **change}))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(
        st.text(st.sampled_from("영화재미있었어요좋다great movi,!ㅋ뷁x"), min_size=1, max_size=30).map(
            lambda text: text.replace(" ", "")
        ),
        max_size=12,
    ),
    group=st.sampled_from([1, 40, 1 << 18]),
)
def test_words_segmented_at_once(
    encoders: dict[str, tuple[Any, RustEncoder]], monkeypatch: pytest.MonkeyPatch, words: list[str], group: int
) -> None:
    monkeypatch.setattr("datamodules.encoding.words._GROUP", group)
    tokenizer, encoder = encoders["t5"]
    assert encoder._words is not None
    assert encoder._words._unigram is not None
    words = [*words, "영화", " 재미"]
    tokens, done = encoder._words._unigram.encode(words, np.uint16)
    assert done[-2:].all()
    found = np.split(tokens.values, tokens.offsets[1:-1])
    for word, ids, here in zip(words, found, done, strict=True):
        assert ids.tolist() == (tokenizer(word, add_special_tokens=False)["input_ids"] if here else [])
