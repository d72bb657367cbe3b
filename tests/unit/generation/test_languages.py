"""Rows with languages of their own: source tokens, targets, and outputs that begin in the language of the row."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, BartConfig, M2M100Config, MBartConfig

from config.flags.inference import DecodeFlags
from generation.decoder import Decoder
from models.languages import with_languages
from tests.small_models import m2m100_tokenizer, mbart_tokenizer, nllb_tokenizer
from tests.trained_models import TOKENIZER, encoded, half_trained

CODES = {
    "mbart": ("en_XX", "ko_KR", "de_DE", "ko_KR", "en_XX"),
    "bart": ("eng_Latn", "kor_Hang", "deu_Latn", "kor_Hang", "eng_Latn"),
    "nllb": ("eng_Latn", "kor_Hang", "deu_Latn", "kor_Hang", "eng_Latn"),
    "m2m100": ("en", "ko", "de", "ko", "en"),
}
TEXTS = ("abc", "bca fgh", "가나다", "x", "mnop qr")
SMALL = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 64,
    "init_std": 0.6,  # so that outputs of different beginnings differ
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
}


@cache
def model_and_tokenizer(kind: str) -> tuple[Any, Any]:
    """An mBART, whose decoder begins with the language; others, whose first token it is (as mBART-50's)."""
    with tempfile.TemporaryDirectory() as folder:
        make = {"mbart": mbart_tokenizer, "m2m100": m2m100_tokenizer}.get(kind, nllb_tokenizer)
        tokenizer = with_languages(make(Path(folder)))
    torch.manual_seed(3)
    size = {**SMALL, "vocab_size": len(tokenizer) + len(getattr(tokenizer, "lang_code_to_id", ()))}
    if kind == "mbart":
        return AutoModelForSeq2SeqLM.from_config(MBartConfig(**size)).eval(), tokenizer
    config = {"bart": BartConfig, "nllb": M2M100Config, "m2m100": M2M100Config}[kind](**size, decoder_start_token_id=2)
    return AutoModelForSeq2SeqLM.from_config(config).eval(), tokenizer


def padded(tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


@pytest.mark.parametrize("kind", [*CODES])
@pytest.mark.parametrize("beams", [1, 3])
def test_every_row_begins_as_generate_does_alone(kind: str, beams: int) -> None:
    model, tokenizer = model_and_tokenizer(kind)
    ids, mask = padded(tokenizer)
    flags = DecodeFlags(max_predict_length=12, beam_size=beams, num_return=beams)
    found = Decoder(model, tokenizer, flags).decode(ids, mask, languages=CODES[kind])
    texts = set()
    for row, code in enumerate(CODES[kind]):
        token = tokenizer.convert_tokens_to_ids(f"__{code}__" if kind == "m2m100" else code)
        begin = {"decoder_start_token_id": token} if kind == "mbart" else {"forced_bos_token_id": token}
        output = model.generate(
            input_ids=ids[row : row + 1, : int(mask[row].sum())],
            max_new_tokens=12,
            num_beams=beams,
            num_return_sequences=beams,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            **begin,
        )
        languages = {*getattr(tokenizer, "lang_code_to_id", {}).values()}  # no special tokens in the library's eyes
        written = [[part for part in row_ids if part not in languages] for row_ids in output.sequences.tolist()]
        expected = tokenizer.batch_decode(written, skip_special_tokens=True)
        assert [hypothesis.text for hypothesis in found[row]] == expected
        if beams > 1:
            scores = [hypothesis.score for hypothesis in found[row]]
            assert scores == pytest.approx(output.sequences_scores.tolist(), abs=1e-5)
        texts.add((code, expected[0]))
    assert len({text for _, text in texts}) > 1


def test_a_tokenizer_without_language_codes_begins_as_ever() -> None:
    model = half_trained("t5")
    ids, mask = encoded(["abc", "de"])
    decoder = Decoder(model, TOKENIZER, DecodeFlags(max_predict_length=8))
    assert decoder(ids, mask, ["ko", "en"]) == decoder(ids, mask)
