"""Decoding starts as training did and inherits nothing; its texts and scores are tested in `test_search.py`."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import ByT5Tokenizer, GenerationConfig

from config.flags.inference import DecodeFlags
from generation.decoder import Decoder, decode_texts, generation_config
from models.loading import from_config
from models.special_tokens import example_target
from tests.small_configs import CONFIGS, config_of
from tests.small_models import bart_tokenizer, kobart_tokenizer
from tests.trained_models import encoded, half_trained, words


def test_a_checkpoint_s_own_generation_settings_are_not_inherited() -> None:
    model, tokenizer = deepcopy(half_trained("bart")), ByT5Tokenizer()
    ids, mask = encoded(words(8, seed=1))
    expected = Decoder(model, tokenizer, DecodeFlags(max_predict_length=10))(ids, mask)
    own = GenerationConfig(
        no_repeat_ngram_size=1, min_length=9, num_beams=3, forced_bos_token_id=50, decoder_start_token_id=7
    )
    model.generation_config = own
    assert Decoder(model, tokenizer, DecodeFlags(max_predict_length=10))(ids, mask) == expected
    assert model.generation_config is own


@pytest.mark.parametrize("name", CONFIGS)
def test_the_start_token_is_that_of_training(name: str) -> None:
    model = from_config(config_of(name), seed=1)
    config = generation_config(model, ByT5Tokenizer(), DecodeFlags())
    assert config.decoder_start_token_id == (1 if name == "mbart" else 0)
    assert config.forced_bos_token_id is None
    assert config.max_new_tokens == (127 if "bart" in name else 512)


def test_bart_begins_with_its_own_first_token_and_kobart_does_not(tmp_path: Path) -> None:
    bart, kobart = bart_tokenizer(tmp_path / "bart"), kobart_tokenizer(tmp_path / "kobart")
    assert example_target(bart)[0] == bart.bos_token_id
    assert example_target(kobart)[-1] == kobart.eos_token_id
    model = from_config(config_of("bart", vocab_size=500), seed=1)
    assert generation_config(model, bart, DecodeFlags()).forced_bos_token_id == bart.bos_token_id
    assert generation_config(model, kobart, DecodeFlags()).forced_bos_token_id is None
    assert decode_texts(bart, torch.tensor([bart("좋았다 <b>").input_ids])) == ["좋았다 <b>"]


def test_byte_texts_decode_as_the_stock_tokenizer_does() -> None:
    tokenizer = ByT5Tokenizer()
    rows = torch.tensor(
        [[0, 239, 163, 131, 1, 0], [0, 239, 163, 5, 100, 1], [0, 1, 0, 0, 0, 0], [300, 99, 2, 13, 1, 0]]
    )
    expected = [tokenizer.decode(row, skip_special_tokens=True) for row in rows[:3]]
    assert decode_texts(tokenizer, rows)[:3] == expected
    assert decode_texts(tokenizer, rows)[3] == "`\n"


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("own", [True, False])
def test_outputs_that_the_length_limit_cuts_say_so(own: bool, beams: int) -> None:
    ids, mask = encoded(words(8, seed=1))
    cuts = []
    for limit in (3, 6):
        flags = DecodeFlags(max_predict_length=limit, beam_size=beams)
        decoder = Decoder(half_trained("bart"), ByT5Tokenizer(), flags)
        decoder.own = own
        found = [outputs[0] for outputs in decoder.decode(ids, mask, with_scores=False)]
        # a byte a token, and one for the end
        assert [output.cut for output in found] == [len(output.text) == limit for output in found]
        cuts += [output.cut for output in found]
    assert {*cuts} == {True, False}
