"""Scores that are NaN or infinite end the run: nothing is predicted by them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import BlenderbotConfig, BlenderbotForConditionalGeneration, PreTrainedModel

from config.flags.inference import DecodeFlags
from generation.decoder import Decoder
from generation.label_scoring import LabelScorer
from tests.trained_models import TOKENIZER, encoded, half_trained, label_map, words
from utils.errors import RunError

FP16 = (
    "NaN or infinite, and nothing of it is written: the activations overflow in fp16; use -float_precision bf16 or 32"
)
LABELS = ["ab", "cd", "abc"]


def overflowing() -> PreTrainedModel:
    """A BART whose activations are above 65,504, the largest number of fp16, between two layers of a block."""
    model = deepcopy(half_trained("bart"))
    block = model.model.decoder.layers[0]
    with torch.no_grad():
        block.fc1.bias += 60_000.0
        block.fc2.weight *= 50.0
    return model


DECODERS: dict[str, Any] = {
    "greedy": (DecodeFlags(max_predict_length=8), None),
    "beams": (DecodeFlags(max_predict_length=8, beam_size=4, num_return=2), None),
    "rules": (DecodeFlags(max_predict_length=8, beam_size=2, repetition_penalty=1.3, no_repeat_ngram_size=2), None),
    "samples": (DecodeFlags(max_predict_length=8, num_return=3, do_sample=True, top_p=0.9, seed=0), None),
    "labels": (DecodeFlags(beam_size=3), label_map(LABELS)),
}


@pytest.mark.parametrize("way", DECODERS)
def test_overflow_in_fp16_is_refused_and_fp32_is_not(way: str) -> None:
    decoder = Decoder(overflowing(), TOKENIZER, *DECODERS[way])
    ids, mask = encoded(words(6, seed=1))
    assert all(
        torch.isfinite(torch.tensor([output.score for output in row])).all() for row in decoder.decode(ids, mask)
    )
    with torch.autocast("cpu", torch.float16):
        with pytest.raises(RunError, match=FP16):
            decoder.decode(ids, mask)
        with pytest.raises(RunError, match=FP16):
            decoder(ids, mask)


def test_label_scores_that_overflow_are_refused() -> None:
    scorer = LabelScorer(overflowing(), TOKENIZER, LABELS)
    assert scorer(*encoded(["abc"])).isfinite().all()
    with torch.autocast("cpu", torch.float16), pytest.raises(RunError, match=FP16):
        scorer(*encoded(["abc"]))


def test_one_bad_row_of_many_is_enough() -> None:
    """NaN in the source embedding of one letter: the other rows are as they should be, and still none is given."""
    model = deepcopy(half_trained("t5-untied"))
    model.encoder.set_input_embeddings(deepcopy(model.encoder.get_input_embeddings()))
    with torch.no_grad():
        model.encoder.get_input_embeddings().weight[TOKENIZER("h").input_ids[0]] = float("nan")
    fp32 = "at -float_precision 32, so that the activations themselves overflow; use another checkpoint"
    for options, labels in DECODERS.values():
        decoder = Decoder(model, TOKENIZER, options, labels)
        decoder(*encoded(["abc", "b"]))
        with pytest.raises(RunError, match=fp32):
            decoder(*encoded(["abc", "b", "ha", "cc"]))


@pytest.mark.parametrize("beams", [1, 4])
def test_other_architectures_are_watched_too(beams: int) -> None:
    config = BlenderbotConfig(
        vocab_size=384, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64, pad_token_id=0,
        eos_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    model = BlenderbotForConditionalGeneration(config).eval()
    decoder = Decoder(model, TOKENIZER, DecodeFlags(max_predict_length=4, beam_size=beams, min_predict_length=2))
    decoder(*encoded(["abc"]))
    with torch.no_grad():
        model.model.decoder.layers[0].fc2.bias.fill_(float("inf"))
    with pytest.raises(RunError, match="NaN or infinite"):
        decoder(*encoded(["abc"]))
