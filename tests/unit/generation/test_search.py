"""Our search gives the texts and scores of the library's `generate`, whatever batch a row is in."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BlenderbotConfig, BlenderbotForConditionalGeneration, GenerationConfig, PreTrainedModel

from config.flags.inference import DecodeFlags
from generation.beam_search import FoundTokens, Outputs, SearchOptions, beam_search
from generation.decoder import Decoder, Hypothesis
from generation.incremental.decoder import BeamCache, StepModel
from generation.incremental.weights import supports
from generation.logits_processors import ScoreRules
from generation.sampling import draw_tokens, row_draws, sample
from models.loading import from_config
from tests.small_configs import config_of
from tests.small_models import bart_tokenizer
from tests.trained_models import TOKENIZER, encoded, half_trained, label_map, words

NAMES = ("t5", "t5-untied", "mt5", "umt5", "bart", "mbart")
LONGEST = 24


def by_library(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, start: int, **settings: Any
) -> list[list[tuple[str, float]]]:
    """(text, score) of every returned sequence of `generate`; the score is 0 where it gives none."""
    config = GenerationConfig(
        max_new_tokens=LONGEST, pad_token_id=0, eos_token_id=1, decoder_start_token_id=start, **settings
    )
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=1, decoder_start_token_id=start)
    output = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, output_scores=True, return_dict_in_generate=True
    )
    texts = TOKENIZER.batch_decode(output.sequences, skip_special_tokens=True)
    scores = [0.0] * len(texts) if output.get("sequences_scores") is None else output.sequences_scores.tolist()
    count = len(texts) // len(ids)
    pairs = list(zip(texts, scores, strict=True))
    return [pairs[first : first + count] for first in range(0, len(pairs), count)]


def check_against_library(name: str, rows: int = 24, **settings: Any) -> list[list[Hypothesis]]:
    model = half_trained(name)
    ids, mask = encoded(words(rows, seed=99))
    own = {"num_beams": "beam_size", "num_return_sequences": "num_return", "min_length": "min_predict_length"}
    options = DecodeFlags(max_predict_length=LONGEST, **{own.get(key, key): value for key, value in settings.items()})
    decoder = Decoder(model, TOKENIZER, options)
    found = decoder.decode(ids, mask)
    assert decoder(ids, mask) == [row[0].text for row in found]
    expected = by_library(model, ids, mask, 1 if name == "mbart" else 0, **settings)
    assert [[output.text for output in row] for row in found] == [[text for text, _ in row] for row in expected]
    if settings.get("num_beams", 1) > 1:
        scores = [output.score for row in found for output in row]
        assert scores == pytest.approx([score for row in expected for _, score in row], rel=5e-6, abs=1e-5)
    return found


@pytest.mark.parametrize("beams", [1, 4, 8])
@pytest.mark.parametrize("name", NAMES)
def test_texts_and_scores_are_those_of_the_library(name: str, beams: int) -> None:
    found = check_against_library(name, num_beams=beams, num_return_sequences=beams)
    assert len({len(row[0].text) for row in found}) > 2


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 4, "length_penalty": 0.6},
        {"num_beams": 4, "length_penalty": 2.0},
        {"num_beams": 4, "length_penalty": 0.0},
        {"num_beams": 4, "length_penalty": -0.5},
        {"num_beams": 4, "no_repeat_ngram_size": 1},
        {"num_beams": 4, "no_repeat_ngram_size": 2},
        {"num_beams": 4, "no_repeat_ngram_size": 3},
        {"num_beams": 4, "repetition_penalty": 1.5},
        {"num_beams": 4, "min_length": 9},
        {"num_beams": 4, "early_stopping": True},
        {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0},
        {"num_beams": 2, "min_length": 9, "no_repeat_ngram_size": 3, "repetition_penalty": 1.2, "length_penalty": 2.0},
        {"num_beams": 1, "no_repeat_ngram_size": 2},
        {"num_beams": 1, "min_length": 9, "no_repeat_ngram_size": 3, "repetition_penalty": 1.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["t5-untied", "bart"])
def test_rules_are_those_of_the_library(name: str, settings: dict[str, Any]) -> None:
    check_against_library(name, num_return_sequences=settings["num_beams"], **settings)


@pytest.mark.parametrize("beams", [1, 4])
def test_a_fixed_first_token_is_that_of_the_library(beams: int) -> None:
    model = half_trained("bart")
    ids, mask = encoded(words(16, seed=8))
    letter = TOKENIZER("h").input_ids[0]
    rules = ScoreRules(end_token=1, first_token=letter)
    options = SearchOptions(start_token=0, max_length=LONGEST, rules=rules, flags=DecodeFlags(beam_size=beams))
    expected = by_library(model, ids, mask, 0, num_beams=beams, forced_bos_token_id=letter)
    step_model = StepModel(model, torch.float32)
    with torch.inference_mode():
        state = step_model.start(ids, mask, beams)
        if beams > 1:
            found = beam_search(state, 16, options, ids.device)
        else:
            found = sample(state, list(range(16)), options, ids.device)
    texts = [TOKENIZER.decode(row[0].ids, skip_special_tokens=True) for row in found]
    assert texts == [row[0][0] for row in expected]
    assert all(text.startswith("h") for text in texts)
    if beams > 1:
        assert [row[0].score for row in found] == pytest.approx([row[0][1] for row in expected], abs=1e-5)


def test_learned_positions_and_a_scaled_embedding() -> None:
    model = from_config(config_of("bart", scale_embedding=True, activation_function="relu"), seed=5).eval()
    model.final_logits_bias.normal_(generator=torch.Generator().manual_seed(1))
    ids, mask = encoded(words(8, seed=1))
    found = Decoder(model, TOKENIZER, DecodeFlags(beam_size=3, max_predict_length=LONGEST)).decode(ids, mask)
    expected = by_library(model, ids, mask, 0, num_beams=3)
    assert [row[0].text for row in found] == [row[0][0] for row in expected]
    assert [row[0].score for row in found] == pytest.approx([row[0][1] for row in expected], abs=1e-5)


def test_long_outputs_outgrow_the_cache_and_the_distances_of_the_bias() -> None:
    model = from_config(config_of("t5-untied"), seed=2).eval()
    ids, mask = encoded(words(3, seed=1))
    options = DecodeFlags(beam_size=3, max_predict_length=300, min_predict_length=290)
    found = Decoder(model, TOKENIZER, options).decode(ids, mask)
    config = GenerationConfig(
        max_new_tokens=300, min_length=290, num_beams=3, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0
    )
    expected = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, output_scores=True, return_dict_in_generate=True
    )
    assert [row[0].score for row in found] == pytest.approx(expected.sequences_scores.tolist(), abs=1e-5)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", ["t5", "umt5", "bart"])
def test_a_row_does_not_depend_on_its_batch(name: str, beams: int) -> None:
    model, sources = half_trained(name), words(23, seed=4)
    decoder = Decoder(model, TOKENIZER, DecodeFlags(beam_size=beams, max_predict_length=LONGEST))
    whole = decoder.decode(*encoded(sources))
    for size in (1, 5):
        parts: list[list[Hypothesis]] = []
        for start in range(0, len(sources), size):
            parts += decoder.decode(*encoded(sources[start : start + size]))
        assert [row[0].text for row in parts] == [row[0].text for row in whole]
        assert [row[0].score for row in parts] == pytest.approx([row[0].score for row in whole], abs=1e-5)


def test_scores_of_greedy_search_are_the_model_s_own() -> None:
    model = half_trained("bart")
    ids, mask = encoded(words(8, seed=4))
    found = Decoder(model, TOKENIZER, DecodeFlags(max_predict_length=LONGEST, repetition_penalty=1.5)).decode(ids, mask)
    for row, (output,) in enumerate(found):
        target = TOKENIZER(output.text).input_ids
        target = target if len(target) <= LONGEST else target[:LONGEST]
        labels = torch.tensor([target])
        with torch.no_grad():
            logits = model(input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1], labels=labels).logits
        expected = logits.log_softmax(-1)[0].gather(1, labels.T).mean()
        assert output.score == pytest.approx(float(expected), abs=1e-5)


def test_samples_depend_on_row_id_and_seed_only() -> None:
    model, sources = half_trained("t5-untied"), words(12, seed=4)
    options = DecodeFlags(max_predict_length=LONGEST, num_return=3, do_sample=True, temperature=1.3, seed=7)
    ids = list(range(100, 112))
    whole = Decoder(model, TOKENIZER, options).decode(*encoded(sources), ids)
    for start in range(0, 12, 4):
        part = Decoder(model, TOKENIZER, options).decode(*encoded(sources[start : start + 4]), ids[start : start + 4])
        assert [[output.text for output in row] for row in part] == [
            [output.text for output in row] for row in whole[start : start + 4]
        ]
    assert sum(len({output.text for output in row}) > 1 for row in whole) > 6
    assert all(row[0].score >= row[1].score >= row[2].score for row in whole)
    other = replace(options, seed=8)
    assert Decoder(model, TOKENIZER, other).decode(*encoded(sources), ids) != whole


def test_a_row_draws_the_same_however_many_samples() -> None:
    few, many = row_draws([5, 9], 1, 6, seed=3), row_draws([9, 5], 4, 6, seed=3)
    assert few[0, 0].tolist() == many[1, 0].tolist()
    assert few[1, 0].tolist() == many[0, 0].tolist()
    assert row_draws([5], 1, 6, seed=4)[0, 0].tolist() != few[0, 0].tolist()


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (DecodeFlags(), {0: 0.1, 1: 0.4, 2: 0.3, 3: 0.2}),
        (DecodeFlags(top_k=2), {1: 4 / 7, 2: 3 / 7}),
        (DecodeFlags(top_p=0.65), {1: 4 / 7, 2: 3 / 7}),
        (DecodeFlags(top_p=0.75), {1: 4 / 9, 2: 3 / 9, 3: 2 / 9}),
        (DecodeFlags(top_p=0.01), {1: 1.0}),
        (DecodeFlags(temperature=0.5), {0: 1 / 30, 1: 16 / 30, 2: 9 / 30, 3: 4 / 30}),
        (DecodeFlags(top_k=3, top_p=0.7), {1: 4 / 7, 2: 3 / 7}),
    ],
)
def test_tokens_are_drawn_by_their_probability(options: DecodeFlags, kept: dict[int, float]) -> None:
    count = 30_000
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log().expand(count, -1)
    draws = (torch.arange(count) + 0.5) / count
    shares = draw_tokens(logits, draws, options).bincount(minlength=4) / count
    assert {token: float(share) for token, share in enumerate(shares) if share} == pytest.approx(kept, abs=1e-4)


def test_an_end_of_the_interval_draws_a_token_that_is_kept() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 1.0, float("-inf")]])
    for draw in (0.0, 1.0 - 2**-24, 1.0):
        assert int(draw_tokens(logits, torch.tensor([draw]), DecodeFlags())) in (0, 2)


def test_autocast_gives_caches_of_its_type_and_nearly_the_same_scores() -> None:
    model = half_trained("bart")
    decoder = Decoder(model, TOKENIZER, DecodeFlags(beam_size=4, max_predict_length=LONGEST))
    ids, mask = encoded(words(16, seed=4))
    exact = decoder.decode(ids, mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert BeamCache(decoder.step_models()[0], 2, 4).layers[0].dtype == torch.bfloat16
        close = decoder.decode(ids, mask)
    same = [(a[0], b[0]) for a, b in zip(exact, close, strict=True) if a[0].text == b[0].text]
    assert len(same) >= 8
    assert [a.score for a, _ in same] == pytest.approx([b.score for _, b in same], abs=0.1)


def test_compaction_keeps_what_the_beams_see() -> None:
    model = StepModel(half_trained("bart"), torch.float32)
    cache = BeamCache(model, sources=3, beams=2)
    for step in range(5):
        cache.open(step)
        for layer in range(len(model.weights.layers)):
            value = torch.arange(2).view(1, 1, 2, 1) + 10.0 * step + 100.0 * torch.arange(3).view(3, 1, 1, 1)
            cache.extend(layer, torch.stack((value, -value)).expand(2, 3, 4, 2, 8))
        cache.follow(torch.tensor([[0, 0], [1, 0], [1, 1]]))
    cache.compact(torch.tensor([0, 2]))
    assert cache.used == 5
    assert cache.positions.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert cache.layers[1][0, 0, 0, :5, 0].tolist() == [0, 10, 20, 30, 40]
    assert cache.layers[0][1, 1, 3, :5, 7].tolist() == [-201, -211, -221, -231, -241]
    assert cache.visible.tolist() == [[[0.0] * 5] * 2] * 2


def test_other_architectures_are_decoded_by_the_library() -> None:
    config = BlenderbotConfig(
        vocab_size=384, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64, init_std=0.5,
        pad_token_id=0, eos_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BlenderbotForConditionalGeneration(config).eval()
    ids, mask = encoded(words(4, seed=1))
    assert not supports(model)
    beams = Decoder(model, TOKENIZER, DecodeFlags(beam_size=4, max_predict_length=8, num_return=2))
    outputs = beams.decode(ids, mask)
    assert beams(ids, mask) == [row[0].text for row in outputs]
    assert all(first.score >= second.score for first, second in outputs)
    (greedy,) = Decoder(model, TOKENIZER, DecodeFlags(max_predict_length=8)).decode(ids[:1], mask[:1])
    assert greedy[0].score < 0
    with pytest.raises(
        ValueError,
        match="labels, sampling, ensembles and -compile are not supported for BlenderbotForConditionalGeneration",
    ):
        Decoder(model, TOKENIZER, DecodeFlags(do_sample=True, seed=0))


class Adapted(torch.nn.Linear):
    """A linear layer that might add something of its own."""


def adapted(model: PreTrainedModel) -> PreTrainedModel:
    """The same model for the eyes of `supports` another one, which is decoded by the library."""
    model = deepcopy(model)
    model.model.decoder.layers[0].fc1.__class__ = Adapted
    return model


def test_adapters_are_decoded_by_the_library() -> None:
    model = from_config(config_of("bart"), seed=1).eval()
    assert supports(model)
    assert not supports(adapted(model))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("first", [False, True])
def test_scores_through_the_library_are_sums_of_log_probabilities(
    tmp_path: Path, first: bool, penalty: float, beams: int
) -> None:
    """Over the length ** penalty; neither padding nor a fixed first token counts (its length does)."""
    tokenizer = bart_tokenizer(tmp_path / "bart") if first else TOKENIZER
    model = half_trained("bart")
    if first:
        model = from_config(config_of("bart", vocab_size=500, pad_token_id=1, eos_token_id=2), seed=9).eval()
    ids, mask = encoded(words(16, seed=4))
    options = DecodeFlags(beam_size=beams, num_return=beams, max_predict_length=LONGEST, length_penalty=penalty)
    own = Decoder(model, tokenizer, options)
    found = own._search(ids, mask, own._beginning((), ids.device), range(16), with_scores=True)
    library = Decoder(adapted(model), tokenizer, options)
    assert library.config.forced_bos_token_id == (tokenizer.bos_token_id if first else None)
    scored = library.decode(ids, mask)
    assert [[output.text for output in row] for row in scored] == [
        [output.text for output in row] for row in own.decode(ids, mask)
    ]
    if not first:
        assert len({len(row[0].ids) for row in found}) > 2
    for row, (outputs, tokens) in enumerate(zip(scored, found, strict=True)):
        for output, path in zip(outputs, tokens, strict=True):
            target = torch.tensor([path.ids])
            inputs = torch.cat((torch.tensor([[own.config.decoder_start_token_id]]), target[:, :-1]), 1)
            with torch.no_grad():
                logits = model(
                    input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1], decoder_input_ids=inputs
                ).logits
            taken = logits.double().log_softmax(-1)[0].gather(1, target.T)[1 if first else 0 :]
            assert output.score == pytest.approx(float(taken.sum()) / len(path.ids) ** penalty, abs=1e-5, rel=1e-6)


@pytest.mark.parametrize("beams", [1, 4])
def test_an_ensemble_averages_log_probabilities(beams: int) -> None:
    first, second = half_trained("bart"), half_trained("t5-untied")
    ids, mask = encoded(words(12, seed=4))
    options = DecodeFlags(beam_size=beams, max_predict_length=LONGEST)
    alone = Decoder(first, TOKENIZER, options).decode(ids, mask)
    twice = Decoder(first, TOKENIZER, options, others=[first]).decode(ids, mask)
    assert [row[0].text for row in twice] == [row[0].text for row in alone]
    assert [row[0].score for row in twice] == pytest.approx([row[0].score for row in alone], abs=1e-5)
    together = Decoder(first, TOKENIZER, options, others=[second]).decode(ids, mask)
    assert together != alone
    for row, (output,) in enumerate(together):
        labels = torch.tensor([TOKENIZER(output.text).input_ids[:LONGEST]])
        inputs = {"input_ids": ids[row : row + 1], "attention_mask": mask[row : row + 1], "labels": labels}
        with torch.no_grad():
            mean = (first(**inputs).logits.log_softmax(-1) + second(**inputs).logits.log_softmax(-1)) / 2
        expected = mean.log_softmax(-1)[0].gather(1, labels.T).mean()
        assert output.score == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("names", [("t5-untied", "bart"), ("bart", "t5-untied")])
def test_an_ensemble_writes_no_more_than_its_shortest_model(names: tuple[str, str]) -> None:
    """The BART has 128 positions, the T5 any number."""
    first, second = map(half_trained, names)
    options = DecodeFlags(max_predict_length=200, min_predict_length=200)
    ((output,),) = Decoder(first, TOKENIZER, options, others=[second]).decode(*encoded(["abc"]))
    assert 120 <= len(output.text) <= 127
    with pytest.raises(ValueError, match="the longest label has 151 tokens; the model writes at most 128"):
        Decoder(first, TOKENIZER, DecodeFlags(), label_map(["a" * 150]), others=[second])


def test_models_of_an_ensemble_need_the_same_vocabulary_and_start() -> None:
    other = from_config(config_of("bart", vocab_size=500), seed=1)
    with pytest.raises(ValueError, match=r"need the same vocabulary; theirs have \[384, 500\] tokens"):
        Decoder(half_trained("bart"), TOKENIZER, DecodeFlags(), others=[other])
    with pytest.raises(ValueError, match=r"need the same start token; theirs are \[0, 1\]"):
        Decoder(half_trained("bart"), TOKENIZER, DecodeFlags(), others=[half_trained("mbart")])


def test_an_output_that_ends_at_once_has_a_length_of_its_own() -> None:
    """Where the end token is another than 1, as BART's, an empty output was taken for a cut one."""
    finished = Outputs.none(1, 1, torch.device("cpu"))
    finished.add(torch.tensor([0]), torch.tensor([[-1.0]]), torch.tensor([[[2]]]))
    assert finished.read(1) == [[FoundTokens([2], -1.0)]]
