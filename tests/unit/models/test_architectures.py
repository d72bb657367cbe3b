"""Every encoder-decoder of the library for text: trained on its own loss, or refused before anything is trained."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from models import architectures
from models.architectures import (
    ARCHITECTURES,
    Architecture,
    architecture,
    source_limit,
    target_limit,
    with_plain_logits,
)
from models.forward import check_logits, decode_teacher_forced, decoder_start_token, shift_right, source_inputs
from models.loading import config_from_dict, from_config
from models.losses.cross_entropy import token_loss_sum
from tests.small_configs import NEWER, config_of
from tests.small_models import example_batch
from utils.errors import UserError

VOCABULARY = 384
BERT = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
UNITS = ("speech_encoder_layers", "t2u_encoder_layers", "t2u_decoder_layers")  # not for text; as few as can be
SEAMLESS = {**config_of("bart"), "hidden_size": 32, **dict.fromkeys(UNITS, 1)}
OWN_KEYS: dict[str, dict[str, Any]] = {
    "encoder-decoder": {
        "encoder": BERT,
        "decoder": {**BERT, "is_decoder": True, "add_cross_attention": True},
        "decoder_start_token_id": 3,
        "pad_token_id": 0,
    },
    "fsmt": {**config_of("bart"), "src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY, "langs": ["ko", "en"]},
    "led": {
        **config_of("bart"),
        "max_encoder_position_embeddings": 128,
        "max_decoder_position_embeddings": 64,
        "attention_window": 4,
    },
    "seamless_m4t": SEAMLESS,
    "seamless_m4t_v2": SEAMLESS,
    "t5gemma": NEWER["t5gemma"],
    "t5gemma2": NEWER["t5gemma2"],
    "prophetnet": {"pad_token_id": 0, "decoder_start_token_id": 2},
    "nllb-moe": {**config_of("bart"), "num_experts": 2},
    **{kind: config_of("t5") for kind in ("t5", "mt5", "umt5", "longt5", "switch_transformers", "switch_t5")},
}
REFUSED = {
    "nllb-moe": "sends all tokens to two of its experts",
    "prophetnet": "trains with a loss of several future tokens",
}


def text_types() -> list[str]:
    """Model types that the library counts as sequence to sequence, without those that are no encoder-decoder."""
    kinds = sorted(set(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES) - {"encoder-decoder"})
    pairs = [kind for kind in kinds if AutoConfig.for_model(kind).is_encoder_decoder]
    return [*pairs, "encoder-decoder", "switch_t5"]


def build(kind: str, **changes: Any) -> PreTrainedModel:
    model = from_config({**OWN_KEYS.get(kind, config_of("bart")), "model_type": kind, **changes}, seed=4).eval()
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if value.ndim > 1 and value.is_floating_point():
                value.copy_(torch.randn_like(value)) if "final_logits_bias" in name else value.mul_(4)
    return model


@pytest.mark.parametrize("kind", text_types())
def test_the_loss_is_the_cross_entropy_of_the_model_s_own_logits(kind: str) -> None:
    if kind in REFUSED:
        with pytest.raises(UserError, match=f"^-config_path: a {kind} model .*{REFUSED[kind]}"):
            build(kind)
        return
    model = build(kind)
    inputs = example_batch()
    labels = inputs["labels"].clone()
    with torch.no_grad():
        output = decode_teacher_forced(model, **inputs)
        options = {"bias": output.bias, "scale": output.scale, "softcap": output.softcap}
        ours = token_loss_sum(output.hidden, output.weight, labels, **options)
        decoder_inputs = shift_right(model, labels)
        sources = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        extra = source_inputs(model, inputs["attention_mask"])
        own = model(**sources, **extra, decoder_input_ids=decoder_inputs, use_cache=False).logits
    assert torch.equal(inputs["labels"], labels)
    assert decoder_inputs[:, 1:].tolist() == labels[:, :-1].clamp(min=0).tolist()  # 0 = padding
    starts = (
        labels[[0, 1, 2], [2, 4, 4]] if architecture(kind).last_token_first else model.config.decoder_start_token_id
    )
    assert (decoder_inputs[:, 0] == starts).all()
    expected = F.cross_entropy(own.flatten(0, 1), labels.flatten(), reduction="sum")
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    check_logits(model, "-init_model X")


def test_nllb_moe_is_refused_as_long_as_the_library_leaves_experts_out() -> None:
    """Its experts take a mask of one column an expert for a number of an expert (transformers 5.23)."""
    config = AutoConfig.for_model(**config_of("bart", model_type="nllb-moe", num_experts=4, encoder_sparse_step=1))
    model = AutoModelForSeq2SeqLM.from_config(config)
    inputs = example_batch()
    model(**inputs).loss.backward()
    experts = model.model.encoder.layers[0].ffn.experts
    used = [name for name, weight in experts.named_parameters() if "fc1.weight" in name and weight.grad is not None]
    assert used == ["expert_0.fc1.weight", "expert_1.fc1.weight"]


def test_positions_of_two_sides_and_of_windows() -> None:
    """LED pads sources to whole windows, of 4 tokens here; a Gemma has a config for each side, and one for its text."""
    limits = {
        name: (source_limit(config), target_limit(config))
        for name in ("led", "t5gemma", "t5gemma2")
        for config in [config_from_dict(NEWER[name])]
    }
    assert limits == {"led": (60, 32), "t5gemma": (128, 128), "t5gemma2": (128, 128)}


def test_known_architectures_are_those_tested() -> None:
    assert set(text_types()) >= set(with_plain_logits())


@pytest.mark.parametrize("kind", [name for name, row in ARCHITECTURES.items() if row.last_token_first])
def test_the_last_token_of_the_target_comes_first(kind: str) -> None:
    labels = torch.tensor([[5, 6, 7], [8, 9, -100], [-100, -100, -100]])
    model = build(kind)
    assert shift_right(model, labels).tolist() == [[7, 5, 6], [9, 8, 9], [0, 0, 0]]
    assert labels.tolist() == [[5, 6, 7], [8, 9, -100], [-100, -100, -100]]
    assert decoder_start_token(model, [250, 97, 1]) == 1


def test_an_unknown_architecture_that_changes_its_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("pegasus")
    monkeypatch.setattr(architectures, "ARCHITECTURES", {})
    check_logits(model, "-init_model X")
    own = model.lm_head.forward
    model.lm_head.forward = lambda hidden: torch.tanh(own(hidden))
    with pytest.raises(UserError, match=r"^-init_model X: a pegasus model changes its logits behind the output emb"):
        check_logits(model, "-init_model X")


def test_a_row_is_enough_for_limits_loss_and_start(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = build("pegasus"), build("pegasus").config
    assert source_limit(config) == 128
    row = Architecture(relative_positions=True, overflows_in_fp16=True, last_token_first=True, refused="does magic")
    monkeypatch.setitem(architectures.ARCHITECTURES, "pegasus", row)
    assert source_limit(config) == 0
    assert architectures.overflowing("pegasus") == "pegasus"
    assert decoder_start_token(model, [250, 97, 5]) == 5
    with pytest.raises(UserError, match="a pegasus model does magic, which is not supported"):
        config_from_dict({**config.to_dict(), "model_type": "pegasus"}, "-config_path X")


def test_names_of_architectures_stand_in_their_table_only() -> None:
    """Messages may give examples; "t5" and "bart" are also the names of the families that code chooses by."""
    root = Path(architectures.__file__).parent.parent
    folders = (
        "models",
        "generation",
        "training",
        "prediction",
        "checkpoints",
        "datamodules",
        "utils",
        "deploy",
        "config",
    )
    found = {
        (path.name, node.value)
        for folder in folders
        for path in (root / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and node.value in ARCHITECTURES
        and path.name not in ("architectures.py", "modeling_switch_t5.py")
    }
    assert {name for name in found if name[1] not in ("t5", "bart")} == set()
