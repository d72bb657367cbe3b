"""Searches and label scores of a CUDA device beside those of the CPU, with one copy of the weights."""

from __future__ import annotations

import copy

import pytest
import torch

from config.flags.inference import DecodeFlags
from generation.decoder import Decoder
from generation.label_scoring import LabelScorer
from tests.trained_models import TOKENIZER, encoded, half_trained, words
from utils.devices import Devices, use_arithmetic

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]
LABELS = ["ab", "abc", "d"]


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-4), ("bf16", 0.2)])
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", ["t5-untied", "umt5", "bart"])
def test_a_gpu_finds_what_the_cpu_finds(name: str, beams: int, precision: str, most: float) -> None:
    use_arithmetic(Devices("cuda", 1, 1, "32-true"))
    model, flags = half_trained(name), DecodeFlags(beam_size=beams, max_predict_length=12)
    ids, mask = encoded(words(32, seed=5))
    wanted = Decoder(model, TOKENIZER, flags).decode(ids, mask)
    wanted_scores = LabelScorer(model, TOKENIZER, LABELS)(ids, mask)
    there = ids.cuda(), mask.cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        decoder = Decoder(copy.deepcopy(model).cuda(), TOKENIZER, flags)
        decoder.release()
        found = decoder.decode(*there)
        scorer = LabelScorer(copy.deepcopy(model).cuda(), TOKENIZER, LABELS)
        scorer.release()
        scores = scorer(*there).cpu()
    same = [(a[0], b[0]) for a, b in zip(found, wanted, strict=True) if a[0].text == b[0].text]
    assert len(same) >= (32 if precision == "fp32" else 16)
    assert [a.score for a, _ in same] == pytest.approx([b.score for _, b in same], abs=most)
    assert (scores - wanted_scores).abs().max() < 10 * most


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", ["t5-untied", "bart"])
def test_compiled_steps_find_the_same(name: str, beams: int) -> None:
    use_arithmetic(Devices("cuda", 1, 1, "32-true"))
    model = copy.deepcopy(half_trained(name)).cuda()
    ids, mask = (part.cuda() for part in encoded(words(32, seed=5)))
    wanted = Decoder(model, TOKENIZER, DecodeFlags(beam_size=beams, max_predict_length=70)).decode(ids, mask)
    flags = DecodeFlags(beam_size=beams, max_predict_length=70, compile=True)
    decoder = Decoder(model, TOKENIZER, flags)
    for _ in range(3):  # as it comes, recorded as CUDA graphs, and replayed
        found = decoder.decode(ids, mask)
        assert [row[0].text for row in found] == [row[0].text for row in wanted]
        assert [row[0].score for row in found] == pytest.approx([row[0].score for row in wanted], abs=1e-4)
