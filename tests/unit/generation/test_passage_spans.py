"""Constrained answers: parts of the passage of the row, or the text for no answer, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config.flags.inference import DecodeFlags
from generation.decoder import Decoder
from generation.passage_spans import PassageRule, token_bytes
from models.loading import from_config
from models.special_tokens import encoded_source
from postprocessors.answers import Answers
from task_utils import Task, get_task
from tests.small_configs import config_of
from tests.small_models import bart_tokenizer, byte_tokenizer, kobart_tokenizer, mbart_tokenizer, unigram_tokenizer
from tests.trained_models import TOKENIZER, encoded, half_trained, words
from utils.errors import UserError
from utils.padding import pad_sources

NONE = "아까운"
PASSAGES = ("이 영화는 정말 재미있었어요", "The movie was great, and I would watch it again.", "연기가  너무", "")
WHOLE = PassageRule((), (), "")
Make = Callable[[Path], Any]


def random_model(tokenizer: Any) -> Any:
    """Writes anything."""
    if tokenizer.bos_token_id is None:
        return from_config(config_of("t5-untied", vocab_size=max(len(tokenizer), 384)), seed=3).eval()
    size = {"vocab_size": len(tokenizer), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "init_std": 0.6}
    return from_config(config_of("bart", **size, decoder_start_token_id=2), seed=3).eval()


@pytest.mark.parametrize("make", [byte_tokenizer, unigram_tokenizer, bart_tokenizer, kobart_tokenizer])
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("none", ["", NONE])
def test_no_answer_comes_from_elsewhere(tmp_path: Path, make: Make, beams: int, none: str) -> None:
    tokenizer = make(tmp_path)
    rule = PassageRule(("다시",), ("최고의",), none)
    texts = [f"영화 다시 영화. 다시 {passage} 최고의" for passage in PASSAGES]
    sources = [np.array(encoded_source(tokenizer, text)) for text in texts]
    batch = pad_sources(sources, tokenizer.pad_token_id, torch.device("cpu"))
    flags = DecodeFlags(max_predict_length=12, beam_size=beams, num_return=beams)
    found = Decoder(random_model(tokenizer), tokenizer, flags, passage=rule).decode(*batch)
    for passage, outputs in zip(PASSAGES, found, strict=True):
        read = " ".join(passage.split()) if make is unigram_tokenizer else passage
        for output in outputs:
            assert output.text in read or output.text == none, (output.text, passage)
            assert output.text == output.text.strip() or output.cut
    assert (found[3][0].text, found[3][0].cut) == (none, False)
    assert len({outputs[0].text for outputs in found[:3]}) == 3 or none


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_what_is_a_span_by_itself_stays_the_same(name: str) -> None:
    ids, mask = encoded(words(24, seed=11))
    model, flags = half_trained(name), DecodeFlags(max_predict_length=12)
    free = Decoder(model, TOKENIZER, flags).decode(ids, mask)
    bound = Decoder(model, TOKENIZER, flags, passage=WHOLE).decode(ids, mask)
    spans = [
        row for row, ((output,), word) in enumerate(zip(free, words(24, seed=11), strict=True))
        if output.text and output.text in word
    ]  # fmt: skip
    assert len(spans) > 5
    assert [bound[row][0] for row in spans] == [free[row][0] for row in spans]
    assert all(output.text in word for (output,), word in zip(bound, words(24, seed=11), strict=True))


def test_a_text_for_no_answer_is_written_whole_or_not_at_all() -> None:
    """A model that would rather write its end first."""
    model = half_trained("t5")
    ids, mask = encoded(["abc", "hh"])
    rule = PassageRule(("nothing",), (), "gone")
    found = Decoder(model, TOKENIZER, DecodeFlags(max_predict_length=12, beam_size=3), passage=rule).decode(ids, mask)
    assert [outputs[0].text for outputs in found] == ["gone", "gone"]


@pytest.mark.parametrize("make", [byte_tokenizer, unigram_tokenizer, bart_tokenizer, kobart_tokenizer, mbart_tokenizer])
def test_bytes_of_tokens_are_those_of_their_text(tmp_path: Path, make: Make) -> None:
    tokenizer = make(tmp_path)
    texts = token_bytes(tokenizer)
    for text in (
        ("가나 ab", "x") if make is mbart_tokenizer else ("영화 great, 10", "é\t😀 가")[: 1 + (make is byte_tokenizer)]
    ):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(texts[token] for token in ids).decode().removeprefix(" ") == text
    assert {texts[token] for token in tokenizer.all_special_ids} == {b"\xff"}


def test_the_passage_is_found_by_the_words_around_it() -> None:
    rule = PassageRule.of(get_task("klue-mrc"))
    assert rule == PassageRule(("###", "지문"), (), "[알 수 없음]")
    source = "### 질문\n### 지문 이란?\n\n### 지문\n문단은 여기\n".encode()
    assert rule.passage(source) == "\n문단은 여기".encode()
    assert PassageRule.of(get_task("squad")).before == ("context:",)
    assert PassageRule(("p:",), ("q:",), "").passage(b"p: a b q: c q: d") == b" a b"
    assert PassageRule(("p:",), ("q:",), "").passage(b"cut in front") == b""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"passage": ""}, "must hold the passage once and as it is; here it is no passage"),
        (
            {"input_template": "{{ context | upper }}"},
            "must hold the passage once and as it is; here it is {{ context }}",
        ),
        ({"input_template": "{{ question }} {{ context }}"}, "needs a word between the passage and other columns"),
        ({"target_template": "A: {{ target }}"}, "the target must be the answer alone, not 'A: {{ target }}'"),
        ({"output": Answers(two_lines=True)}, "the target must be the answer alone"),
    ],
)
def test_a_task_that_shows_no_passage_is_refused(changes: dict[str, Any], told: str) -> None:
    fields = {"input_template": "q: {{ question }} c: {{ context }}", "passage": "context", "output": Answers()}
    task = Task("t", "", source_column="context", target_column="answer", metrics=("klue_em",), **{**fields, **changes})
    with pytest.raises(UserError) as caught:
        PassageRule.of(task)
    assert told in str(caught.value)


def test_rules_and_other_architectures_are_refused() -> None:
    with pytest.raises(ValueError, match="labels exclude"):
        Decoder(half_trained("t5"), TOKENIZER, DecodeFlags(no_repeat_ngram_size=2), passage=WHOLE)
    assert torch.is_inference_mode_enabled() is False
