"""The label trie: only labels come out, prefixes of each other included, and the best one is found."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import ByT5Tokenizer

from config.flags.inference import DecodeFlags
from generation.beam_search import SearchOptions, beam_search
from generation.constraints import ROOT, LabelTrie, TokenGraph
from generation.decoder import Decoder, label_trie
from generation.incremental.decoder import StepModel
from generation.label_scoring import LabelScorer
from generation.logits_processors import ScoreRules
from tests.small_models import bart_tokenizer
from tests.trained_models import TOKENIZER, encoded, half_trained, label_map, words

END = 1
LABELS = ["a", "aa", "aab", "b", "bcd", "bce", "dddddd", "hgfedcba"]


def allowed(graph: TokenGraph, node: int) -> dict[int, int]:
    """Tokens that may follow a node, and where they lead."""
    tokens, targets, exists = graph.choices(torch.tensor(node))
    assert bool(exists.all())
    return dict(zip(tokens.tolist(), targets.tolist(), strict=True))


def test_a_label_that_begins_another_may_end_or_go_on() -> None:
    trie = LabelTrie(["a", "ab", "cb"], [[5], [5, 7], [6, 7]], END)
    assert [trie.text(tokens) for tokens in ([5], [5, 7], [6, 7])] == ["a", "ab", "cb"]
    assert allowed(trie.graph, ROOT) == {5: 1, 6: 3}
    assert allowed(trie.graph, 1) == {END: 5, 7: 2}
    assert allowed(trie.graph, 2) == {END: 5}
    assert allowed(trie.graph, 5) == {END: 5}  # behind the end of a label
    assert trie.paths == [[(0, 5), (1, END)], [(0, 5), (1, 7), (2, END)], [(0, 6), (3, 7), (4, END)]]
    assert trie.depths.tolist() == [0, 1, 2, 1, 2]
    assert trie.longest == 3
    assert trie.ancestors().int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1],
    ]


def test_nodes_of_several_beams_are_as_wide_as_the_widest() -> None:
    graph = LabelTrie(["a", "b", "c"], [[7, 4], [3], [5]], END).graph
    tokens, targets, exists = graph.choices(torch.tensor([[ROOT, 1], [2, ROOT]]))
    assert tokens.tolist() == [[[3, 5, 7], [4, 4, 4]], [[END, END, END], [3, 5, 7]]]
    assert targets.tolist() == [[[3, 4, 1], [2, 2, 2]], [[5, 5, 5], [3, 4, 1]]]
    assert exists.tolist() == [[[True] * 3, [True, False, False]], [[True, False, False], [True] * 3]]


def test_the_memory_of_many_labels_is_that_of_their_tokens() -> None:
    """A table of all nodes by all tokens would take 25 GB here."""
    draw = random.Random(0)
    labels = sorted({tuple(draw.randrange(5, 30_000) for _ in range(4)) for _ in range(20_000)})
    graph = LabelTrie([str(label) for label in labels], labels, END).graph
    tables = (graph.tokens, graph.targets, graph.starts, graph.counts)
    assert sum(table.nbytes for table in tables) < 4e6
    state = _Repeated(torch.randn(1, 4, 30_000, generator=torch.Generator().manual_seed(2)))
    options = SearchOptions(
        start_token=0, max_length=5, rules=ScoreRules(end_token=END), flags=DecodeFlags(beam_size=4), labels=graph
    )
    found = beam_search(state, 1, options, torch.device("cpu"))[0]
    assert {tuple(output.ids[:-1]) for output in found} <= set(labels)


class _Repeated:
    """Logits that are the same at every step."""

    dtype = torch.float32

    def __init__(self, logits: torch.Tensor) -> None:
        self.fixed = logits

    def logits(self, tokens: torch.Tensor, step: int) -> torch.Tensor:
        del tokens, step
        return self.fixed.clone()

    def follow(self, parents: torch.Tensor) -> None:
        pass

    def rows_kept(self, going_on: int) -> int:
        return going_on

    def columns(self) -> torch.Tensor:
        return torch.zeros(len(self.fixed), dtype=torch.long)

    def keep(self, rows: torch.Tensor, columns: int) -> None:
        del columns
        self.fixed = self.fixed[rows]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "no labels"),
        ([[5], []], "label 'b' has no tokens: the tokenizer drops all of it; change it in the label map"),
        ([[5, END, 6]], "label 'a' holds the end token"),
        (
            [[5, 6], [7], [5, 6]],
            "the tokenizer writes labels 'a' and 'c' with the same tokens, and the model cannot tell them apart; change"
            " the text of one of them in the label map",
        ),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelTrie(["a", "b", "c"][: len(labels)], labels, END)


@pytest.mark.parametrize("beams", [1, 4])
def test_ten_thousand_outputs_are_all_labels(beams: int) -> None:
    decoder = Decoder(half_trained("bart"), TOKENIZER, DecodeFlags(beam_size=beams), label_map(LABELS))
    rows = words(10_000, seed=7)
    texts: list[str] = []
    for start in range(0, len(rows), 500):
        texts += decoder(*encoded(rows[start : start + 500]))
    assert len(texts) == 10_000
    assert set(texts) <= set(LABELS)
    assert len(set(texts)) > 3


@pytest.mark.parametrize("name", ["t5-untied", "umt5", "bart", "mbart"])
def test_as_many_beams_as_labels_give_every_label_by_its_probability(name: str) -> None:
    model = half_trained(name)
    ids, mask = encoded(words(20, seed=3))
    options = DecodeFlags(beam_size=len(LABELS), num_return=len(LABELS), length_penalty=0.0)
    log_probs = LabelScorer(model, TOKENIZER, LABELS)(ids, mask)
    decoder = Decoder(model, TOKENIZER, options, label_map(LABELS))
    for outputs, expected in zip(decoder.decode(ids, mask), log_probs, strict=True):
        order = expected.argsort(descending=True).tolist()
        assert [output.text for output in outputs] == [LABELS[label] for label in order]
        assert [output.score for output in outputs] == pytest.approx(expected[order].tolist(), abs=1e-4)


def test_more_beams_than_labels_return_each_label_once() -> None:
    options = DecodeFlags(beam_size=8, num_return=8)
    decoder = Decoder(half_trained("t5"), TOKENIZER, options, label_map(["ab", "abc", "d"]))
    outputs = decoder.decode(*encoded(words(10, seed=1)))
    assert [sorted(output.text for output in row) for row in outputs] == [["ab", "abc", "d"]] * 10


def test_the_best_label_agrees_with_the_library_s_constrained_search() -> None:
    model = half_trained("bart")
    ids, mask = encoded(words(30, seed=5))
    trie = label_trie(TOKENIZER, LABELS)
    by_prefix: dict[tuple[int, ...], list[int]] = {}
    for path in trie.paths:
        tokens = [token for _, token in path]
        for length in range(len(tokens)):
            by_prefix.setdefault(tuple(tokens[:length]), []).append(tokens[length])
    decoder = Decoder(model, TOKENIZER, DecodeFlags(beam_size=4), label_map(LABELS))
    expected = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=decoder.config,
        prefix_allowed_tokens_fn=lambda _, prefix: by_prefix.get(tuple(prefix[1:].tolist()), [END]),
    )
    assert decoder(ids, mask) == TOKENIZER.batch_decode(expected, skip_special_tokens=True)


def test_a_fixed_first_token_stands_before_the_labels(tmp_path: object) -> None:
    tokenizer = bart_tokenizer(f"{tmp_path}/bart")
    trie = label_trie(tokenizer, ["재미있다", "재미없다"])
    assert tokenizer.bos_token_id not in trie.graph.tokens
    rules = ScoreRules(end_token=END, first_token=9)
    options = SearchOptions(
        start_token=0,
        max_length=5,
        rules=rules,
        flags=DecodeFlags(beam_size=2, num_return=2),
        labels=LabelTrie(["a", "b"], [[5, 6], [7]], END).graph,
    )
    with torch.inference_mode():
        state = StepModel(half_trained("bart"), torch.float32).start(*encoded(["abc"]), beams=2)
        found = beam_search(state, 1, options, torch.device("cpu"))
    assert sorted(output.ids for output in found[0]) == [[9, 5, 6, END], [9, 7, END]]


def test_rules_that_could_block_every_label_are_refused() -> None:
    model = half_trained("bart")
    for options in (
        DecodeFlags(no_repeat_ngram_size=2),
        DecodeFlags(min_predict_length=3),
        DecodeFlags(repetition_penalty=1.2),
        DecodeFlags(do_sample=True, seed=0),
    ):
        with pytest.raises(ValueError, match="labels exclude"):
            Decoder(model, ByT5Tokenizer(), options, label_map(["a"]))
    with pytest.raises(ValueError, match="the longest label has 201 tokens; the model writes at most"):
        Decoder(model, ByT5Tokenizer(), DecodeFlags(), label_map(["a" * 200]))
