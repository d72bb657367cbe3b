"""-compile: steps of fixed shapes find the texts and scores of those that are not compiled."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from config.flags.inference import DecodeFlags
from generation.decoder import Decoder
from generation.incremental.compiled import bucket, compilations
from generation.incremental.weights import Tables, encoder_weights
from models.loading import from_config
from tests.small_configs import config_of
from tests.trained_models import TOKENIZER, encoded, half_trained, label_map, words

# The first is compiled by a C++ compiler, which takes seconds; of the others PyTorch traces the layers and runs them.
SEARCHES = [
    ("inductor", "t5", DecodeFlags(max_predict_length=10), ""),
    ("eager", "bart", DecodeFlags(beam_size=4, max_predict_length=70, no_repeat_ngram_size=2), ""),
    ("eager", "t5", DecodeFlags(beam_size=2), "ab,abc,d"),
]


@pytest.mark.parametrize(("backend", "name", "flags", "labels"), SEARCHES)
def test_compiled_steps_find_the_same(
    backend: str, name: str, flags: DecodeFlags, labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model, allowed = half_trained(name, 40), label_map(labels.split(",")) if labels else None
    ids, mask = encoded(words(11, seed=1))
    expected = Decoder(model, TOKENIZER, flags, allowed).decode(ids, mask)
    decoder = Decoder(model, TOKENIZER, DecodeFlags(**{**vars(flags), "compile": True}), allowed)
    for _ in range(2):  # the second batch finds what the first left in the buffers
        found = decoder.decode(ids, mask)
        assert [[one.text for one in row] for row in found] == [[one.text for one in row] for row in expected]
        scores = [[one.score for one in row] for row in found]
        assert scores == [pytest.approx([one.score for one in row], abs=1e-5) for row in expected]
    buckets = decoder.compiled[torch.float32][0].seen
    assert {rows for rows, _, _ in buckets} <= {1, 2, 4, 8, 16}
    assert {(source, steps) for _, source, steps in buckets} <= {(64, 64), (64, 128)}
    (line,) = compilations()
    assert "bucket" in line


def test_sources_are_padded_no_further_than_the_model_has_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device the encoder's weights are ours, and the positions of padding are looked up too."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = from_config(config_of("bart", max_position_embeddings=20), seed=1).eval()
    ids, mask = encoded(words(5, seed=1))
    expected = Decoder(model, TOKENIZER, DecodeFlags(max_predict_length=4)).decode(ids, mask)
    decoder = Decoder(model, TOKENIZER, DecodeFlags(max_predict_length=4, compile=True))
    (step_model,) = decoder.step_models()
    step_model.encoder, step_model.encoder_weights = None, encoder_weights(model, Tables(torch.float32))
    found = decoder.decode(ids, mask)
    assert [row[0].text for row in found] == [row[0].text for row in expected]


def test_sources_are_counted_in_powers_of_two() -> None:
    assert [bucket(count) for count in (1, 2, 3, 8, 9, 100)] == [1, 2, 4, 8, 16, 128]
