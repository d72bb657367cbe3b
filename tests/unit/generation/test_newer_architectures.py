"""Newer architectures: the loss is the library's, it falls, a resumed run ends with the same bits, and the outputs are
those of `generate`."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from config.flags.inference import DecodeFlags
from examples.gbst_t5 import Gbst, GbstT5Config
from generation.decoder import Decoder, generation_config
from generation.engines.conversion import save_converted
from generation.engines.ctranslate2 import CTranslate2Engine
from generation.incremental.decoder import StepModel
from generation.incremental.weights import Tables, encoder_weights, supports
from generation.label_scoring import LabelScorer
from models.architectures import architecture
from models.forward import source_inputs
from models.kernels.accelerate import accelerate
from models.loading import describe, from_checkpoint, from_config
from models.losses.objective import batch_loss
from models.seq2seq_module import micro_batch_seed
from models.special_tokens import encoded_target
from tests.small_configs import NEWER, config_of
from tests.trained_models import TOKENIZER, encoded, words
from tests.unit.generation.test_label_scoring import brute_force
from utils.padding import IGNORE_INDEX

CONFIGS = NEWER | {"gbst": config_of("t5", model_type=GbstT5Config.model_type, dropout_rate=0.1)}
STEPS, KILLED_AT = 60, 45
LONGEST = 12  # tokens written


def batch_of(texts: list[str]) -> dict[str, Tensor]:
    ids, mask = encoded(texts)
    labels = ids.masked_fill(mask == 0, IGNORE_INDEX)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "target_index": mask.flatten().nonzero()[:, 0]}


class Run:
    """Training to copy words, with what a checkpoint holds of it: weights, config and optimizer."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.train()
        accelerate(model)
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        self.losses: list[float] = []

    def train(self, begin: int, end: int) -> None:
        for step in range(begin, end):
            torch.manual_seed(micro_batch_seed(1, 0, step, 0))
            batch = batch_of(words(16, seed=step))
            loss = batch_loss(self.model, batch)[0] / len(batch["target_index"])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())

    def resumed(self) -> Run:
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        other = Run(from_checkpoint(describe(self.model), weights))
        other.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        return other


@cache
def trained(name: str) -> tuple[Run, Run]:
    """A run that nobody stopped, and one that was resumed on its way."""
    run = Run(from_config(CONFIGS[name], seed=4))
    run.train(0, KILLED_AT)
    resumed = run.resumed()
    run.train(KILLED_AT, STEPS)
    resumed.train(KILLED_AT, STEPS)
    return run, resumed


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_falls_and_a_resumed_run_ends_with_the_same_bits(name: str) -> None:
    run, resumed = trained(name)
    assert run.losses[-1] < 0.7 * run.losses[0]
    assert resumed.losses == run.losses[KILLED_AT:]
    expected = run.model.state_dict()
    assert all(value.equal(expected[key]) for key, value in resumed.model.state_dict().items())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_is_that_of_the_library(name: str) -> None:
    model, batch = trained(name)[0].model.eval(), batch_of(words(9, seed=500))
    given = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    given |= source_inputs(model, batch["attention_mask"])
    with torch.no_grad():
        ours = batch_loss(model, batch)[0].item() / len(batch["target_index"])
        assert ours == pytest.approx(model(**given).loss.item(), rel=1e-5)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_outputs_are_those_of_generate(name: str, beams: int) -> None:
    model = trained(name)[0].model.eval()
    ids, mask = encoded(words(24, seed=99))
    flags = DecodeFlags(max_predict_length=LONGEST, min_predict_length=3, beam_size=beams, num_return=beams)
    decoder = Decoder(model, TOKENIZER, flags)
    found = decoder.decode(ids, mask)
    assert decoder.own == architecture(model.config.model_type).own_search
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": CONFIGS[name]["decoder_start_token_id"]}
    model.generation_config = GenerationConfig(**tokens)
    options = {"max_new_tokens": LONGEST, "min_length": 3, "num_beams": beams, "num_return_sequences": beams}
    expected = model.generate(input_ids=ids, attention_mask=mask, **source_inputs(model, mask), **options)
    texts = TOKENIZER.batch_decode(expected, skip_special_tokens=True)
    assert [output.text for row in found for output in row] == texts
    assert len(set(texts)) > beams


BART_LIKE = [name for name, config in NEWER.items() if architecture(config["model_type"]).like_bart]


@pytest.mark.parametrize("name", [*BART_LIKE, "switch-t5"])
@torch.inference_mode()
def test_the_encoder_pass_of_a_device_is_that_of_the_library(name: str) -> None:
    model = trained(name)[0].model.eval()
    ids, mask = encoded(words(9, seed=7, longest=60))
    step_model = StepModel(model, torch.float32)
    step_model.encoder, step_model.encoder_weights = None, encoder_weights(model, Tables(torch.float32))
    expected = model.get_encoder()(input_ids=ids, attention_mask=mask)[0][mask.bool()]
    torch.testing.assert_close(step_model._encoded(ids, mask)[mask.bool()], expected, rtol=1e-4, atol=2e-5)


def check_label_scores(name: str) -> None:
    model, labels = trained(name)[0].model.eval(), ("ab", "abc", "긍정")
    ids, mask = encoded(words(9, seed=99))
    expected = [brute_force(model, ids, mask, encoded_target(TOKENIZER, text)) for text in labels]
    torch.testing.assert_close(
        LabelScorer(model, TOKENIZER, labels)(ids, mask), torch.stack(expected, 1), atol=1e-4, rtol=0
    )


@torch.inference_mode()
def test_labels_are_scored_with_experts() -> None:
    check_label_scores("switch-t5")


@pytest.mark.parametrize("name", BART_LIKE)
@torch.inference_mode()
def test_labels_are_scored_and_a_conversion_decodes_as_our_search(name: str, tmp_path: Path) -> None:
    check_label_scores(name)
    model = trained(name)[0].model.eval()
    ids, mask = encoded(words(9, seed=99))
    options = DecodeFlags(max_predict_length=LONGEST, beam_size=3, early_stopping=True)
    save_converted(tmp_path, model, TOKENIZER, "float32")
    engine = CTranslate2Engine(tmp_path, TOKENIZER, options, generation_config(model, TOKENIZER, options), threads=1)
    rows = [row[: int(length)].numpy() for row, length in zip(ids, mask.sum(1), strict=True)]
    texts = [prediction.text for prediction in engine(range(len(rows)), rows)]
    assert texts == Decoder(model, TOKENIZER, options)(ids, mask)


def test_an_m2m100_that_starts_with_padding_is_left_to_the_library() -> None:
    """Which gives the first token after it another position in training than in `generate`."""
    model = from_config({**NEWER["m2m_100"], "decoder_start_token_id": 0}, seed=4)
    assert not supports(model)


def test_gbst_is_drawn_as_a_t5() -> None:
    model = from_config({**CONFIGS["gbst"], "d_model": 256}, seed=1)
    deviations = {name: value.std().item() for name, value in model.encoder.named_parameters() if value.ndim > 1}
    expected = {"block.1.layer.0.SelfAttention.k.weight": 256**-0.5, "gbst.order.weight": (256 * 4) ** -0.5}
    assert {name: deviations[name] for name in expected} == pytest.approx(expected, rel=0.05)


def test_gbst_scores_the_blocks_that_a_byte_lies_in_and_padding_takes_no_part() -> None:
    torch.manual_seed(1)
    gbst = Gbst(GbstT5Config(d_model=3, max_block_size=3, downsample_factor=2))
    x, length = torch.randn(2, 7, 3), 5
    mask = torch.tensor([[1] * 7, [1] * length + [0] * 2])
    found = gbst(x, mask)
    row = torch.nn.functional.pad(x[1, :length], (0, 0, 0, 2)).T.unsqueeze(0)
    row = gbst.order(row)[0].T  # (5, 3): the bytes and those that follow
    mixed = []
    for place in range(length):
        begins = [place - place % size for size in (1, 2, 3)]
        blocks = torch.stack([row[begin : begin + size].mean(0) for size, begin in zip((1, 2, 3), begins, strict=True)])
        mixed.append((blocks * gbst.score(blocks).softmax(0)).sum(0))
    expected = torch.stack([sum(mixed[begin : begin + 2]) / len(mixed[begin : begin + 2]) for begin in (0, 2, 4)])
    assert found.shape == (2, 4, 3)
    torch.testing.assert_close(found[1], torch.cat((expected, torch.zeros(1, 3))))
