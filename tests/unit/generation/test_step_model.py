"""The weights of a model, taken out of its modules: the pass of the encoder on a device, and one copy in prediction."""

from __future__ import annotations

import copy

import pytest
import torch

from config.flags.inference import DecodeFlags
from generation.decoder import Decoder
from generation.incremental.decoder import StepModel
from generation.incremental.weights import Tables, encoder_weights
from generation.label_scoring import LabelScorer
from generation.topk import BLOCKS_FROM, best_continuations
from models.loading import from_config
from tests.small_configs import CONFIGS, config_of
from tests.trained_models import TOKENIZER, encoded, half_trained, words


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_the_encoder_pass_of_a_device_is_that_of_the_library(name: str) -> None:
    model = from_config(config_of(name), seed=2).eval()
    for parameter in model.parameters():  # biases and norms too, which are zeros and ones at first
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(150) < torch.tensor([150, 61, 9, 1])[:, None]).long()  # farther than distances are told apart
    if "bart" in name:
        mask = mask[:, :120]
    ids = torch.randint(3, 259, mask.shape, generator=torch.Generator().manual_seed(1)) * mask
    expected = model.get_encoder()(input_ids=ids, attention_mask=mask)[0]
    step_model = StepModel(model, torch.float32)
    step_model.encoder, step_model.encoder_weights = None, encoder_weights(model, Tables(torch.float32))
    found = step_model._encoded(ids, mask)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["t5-untied", "bart"])
def test_released_weights_decode_and_score_as_before(name: str, precision: str) -> None:
    ids, mask = encoded(words(8, seed=3))
    model = half_trained(name, 40)
    flags = DecodeFlags(beam_size=3, max_predict_length=12)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        texts, scores = Decoder(model, TOKENIZER, flags), LabelScorer(model, TOKENIZER, ["ab", "c"])
        expected = texts.decode(ids, mask), scores(ids, mask)
        texts = Decoder(copy.deepcopy(model), TOKENIZER, flags)
        scores = LabelScorer(copy.deepcopy(model), TOKENIZER, ["ab", "c"])
        texts.release()
        scores.release()
        assert texts.decode(ids, mask) == expected[0]
        assert scores(ids, mask).equal(expected[1])
    held = [name for name, part in texts.model.get_decoder().named_parameters() if part.numel()]
    assert set(held) <= {"embed_tokens.weight"}  # the encoder's too


def test_the_best_of_each_beam_hold_the_best_of_the_source() -> None:
    """A large vocabulary is looked at beam by beam, with logits of few values: many ties."""
    draw = torch.Generator().manual_seed(1)
    logits = torch.randint(-40, 0, (3, 4, BLOCKS_FROM + 7), generator=draw) / 8.0
    beams, normaliser = torch.randn(3, 4, generator=draw), torch.randn(3, 4, 1, generator=draw)
    flat = (logits - normaliser + beams.unsqueeze(2)).view(3, -1)
    scores, parents, tokens = best_continuations(logits.clone(), beams, 8, normaliser)
    assert scores.equal(flat.topk(8, 1).values)
    places = parents * logits.shape[2] + tokens
    assert flat.gather(1, places).equal(scores)
    assert all(len(row.unique()) == 8 for row in places)
