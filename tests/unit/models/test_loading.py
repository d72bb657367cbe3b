"""Tying survives everything that can happen to a model; freezing; tokenizers in checkpoints; clear refusals."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, BertConfig, ByT5Tokenizer, EncoderDecoderConfig, LEDConfig

from models.architectures import source_limit, target_limit
from models.forward import decode_teacher_forced
from models.kernels.accelerate import accelerate
from models.loading import describe, from_checkpoint, from_config, from_pretrained, is_untied, load_config, undrawn
from models.losses.cross_entropy import token_loss_sum
from models.presets import preset_names, read_config
from models.tokenizers import fitting_tokenizer, load_tokenizer, pack_tokenizer, unpack_tokenizer
from tests.small_configs import CONFIGS, NEWER, config_of
from tests.small_models import example_batch
from utils.errors import UserError
from utils.libraries import ask_the_hub_once

UNTIED = ("t5-untied", "mt5", "umt5")


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(**example_batch()).logits


def our_loss(model: torch.nn.Module) -> torch.Tensor:
    batch = example_batch()
    output = decode_teacher_forced(model, **batch)  # type: ignore[arg-type]
    return token_loss_sum(output.hidden, output.weight, batch["labels"], bias=output.bias, scale=output.scale)


@pytest.mark.parametrize("name", CONFIGS)
def test_tying_survives_train_checkpoint_export_and_reload(name: str, tmp_path: Path) -> None:
    model = from_config(config_of(name), seed=1)
    assert is_untied(model) == (name in UNTIED)
    before = logits_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    our_loss(model).backward()
    optimizer.step()
    trained = logits_of(model)
    assert not torch.allclose(before, trained)

    torch.save({"description": describe(model), "weights": model.state_dict()}, tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    resumed = from_checkpoint(saved["description"], saved["weights"])
    assert torch.equal(logits_of(resumed), trained)
    assert is_untied(resumed) == (name in UNTIED)

    accelerate(resumed)
    assert torch.allclose(logits_of(resumed), trained, rtol=1e-5, atol=1e-5)
    resumed.save_pretrained(tmp_path / "export")
    ours = from_pretrained(str(tmp_path / "export"))
    assert torch.equal(logits_of(ours), trained)
    assert is_untied(ours) == (name in UNTIED)
    assert next(ours.parameters()).dtype == torch.float32
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "export")
    assert torch.equal(logits_of(plain), trained)

    ours.save_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(from_pretrained(str(tmp_path / "again"))), trained)


@pytest.mark.parametrize("name", CONFIGS)
def test_our_loss_is_the_model_s_own(name: str) -> None:
    model = from_config(config_of(name), seed=2)
    batch = example_batch()
    own = model(**batch).loss * int((batch["labels"] != -100).sum())
    assert our_loss(model).item() == pytest.approx(own.item(), rel=1e-6)


def test_another_architecture_uses_its_own_forward() -> None:
    content = {**config_of("bart"), "model_type": "pegasus"}
    model = from_config(content, seed=3).eval()
    batch = example_batch()
    own = model(**batch).loss * int((batch["labels"] != -100).sum())
    assert our_loss(model).item() == pytest.approx(own.item(), rel=1e-6)


def test_bf16_weights_on_disk_are_trained_in_fp32(tmp_path: Path) -> None:
    from_config(config_of("t5"), seed=1).to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in from_pretrained(str(tmp_path)).parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["t5", "t5-untied", "bart", "mbart", "pegasus", "m2m_100"])
def test_a_folder_read_without_its_weights_gives_the_same_model_otherwise(name: str, tmp_path: Path) -> None:
    """The same parameters are trained, too: Pegasus's table of positions never is."""
    from_config({**CONFIGS, **NEWER}[name], seed=1).to(torch.bfloat16).save_pretrained(tmp_path)
    whole, empty = (from_pretrained(str(tmp_path), empty=empty) for empty in (False, True))
    assert is_untied(empty) == is_untied(whole)
    kinds = [
        [(key, value.shape, value.dtype, value.requires_grad) for key, value in one.named_parameters()]
        for one in (whole, empty)
    ]
    assert kinds[0] == kinds[1]
    persistent = whole.state_dict().keys()
    buffers = [dict(one.named_buffers()) for one in (whole, empty)]
    assert buffers[0].keys() == buffers[1].keys()
    assert all(torch.equal(value, buffers[1][key]) for key, value in buffers[0].items() if key not in persistent)


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (from_config(config_of("bart"), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["model.shared.weight"], other["model.shared.weight"])


def test_tokenizer_survives_the_checkpoint() -> None:
    packed = pack_tokenizer(load_tokenizer("bytes"))
    restored = unpack_tokenizer(packed)
    again = pack_tokenizer(restored)
    assert {name: bytes(file) for name, file in again.items()} == {name: bytes(file) for name, file in packed.items()}
    assert restored("맛있다 <x>").input_ids == ByT5Tokenizer()("맛있다 <x>").input_ids
    with pytest.raises(UserError, match="outside its folder"):
        unpack_tokenizer({"../evil": torch.zeros(1, dtype=torch.uint8)})


@pytest.mark.parametrize(("vocabulary", "sentinel"), [(259, False), (383, False), (384, True)])
def test_bytes_fit_every_vocabulary_of_at_least_259(vocabulary: int, sentinel: bool) -> None:
    """The text of a sentinel is read as bytes where the embedding has no row for it."""
    model = from_config(config_of("t5", vocab_size=vocabulary), seed=1)
    tokenizer = fitting_tokenizer(model.config, ByT5Tokenizer())
    for kept in (tokenizer, unpack_tokenizer(pack_tokenizer(tokenizer))):
        ids = kept("a <extra_id_0>").input_ids
        assert ids == ([100, 35, 259, 1] if sentinel else [*(byte + 3 for byte in b"a <extra_id_0>"), 1])
        assert model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.isfinite()


def test_a_byte_tokenizer_with_tokens_of_its_own_keeps_them() -> None:
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.add_tokens(["<name>"])
    config = from_config(config_of("t5", vocab_size=260), seed=1).config
    assert fitting_tokenizer(config, tokenizer) is tokenizer
    config.vocab_size = 259
    with pytest.raises(UserError, match=r"byte tokenizer has 260 tokens \(<name> of its own\) but the .* only 259;"):
        fitting_tokenizer(config, tokenizer)


def test_a_pair_of_models_has_the_vocabulary_of_its_parts() -> None:
    config = EncoderDecoderConfig(encoder=BertConfig(vocab_size=384), decoder=BertConfig(vocab_size=384))
    assert len(fitting_tokenizer(config, ByT5Tokenizer())) == 384


def test_limits_of_positions() -> None:
    led = LEDConfig(max_encoder_position_embeddings=4096, max_decoder_position_embeddings=512)
    encoder, decoder = BertConfig(max_position_embeddings=256), BertConfig(max_position_embeddings=64)
    for config, limits in (
        (from_config(config_of("bart"), 1).config, (128, 128)),
        (from_config(config_of("mt5"), 1).config, (0, 0)),
        (led, (4096, 512)),
        (EncoderDecoderConfig(encoder=encoder, decoder=decoder), (256, 64)),
    ):
        assert (source_limit(config), target_limit(config)) == limits


def test_presets_are_listed_and_build() -> None:
    assert {"bart-mini", "byt5-mini", "t5-mini"} <= set(preset_names())
    for name in preset_names():
        content = read_config(name)
        with undrawn():  # the larger ones take no memory then
            model = from_config(content, seed=1)
        assert model.config.vocab_size >= 259
        assert is_untied(model) == (content.get("tie_word_embeddings") is False)


def test_refusals_name_the_flag_and_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"-config_path nothing: no such file; presets: .*bart-mini"):
        read_config("nothing")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_config(str(tmp_path / "broken.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="'model_type' is missing"):
        read_config(str(tmp_path / "list.json"))
    with pytest.raises(UserError, match="no encoder-decoder"):
        from_config({"model_type": "gpt2"}, seed=1)
    with pytest.raises(UserError, match=r"-config_path: .*"):
        from_config({"model_type": "no-such-type"}, seed=1)
    with pytest.raises(UserError, match="-init_model"):
        from_pretrained(str(tmp_path / "missing"))
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="a gpt2 model is no encoder-decoder"):
        load_config(str(tmp_path / "gpt"))
    with pytest.raises(UserError, match=r"-tokenizer .*no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path / "missing"))
    with pytest.raises(UserError, match="at least 259"):
        fitting_tokenizer(from_config(config_of("t5", vocab_size=100), 1).config, ByT5Tokenizer())


def test_a_hub_that_does_not_answer_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def silent(url: str, timeout: float) -> None:
        asked.append((url, timeout))
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=silent))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    ask_the_hub_once.cache_clear()
    for load in (load_config, load_tokenizer):
        with pytest.raises(UserError) as refused:
            load("nobody/nothing", "-model")
        assert refused.value.problems[0].endswith(
            " could be loaded: not among the downloaded models, and the hub is not asked (HF_HUB_OFFLINE) or does not"
            " answer; download it where there is a network, or give a local folder"
        )
    assert asked == [("https://huggingface.co", 5.0)]
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert capsys.readouterr().out == (
        "https://huggingface.co does not answer (Name or service not known): only models that were downloaded before"
        " can be loaded\n"
    )
