"""Several labels joined by a separator: what the graph allows is every text of the label map, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from config.flags.inference import DecodeFlags
from generation.constraints import ROOT, TokenGraph
from generation.decoder import Decoder, allowed_texts, label_encoder
from generation.joined_labels import JoinedLabels, _checked
from generation.label_scoring import LabelScorer
from models.loading import from_config
from tests.small_configs import config_of
from tests.small_models import bart_tokenizer, kobart_tokenizer, unigram_tokenizer
from tests.trained_models import TOKENIZER, encoded, half_trained, label_map, words

END = 1
KOREAN = ["영화", "재미있었어요", "정말", "연기"]  # words of the tokenizers' corpus


def every_text(labels: list[str], separator: str) -> list[str]:
    return [separator.join(chosen) for count in range(1, len(labels) + 1) for chosen in combinations(labels, count)]


def every_path(graph: TokenGraph, end: int, node: int = ROOT) -> list[list[int]]:
    """All token sequences from a node to the end."""
    found: list[list[int]] = []
    tokens, targets, _ = graph.choices(torch.tensor(node))
    for token, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        rest = [[]] if token == end else every_path(graph, end, target)
        found += [[token, *path] for path in rest]
    return found


@pytest.mark.parametrize("build", [bart_tokenizer, kobart_tokenizer, unigram_tokenizer])
@pytest.mark.parametrize("separator", [", ", " "])
def test_the_paths_are_the_encoded_texts(tmp_path: Path, build: Callable[[Path], Any], separator: str) -> None:
    """Word tokenizers write a label in other tokens at the beginning than behind a blank."""
    tokenizer = build(tmp_path / "tokenizer")
    allowed = allowed_texts(tokenizer, label_map(KOREAN, separator))
    end = tokenizer.eos_token_id
    texts = every_text(KOREAN, separator)
    expected = [[*label_encoder(tokenizer)(text), end] for text in texts]
    assert len(expected) == 15
    assert sorted(every_path(allowed.graph, end)) == sorted(expected)
    assert allowed.graph.longest == max(map(len, expected))
    assert [allowed.text(path[:-1]) for path in expected] == texts


@pytest.mark.parametrize("labels", [["a", "ab", "abc"], ["c", "b", "a", "ba"], ["x"], ["a", "aa"]])
def test_labels_that_begin_others_in_bytes(labels: list[str]) -> None:
    allowed = allowed_texts(TOKENIZER, label_map(labels, "|"))
    texts = every_text(labels, "|")
    expected = [[*label_encoder(TOKENIZER)(text), END] for text in texts]
    assert sorted(every_path(allowed.graph, END)) == sorted(expected)
    assert allowed.graph.longest == max(map(len, expected))
    assert [allowed.text(path[:-1]) for path in expected] == texts
    with pytest.raises(KeyError):
        allowed.text(expected[0])  # the end token belongs to no label


def test_tokens_that_depend_on_the_neighbour_are_refused() -> None:
    """A tokenizer that has a token for the end of one label and the beginning of another."""

    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text.replace("b,c", "*")]

    with pytest.raises(ValueError, match="the tokens of 'b,c' are not those of its labels"):
        JoinedLabels(encode, ["a", "b", "c"], ",", END)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b", "A"], "writes labels 'a' and 'A' with the same tokens"),
        (["a", "b", "a，b"], "different joined texts with the same tokens, as far as 'a，b' and 'b'"),
        (["a", "b", "a，b", "c"], "different joined texts with the same tokens, as far as 'a，b' and 'b'"),
        (["a", "b", "c", "b，c", "d"], "different joined texts with the same tokens, as far as 'b，c' and 'c'"),
    ],
)
def test_texts_that_a_tokenizer_writes_alike_are_refused(labels: list[str], message: str) -> None:
    """A tokenizer that normalises: NFKC makes the full-width comma a plain one."""

    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text.lower().replace("，", ",")]

    with pytest.raises(ValueError, match=message):
        JoinedLabels(encode, labels, ",", END)


def test_outputs_are_label_texts_where_decoding_gives_others(tmp_path: Path) -> None:
    """A T5 tokenizer normalises and folds blanks: neither text comes back from its tokens."""
    tokenizer = unigram_tokenizer(tmp_path / "tokenizer")
    labels = ["영화…", "최고  영화", "연기"]
    assert not set(tokenizer.batch_decode(tokenizer(labels).input_ids, skip_special_tokens=True)) & set(labels[:2])
    model = from_config(config_of("t5", vocab_size=500), seed=1).eval()
    for separator, valid in (("", labels), (", ", every_text(labels, ", "))):
        options = DecodeFlags(beam_size=8, num_return=8)
        decoder = Decoder(model, tokenizer, options, label_map(labels, separator))
        texts = [[output.text for output in row] for row in decoder.decode(*encoded(words(20, seed=3)))]
        assert {text for row in texts for text in row} == set(valid)
        assert decoder(*encoded(words(20, seed=3))) == [row[0] for row in texts]


def test_triples_all_over_the_labels_are_checked() -> None:
    checked = _checked(200)
    triples = [labels for labels in checked if len(labels) == 3]
    assert len(triples) == len(set(triples)) == 300
    assert all(first < second < third for first, second, third in triples)
    assert {labels[0] // 20 for labels in triples} >= set(range(8))
    assert checked == _checked(200)
    assert sum(len(labels) == 3 for labels in _checked(5)) == 10


def test_too_many_labels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generation.joined_labels.MOST_BRANCHES", 40)
    with pytest.raises(ValueError, match="8 labels are too many, or too long, to be joined"):
        allowed_texts(TOKENIZER, label_map("abcdefgh", ", "))


def test_ten_thousand_outputs_are_all_sets_of_labels() -> None:
    labels = ["a", "ab", "cde", "f"]
    valid = set(every_text(labels, "|"))
    texts = []
    for penalty in (0.0, 8.0):  # short answers, and long ones
        flags = DecodeFlags(beam_size=2, length_penalty=penalty)
        decoder = Decoder(half_trained("bart"), TOKENIZER, flags, label_map(labels, "|"))
        rows = words(5_000, seed=7)
        texts += [text for start in range(0, len(rows), 500) for text in decoder(*encoded(rows[start : start + 500]))]
    assert len(texts) == 10_000
    assert set(texts) <= valid
    assert len({text.count("|") for text in texts}) > 1


def test_beams_for_all_texts_give_every_text_by_its_probability() -> None:
    model = half_trained("t5-untied")
    labels, texts = ["b", "bc", "d"], every_text(["b", "bc", "d"], "|")
    ids, mask = encoded(words(10, seed=3))
    options = DecodeFlags(beam_size=len(texts), num_return=len(texts), length_penalty=0.0)
    log_probs = LabelScorer(model, TOKENIZER, texts)(ids, mask)
    decoder = Decoder(model, TOKENIZER, options, label_map(labels, "|"))
    for outputs, expected in zip(decoder.decode(ids, mask), log_probs, strict=True):
        order = expected.argsort(descending=True).tolist()
        assert [output.text for output in outputs] == [texts[number] for number in order]
        assert [output.score for output in outputs] == pytest.approx(expected[order].tolist(), abs=1e-4)


def test_too_long_a_text_of_all_labels_is_told_as_such() -> None:
    labels = [f"label {number:02}" for number in range(20)]
    with pytest.raises(ValueError, match=r"^all labels joined have 199 tokens; the model writes at most 128"):
        Decoder(half_trained("bart", 1), TOKENIZER, DecodeFlags(), label_map(labels, ", "))
