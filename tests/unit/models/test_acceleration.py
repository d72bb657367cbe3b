"""`accelerate` leaves what a model computes, saves and generates as it was, and only changes how long it takes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    MarianConfig,
    MarianMTModel,
    MT5Config,
    T5Config,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from models.kernels.accelerate import accelerate, keep_mask

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
KINDS = ["t5-gated-gelu", "t5-relu", "mt5", "umt5"]


def build(kind: str, rate: float = 0.0) -> torch.nn.Module:
    """A small untouched model in training mode with every parameter away from its initial special value."""
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "vocab_size": 64, "d_model": 32}
    t5 = ids | {"d_kv": 8, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 3, "dropout_rate": rate}
    if kind.startswith("t5"):
        config = T5Config(feed_forward_proj=kind[3:], tie_word_embeddings=False, **t5)
    else:
        config = {"mt5": MT5Config, "umt5": UMT5Config}[kind](**t5)
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.train()


def batch(rows: int = 5, length: int = 60, target: int = 7, padded: bool = True) -> dict[str, torch.Tensor]:
    """Row 1 is half padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 64, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    labels = torch.randint(3, 64, (rows, target), generator=generator)
    if padded:
        mask[1, length // 2 :] = 0
        mask[3, -1] = 0
        labels[2, -3:] = -100
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def gradients(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = model(**inputs, use_cache=False)
    output.loss.backward()
    return output.logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(got: torch.Tensor, wanted: torch.Tensor, name: str, floor: float = 0.0) -> None:
    scale = max(wanted.abs().max().item(), floor)
    assert (got - wanted).abs().max().item() <= 1e-5 * scale, name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_all_gradients_equal_those_of_transformers(kind: str, padded: bool, training: bool) -> None:
    plain = build(kind, 0.0 if training else 0.1).train(training)
    fast = copy.deepcopy(plain)
    accelerate(fast)
    inputs = batch(padded=padded)
    wanted_logits, wanted = gradients(plain, inputs)
    logits, got = gradients(fast, inputs)
    assert_close(logits, wanted_logits, "logits")
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert_close(got[name], gradient, name)


@pytest.mark.parametrize("target", [1, 40])
def test_short_and_long_targets_give_the_same_gradients(target: int) -> None:
    plain = build("t5-gated-gelu")
    fast = copy.deepcopy(plain)
    accelerate(fast)
    _, wanted = gradients(plain, batch(target=target, padded=False))
    _, got = gradients(fast, batch(target=target, padded=False))
    for name, gradient in wanted.items():
        assert_close(got[name], gradient, name, floor=1e-6)


@pytest.mark.parametrize("kind", ["t5-gated-gelu", "umt5"])
def test_generation_is_the_same(kind: str) -> None:
    plain = build(kind).eval()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    inputs = batch(length=30)
    inputs.pop("labels")
    for beams in (1, 3):
        wanted = plain.generate(**inputs, num_beams=beams, max_new_tokens=12)
        assert fast.generate(**inputs, num_beams=beams, max_new_tokens=12).tolist() == wanted.tolist()


def test_frozen_parts_get_no_gradient_and_the_others_the_same() -> None:
    plain = build("t5-gated-gelu")
    for name, parameter in plain.named_parameters():
        parameter.requires_grad = "decoder" in name and "layer_norm" not in name
    fast = copy.deepcopy(plain)
    accelerate(fast)
    _, wanted = gradients(plain, batch())
    _, got = gradients(fast, batch())
    assert got.keys() == wanted.keys()
    for name in wanted:
        assert_close(got[name], wanted[name], name, floor=1e-3)


def test_gradient_checkpointing_gives_the_same_gradients_with_dropout() -> None:
    model = build("t5-gated-gelu", 0.1)
    accelerate(model)
    saved: list[list[int]] = [[], []]  # elements of the tensors that the forward pass keeps

    def seeded_gradients(sizes: list[int]) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
            return gradients(model, batch())[1]

    wanted = seeded_gradients(saved[0])
    model.activation_checkpointing_enable({"use_reentrant": False})
    got = seeded_gradients(saved[1])
    assert sum(saved[1]) < sum(saved[0]) / 3
    assert got.keys() == wanted.keys()
    for name in wanted:
        assert_close(got[name], wanted[name], name, floor=1e-3)


def test_state_dict_copies_and_class_names_stay() -> None:
    plain = build("t5-gated-gelu")
    fast = copy.deepcopy(plain)
    accelerate(fast)
    accelerate(fast)
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert [type(m).__name__ for m in fast.modules()] == [type(m).__name__ for m in plain.modules()]
    again = copy.deepcopy(fast)
    again.load_state_dict(plain.state_dict())
    wanted, _ = gradients(fast, batch())
    got, _ = gradients(again, batch())
    assert torch.equal(got, wanted)


def test_other_models_are_left_alone() -> None:
    model = MarianMTModel(MarianConfig(d_model=32, vocab_size=10, pad_token_id=0, encoder_layers=1, decoder_layers=1))
    classes = [type(module) for module in model.modules()]
    accelerate(model)
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5])
def test_dropout_keeps_the_right_share_and_scale(p: float) -> None:
    torch.manual_seed(0)
    kept = torch.stack([keep_mask((4096,), p).float().mean() for _ in range(500)]).mean().item()
    assert kept == pytest.approx(1 - p, abs=0.002)
    model = torch.nn.ModuleList([torch.nn.Dropout(p)])
    model.config = T5Config()
    accelerate(model)
    (dropout,) = model
    x = torch.ones(200_000, requires_grad=True)
    y = dropout(x)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_in_the_model_follows_the_seed_and_is_unbiased() -> None:
    model = build("t5-gated-gelu", 0.1)
    accelerate(model)
    inputs = batch(length=40)

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return model(**inputs, use_cache=False).loss.item()

    assert loss(5) == loss(5)
    assert loss(5) != loss(6)
    plain = build("t5-gated-gelu", 0.1)
    wanted = [plain(**inputs, use_cache=False).loss.item() for _ in range(40)]
    got = [loss(seed) for seed in range(40)]
    mean, spread = torch.tensor(wanted).mean().item(), torch.tensor(wanted).std().item()
    assert sum(got) / len(got) == pytest.approx(mean, abs=4 * spread / 40**0.5 * 2**0.5)
    assert torch.tensor(got).std().item() == pytest.approx(spread, rel=0.6)


@pytest.mark.parametrize("preset", ["byt5-mini", "t5-mini", "bart-mini", "mt5-mini"])
def test_presets_build_train_and_generate(preset: str, tmp_path: Path) -> None:
    settings = json.loads((CONFIGS / f"{preset}.json").read_text(encoding="utf-8"))
    assert settings.pop("s2s_tokenizer") == "bytes"
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(tmp_path)).train()
    assert 0.9e6 < model.num_parameters() < 4e6
    accelerate(model)
    logits, _ = gradients(model, batch())
    assert logits.shape == (5, 7, 384)
    assert torch.isfinite(logits).all()
    generated = model.eval().generate(batch()["input_ids"], max_new_tokens=3)
    assert generated[:, 0].tolist() == [0] * 5


def test_an_export_loads_in_plain_transformers(tmp_path: Path) -> None:
    fast = build("umt5")
    accelerate(fast)
    wanted, _ = gradients(fast, batch())
    fast.save_pretrained(tmp_path)
    assert "sdpa_or_cpu" not in (tmp_path / "config.json").read_text(encoding="utf-8")
    plain = UMT5ForConditionalGeneration.from_pretrained(tmp_path).train()
    got, _ = gradients(plain, batch())
    assert_close(got, wanted, "logits")
