"""Several labels joined by a separator: what the graph allows is every text of the label map, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from models.generation import Decoder, DecodingOptions, label_encoder, label_graph
from models.joined_labels import joined_label_graph
from models.label_scoring import LabelScorer
from models.label_trie import ROOT, TokenGraph
from tests.small_models import bart_tokenizer, kobart_tokenizer, unigram_tokenizer
from tests.trained_models import TOKENIZER, encoded, half_trained, words

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
    graph = label_graph(tokenizer, KOREAN, separator)
    end = tokenizer.eos_token_id
    expected = [[*label_encoder(tokenizer)(text), end] for text in every_text(KOREAN, separator)]
    assert len(expected) == 15
    assert sorted(every_path(graph, end)) == sorted(expected)
    assert graph.longest == max(map(len, expected))


@pytest.mark.parametrize("labels", [["a", "ab", "abc"], ["c", "b", "a", "ba"], ["x"], ["a", "aa"]])
def test_labels_that_begin_others_in_bytes(labels: list[str]) -> None:
    graph = label_graph(TOKENIZER, labels, "|")
    expected = [[*label_encoder(TOKENIZER)(text), END] for text in every_text(labels, "|")]
    assert sorted(every_path(graph, END)) == sorted(expected)
    assert graph.longest == max(map(len, expected))


def test_tokens_that_depend_on_the_neighbour_are_refused() -> None:
    """A tokenizer that has a token for the end of one label and the beginning of another."""

    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text.replace("b,c", "*")]

    with pytest.raises(ValueError, match="the tokens of 'b,c' are not those of its labels"):
        joined_label_graph(encode, ["a", "b", "c"], ",", END)


def test_too_many_labels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.joined_labels.MOST_BRANCHES", 40)
    with pytest.raises(ValueError, match="8 labels are too many, or too long, to be joined"):
        label_graph(TOKENIZER, list("abcdefgh"), ", ")


def test_ten_thousand_outputs_are_all_sets_of_labels() -> None:
    labels = ["a", "ab", "cde", "f"]
    valid = set(every_text(labels, "h"))  # a letter that the model writes
    decoder = Decoder(half_trained("bart"), TOKENIZER, DecodingOptions(beam_size=2), labels, label_separator="h")
    rows = words(10_000, seed=7)
    texts = [text for start in range(0, len(rows), 500) for text in decoder(*encoded(rows[start : start + 500]))]
    assert len(texts) == 10_000
    assert set(texts) <= valid
    assert {text.count("h") for text in texts} >= {0, 1}


def test_beams_for_all_texts_give_every_text_by_its_probability() -> None:
    model = half_trained("t5-untied")
    labels, texts = ["b", "bc", "d"], every_text(["b", "bc", "d"], "|")
    ids, mask = encoded(words(10, seed=3))
    options = DecodingOptions(beam_size=len(texts), num_return=len(texts), length_penalty=0.0)
    log_probs = LabelScorer(model, TOKENIZER, texts)(ids, mask)
    decoder = Decoder(model, TOKENIZER, options, labels, label_separator="|")
    for outputs, expected in zip(decoder.decode(ids, mask), log_probs, strict=True):
        order = expected.argsort(descending=True).tolist()
        assert [output.text for output in outputs] == [texts[number] for number in order]
        assert [output.score for output in outputs] == pytest.approx(expected[order].tolist(), abs=1e-4)
