"""UL2, prefix LM, BART's noise and MLM: what they hide, how long their rows are, and that nothing is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from config.flags.objective import ObjectiveFlags
from datamodules.objectives.build import build_objective
from datamodules.objectives.mixed import MixedObjectives
from datamodules.objectives.pieces import Pieces
from datamodules.objectives.prefix_lm import PrefixLM
from datamodules.objectives.protocol import Objective
from datamodules.objectives.sentinels import sentinel_ids
from datamodules.objectives.span_corruption import SpanCorruption
from datamodules.objectives.text_infilling import TextInfilling, poisson_steps
from tests.small_models import KOREAN_CORPUS, bart_tokenizer, unigram_tokenizer
from utils.errors import UserError
from utils.padding import IGNORE_INDEX

ALL_KNOWN = (*KOREAN_CORPUS, "[NLU] [NLG] [S2S] sop: 0 1")
TEXT = "이 영화는 정말 재미있었어요. The movie was great! 3.5 minutes were enough. 다시 보고 싶은 영화입니다"


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return unigram_tokenizer(tmp_path_factory.mktemp("t5"), ALL_KNOWN)


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return bart_tokenizer(tmp_path_factory.mktemp("bart"))


def built(tokenizer: Any, longest: int = 512, target: int = 0, **flags: Any) -> Objective:
    return build_objective(ObjectiveFlags(**flags), tokenizer, longest, target)


def text_ids(tokenizer: Any, length: int, seed: int = 0) -> np.ndarray:
    """Any ordinary tokens: those of the tests stand between five special ones and the sentinels."""
    last = min([len(tokenizer), *sentinel_ids(tokenizer).tolist()])
    return np.random.default_rng(seed).integers(5, last, length).astype(np.uint16)


def restored(source: list[int], target: list[int], sentinels: set[int]) -> list[int]:
    spans: dict[int, list[int]] = {}
    for token in target:
        if token in sentinels:
            spans[token] = []
        else:
            spans[next(reversed(spans))].append(token)
    return [part for token in source for part in (spans.pop(token) if token in sentinels else [token])]


def test_ul2_draws_seven_denoisers_with_their_modes_and_loses_nothing(t5: Any) -> None:
    objective = built(t5, objective="ul2")
    modes = {mode: t5(f"[{mode}]", add_special_tokens=False)["input_ids"] for mode in ("NLU", "NLG", "S2S")}
    assert isinstance(objective, MixedObjectives)
    # The longest source is that of mean length 64 / density .15 or of the spans of 3: a mode takes its room.
    raw = objective.raw_length(512)
    assert raw == min(SpanCorruption.raw_length(one, 512) for one in objective.objectives[:-1])  # type: ignore[arg-type]
    count, sentinels = 2100, set(sentinel_ids(t5).tolist())
    sources, targets = objective.lengths(np.full(count, raw), np.arange(count), seed=4)
    drawn: Counter[str] = Counter()
    for sample in range(count):
        ids = text_ids(t5, raw, sample % 7)
        source, target = (part.tolist() for part in objective.apply(ids, sample, seed=4))
        assert (len(source), len(target)) == (sources[sample], targets[sample])
        assert len(source) <= 512
        mode = next(mode for mode, tokens in modes.items() if source[: len(tokens)] == tokens)
        drawn[mode] += 1
        source, target = source[len(modes[mode]) : -1], target[:-1]
        if mode == "S2S":
            assert len(target) == round(raw / 4)
            assert source + target == ids.tolist()
        else:
            assert restored(source, target, sentinels) == ids.tolist()
    assert {mode: round(7 * number / count) for mode, number in drawn.items()} == {"NLU": 2, "NLG": 4, "S2S": 1}


def test_the_modes_of_ul2_come_at_the_rates_asked_for(t5: Any) -> None:
    objective = built(t5, objective="ul2", mode_rates=("R:2", "S:2"))
    raw = objective.raw_length(512)
    first = [int(objective.apply(text_ids(t5, raw), sample, 0)[1][0]) for sample in range(1000)]
    spans = sum(token in sentinel_ids(t5) for token in first) / 1000
    assert spans == pytest.approx(0.5, abs=0.05)
    for rates, told in (
        (("Q:1",), "-mode_rates 'Q:1': expected R, X or S, a colon and a rate from 0 on, e.g. R:0.4"),
        (("R:x",), "-mode_rates 'R:x': expected R, X or S, a colon and a rate from 0 on, e.g. R:0.4"),
        (("R:1", "S:1", "R:2"), "-mode_rates R:2: R has a rate already; give one for each mode"),
        (("R:0", "S:0"), "-mode_rates R:0 S:0: all are 0; give one that is not"),
    ):
        with pytest.raises(UserError) as refused:
            built(t5, objective="ul2", mode_rates=rates)
        assert str(refused.value) == told


def test_ul2_needs_its_modes_and_more_sentinels_than_t5_has(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        built(unigram_tokenizer(tmp_path, ["영화 재미"], 50), objective="ul2")
    assert str(refused.value).splitlines()[0] == (
        "-objective ul2: the tokenizer does not know all of [NLU], which stands in front of the sources of mode R;"
        " train one with these characters"
    )
    too_few = r"^-objective ul2: rows of -max_seq_length 1024 need 189 sentinels .* -max_seq_length 742 or less$"
    with pytest.raises(UserError, match=too_few):
        built(ByT5Tokenizer(), 1024, objective="ul2")


def test_prefix_lm_splits_at_every_place_equally_often(t5: Any) -> None:
    objective = built(t5, 11, 12, objective="prefix_lm")
    raw = objective.raw_length(11, 12)
    assert raw == 11  # up to 10 of them and </s> in a source
    ids, splits = np.arange(raw, dtype=np.uint16), Counter()
    sources, targets = objective.lengths(np.full(5000, raw), np.arange(5000), seed=1)
    for sample in range(5000):
        source, target = objective.apply(ids, sample, 1)
        assert [len(source), len(target)] == [sources[sample], targets[sample]]
        assert [*source[:-1], *target[:-1]] == ids.tolist()
        assert source[-1] == target[-1] == t5.eos_token_id
        splits[len(source) - 1] += 1
    assert sorted(splits) == list(range(1, 11))
    assert all(430 < number < 570 for number in splits.values())
    assert isinstance(objective, PrefixLM)
    assert objective.lengths(np.array([0, 1, 2]), np.arange(3), 0)[1].tolist() == [1, 2, 2]


def test_infilling_hides_the_share_of_the_words_and_asks_for_the_whole_text(bart: Any) -> None:
    objective = built(bart, 256, objective="infilling", permute_sentences=0.0, random_masks=0.0)
    assert objective.raw_length(256) == 254
    masks = hidden = 0
    for sample in range(300):
        ids = text_ids(bart, 254, sample)
        source, target = objective.apply(ids, sample, 1)
        assert target.tolist() == [bart.bos_token_id, *ids, bart.eos_token_id]
        assert len(source) <= 256
        assert (source[0], source[-1]) == (bart.bos_token_id, bart.eos_token_id)
        seen = [int(token) for token in source[1:-1] if token != bart.mask_token_id]
        rest = iter(ids.tolist())
        assert all(token in rest for token in seen)  # in their order
        masks += int((source == bart.mask_token_id).sum())
        hidden += 254 - len(seen)
    assert hidden / 300 / 254 == pytest.approx(0.3, abs=0.02)
    assert masks / 300 == pytest.approx(3.0, abs=0.2)  # 9 of 27 words, 3 in a span


def test_spans_of_infilling_are_whole_words_of_poisson_length(bart: Any) -> None:
    assert poisson_steps(3.0)[:4] == pytest.approx([0.0498, 0.1991, 0.4232, 0.6472], abs=1e-4)
    assert poisson_steps(3.0)[-1] == pytest.approx(1.0, abs=1e-12)
    objective = built(bart, 128, objective="infilling", permute_sentences=0.0, random_masks=0.0)
    ids = np.array(bart(TEXT, add_special_tokens=False)["input_ids"])
    words = [bart.decode(part) for part in np.split(ids, Pieces.of(bart).word_starts(ids)[1:])]
    assert words == [TEXT.split()[0], *(f" {word}" for word in TEXT.split()[1:])]
    for sample in range(100):
        source, _ = objective.apply(ids, sample, 0)
        seen = [token for token in source[1:-1] if token != bart.mask_token_id]
        assert all(word in TEXT.split() for word in bart.decode(seen).split())


def test_infilling_by_hand(bart: Any) -> None:
    """10 words, 3 of them hidden; the same row with the same seed."""
    objective = built(bart, 64, objective="infilling", permute_sentences=0.0)
    ids = np.array(bart("a b c d e f g h i j", add_special_tokens=False)["input_ids"])
    told = {bart.decode(objective.apply(ids, sample, 2)[0]) for sample in range(200)}
    assert objective.apply(ids, 3, 2)[0].tolist() == objective.apply(ids, 3, 2)[0].tolist()
    assert len(told) > 50
    plain = built(bart, 64, objective="infilling", permute_sentences=0.0, random_masks=0.0)
    for sample in range(200):
        text = bart.decode(plain.apply(ids, sample, 2)[0][1:-1])
        assert sum(letter in text for letter in "abcdefghij") >= 7
        assert "<mask>" in text


def test_sentences_change_places_whole(bart: Any) -> None:
    objective = built(bart, 128, objective="infilling")
    assert isinstance(objective, TextInfilling)
    ids = np.array([*bart(TEXT, add_special_tokens=False)["input_ids"], bart.eos_token_id], np.int32)
    sentences = ["이 영화는 정말 재미있었어요.", "The movie was great!", "3.5 minutes were enough."]
    sentences.append("다시 보고 싶은 영화입니다</s>")
    ends = objective.pieces.sentence_ends(ids)
    assert [bart.decode(part).strip() for part in np.split(ids, ends)[:-1]] == sentences
    orders = set()
    for sample in range(200):
        text = bart.decode(objective.reordered(ids, sample, 0))
        orders.add(tuple(sorted(range(4), key=lambda number: text.index(sentences[number]))))
        assert sorted(objective.reordered(ids, sample, 0)) == sorted(ids)
    assert len(orders) == 24
    assert objective.reordered(ids[:0], 0, 0).tolist() == []


def test_mlm_hides_15_percent_of_them_80_percent_by_the_mask(bart: Any, t5: Any) -> None:
    for tokenizer, mask, frame in ((bart, bart.mask_token_id, 1), (t5, sentinel_ids(t5)[0], 0)):
        objective = built(tokenizer, 202, objective="mlm")
        raw = objective.raw_length(202)
        counts: Counter[str] = Counter()
        for sample in range(200):
            ids = text_ids(tokenizer, raw, sample)
            source, target = objective.apply(ids, sample, 1)
            assert target[frame:-1].tolist() == ids.tolist()
            assert len(source) == len(target) == 202
            changed = source[frame:-1] != ids
            counts["mask"] += int((source == mask).sum())
            counts["other"] += int(changed.sum() - (source == mask).sum())
        chosen = 200 * round(raw * 0.15)
        assert counts["mask"] / chosen == pytest.approx(0.8, abs=0.02)
        assert counts["other"] / chosen == pytest.approx(0.1, abs=0.02)


def test_mlm_of_the_encoder_has_the_same_sources_and_labels_where_a_token_was_chosen(bart: Any, t5: Any) -> None:
    for tokenizer in (bart, t5):
        whole, alone = (built(tokenizer, 102, objective=name) for name in ("mlm", "encoder_mlm"))
        assert alone.raw_length(102, 20) == whole.raw_length(102)
        ids = text_ids(tokenizer, whole.raw_length(102))
        (source, target), (same, labels) = whole.apply(ids, 7, 3), alone.apply(ids, 7, 3)
        assert same.tolist() == source.tolist()
        chosen = np.flatnonzero(labels != IGNORE_INDEX)
        assert labels[chosen].tolist() == whole.source.around(ids.astype(np.int32))[chosen].tolist()
        assert {*np.flatnonzero(source != whole.source.around(ids.astype(np.int32)))} < {*chosen}
        lengths = alone.lengths(np.array([len(ids)]), np.array([7]), 3)
        assert [int(length[0]) for length in lengths] == [len(source), len(chosen)] == [len(labels), 15]
        assert len(target) != len(chosen)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_sentence_order_asks_in_a_share_of_the_rows(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    objective = built(tokenizer, 64, objective="mlm", sentence_order=0.25)
    first, second = "다시 보고 싶은 영화입니다.", " The movie was great!" if name == "bart" else "The movie was great!"
    eos = tokenizer.eos_token_id
    sides = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (first, second)]
    ids = np.array([*sides[0][:3], eos, *sides[0], *sides[1], eos, *sides[0][:2]])
    assert len(ids) <= objective.raw_length(64)
    sources, targets = objective.lengths(np.full(800, len(ids)), np.arange(800), 1)
    answers: Counter[str] = Counter()
    for sample in range(800):
        source, target = (part.tolist() for part in objective.apply(ids, sample, 1))
        assert len(target) == targets[sample]
        assert len(source) <= sources[sample] <= 64
        texts = [tokenizer.decode(part, skip_special_tokens=True).strip() for part in (source, target)]
        if not texts[0].startswith("sop:"):
            continue
        answers[texts[1]] += 1
        parts = [tokenizer.decode(part, skip_special_tokens=True) for part in split(source, eos)]
        in_order = [f"sop:{parts[0].partition('sop:')[2]}", parts[1]]
        wanted = (first, second) if texts[1] == "0" else (second, first)
        assert [part.strip() for part in (in_order[0][4:], in_order[1])] == [part.strip() for part in wanted]
    assert 160 < answers.total() < 240
    assert answers.keys() == {"0", "1"}
    assert 0.4 < answers["1"] / answers.total() < 0.6


def split(ids: list[int], separator: int) -> list[list[int]]:
    place = ids.index(separator)
    return [ids[:place], ids[place + 1 :]]


def test_sentence_order_cuts_long_rows_and_single_sentences(bart: Any) -> None:
    objective = built(bart, 24, objective="infilling", sentence_order=0.9)
    for text in ("a b c d e f g h i j k l m n o p q r s t u v w x y z", "a b"):
        ids = np.array(bart(text, add_special_tokens=False)["input_ids"])[: objective.raw_length(24)]
        text = bart.decode(ids)
        for sample in range(40):
            source, target = objective.apply(ids, sample, 0)
            assert len(source) <= 24
            if len(target) == 3:  # an answer
                parts = bart.decode(source[1:-1]).replace("sop:", "").split("</s>")
                assert all(part.split() for part in parts)  # neither is empty
                assert sorted(" ".join(parts).split()) == sorted(text.split())[: len(" ".join(parts).split())]


def test_byt5_takes_longer_spans_and_rows_need_room(t5: Any) -> None:
    objective = built(ByT5Tokenizer(), 1024, 189)
    assert isinstance(objective, SpanCorruption)
    assert (objective.mean_length, objective.raw_length(1024, 189)) == (20.0, 1193)
    with pytest.raises(UserError) as refused:
        built(t5, 512, 2)
    assert str(refused.value) == (
        "-objective span_corruption: -max_seq_length 512 and -max_target_length 2 leave no room for two tokens of text"
        " beside the special tokens; give larger ones"
    )
    with pytest.raises(UserError, match=r"^-mean_span_length 0.5: a span has one token at least; give 1 or more$"):
        built(t5, mean_span_length=0.5)


@pytest.mark.parametrize("name", ["span_corruption", "ul2", "infilling", "prefix_lm", "mlm"])
@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_rows_that_are_nearly_empty(t5: Any, name: str, length: int) -> None:
    objective = built(t5, objective=name)
    ids = text_ids(t5, length)
    for sample in range(20):
        parts = objective.apply(ids, sample, 0)
        told = objective.lengths(np.array([length]), np.array([sample]), 0)
        assert len(parts[1]) == told[1][0]
        assert len(parts[0]) <= told[0][0]
