"""Adapters: what they compute in a model, merged, in a folder of `peft`, and what is refused of a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from models.adapters.folder import CONFIG_NAME, PICKLE_NAME, WEIGHTS_NAME, read_adapter, read_weights, write_adapter
from models.adapters.methods import (
    PROMPTS,
    Adapter,
    adapter_text,
    check_virtual_tokens,
    chosen_adapter,
    fitted,
    parse_adapter,
)
from models.adapters.tuning import MergedWeights, adapter_of, apply, merge, own_names, state
from models.kernels.accelerate import accelerate
from models.loading import from_config
from tests.small_configs import config_of
from utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # of the library's own loading, with which ours is compared
OF_LAYERS = ("lora", "dora", "rslora", "pissa", "adalora", "ia3")
METHODS = (*OF_LAYERS, *PROMPTS)
IDS, DECODER_IDS = torch.arange(3, 30).view(3, 9), torch.arange(40, 55).view(3, 5)


def base(name: str) -> PreTrainedModel:
    return from_config(config_of(name), seed=4).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS, decoder_input_ids=DECODER_IDS).logits
    return found


def chosen(model: PreTrainedModel, method: str, *targets: str, kept: tuple[str, ...] = ()) -> Adapter:
    return chosen_adapter(model, method, targets, kept, 4, 8, 0.0, 5)


def trained(name: str, method: str, base_name: str = "") -> PreTrainedModel:
    """A model whose adapter has moved, as in training; a T5's output layer is trained in full."""
    model = base(name)
    torch.manual_seed(2)
    adapter = chosen(model, method, kept=("lm_head",) if name == "t5-untied" and method not in PROMPTS else ())
    apply(model, replace(adapter, base=base_name))
    accelerate(model)
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, model.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["t5-untied", "bart"])
def test_an_adapter_is_the_same_in_training_merged_and_in_a_folder_of_peft(
    name: str, method: str, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    base(name).save_pretrained(tmp_path / "base")
    (tmp_path / "best").mkdir()
    model = trained(name, method, str(tmp_path / "base"))
    expected = logits(model)
    assert (expected - logits(base(name))).abs().max() > 1e-3

    with MergedWeights(model) as plain:
        assert {type(module).__name__ for module in plain.modules() if hasattr(module, "in_features")} == {"Linear"}
        torch.testing.assert_close(logits(plain), expected, rtol=0, atol=1e-5)
    assert torch.equal(logits(model), expected)

    again = base(name)
    apply(again, adapter_of(model), state(model))  # type: ignore[arg-type]
    accelerate(again)
    assert torch.equal(logits(again), expected)  # a resume

    write_adapter(tmp_path / "best", model)
    whole = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    theirs = logits(peft.PeftModel.from_pretrained(whole, str(tmp_path / "best")))
    torch.testing.assert_close(theirs, expected, rtol=0, atol=1e-5)
    ours = base(name)
    apply(
        ours, read_adapter(str(tmp_path / "best"), "-model best"), read_weights(str(tmp_path / "best"), "-model best")
    )
    merge(ours)
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=1e-5)
    if method not in PROMPTS:
        assert (adapter_of(ours), all(parameter.requires_grad for parameter in ours.parameters())) == (None, True)


@pytest.mark.parametrize("method", METHODS)
def test_training_moves_the_adapter_and_nothing_else(method: str) -> None:
    model = base("t5")
    apply(model, chosen(model, method))
    accelerate(model)
    own = set(own_names(model))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    for _ in range(2):  # B begins as zeros, so that A moves with the second step
        model.train()(input_ids=IDS, labels=DECODER_IDS).loss.backward()
        optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in own if "pissa_initial" not in name}


def test_an_adapter_begins_as_the_model_itself() -> None:
    for method in OF_LAYERS:
        model = base("bart")
        apply(model, chosen(model, method))
        torch.testing.assert_close(logits(model), logits(base("bart")), rtol=0, atol=1e-5)


def test_modules_are_those_of_the_architecture_or_named() -> None:
    t5, bart = base("t5"), base("bart")
    assert chosen(t5, "lora").target_modules == ("q", "v")
    assert chosen(bart, "dora").target_modules == ("q_proj", "v_proj")
    assert chosen(t5, "ia3").feedforward_modules == ("wo",)
    assert set(chosen(bart, "lora", "all-linear").target_modules) == {
        *("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    }
    one = chosen(t5, "lora", "decoder.block.0.layer.1.EncDecAttention.q")
    apply(t5, one)
    assert {name.rpartition(".lora")[0] for name in own_names(t5)} == set(one.target_modules)


@pytest.mark.parametrize(
    ("name", "targets", "kept", "told"),
    [
        ("bart", ("q",), (), r"-target_modules q: no linear layer has this name; there are k_proj, v_proj, q_proj,"),
        ("bart", (), ("head",), r"-modules_to_save head: no such module; there are shared, embed_tokens, .*lm_head"),
        ("t5", (), ("lm_head",), r"-modules_to_save lm_head: is one matrix with shared in this model"),
        ("t5", ("o",), ("o",), r"-modules_to_save encoder\.\S+\.o: is a layer of -target_modules as well"),
    ],
)
def test_modules_that_cannot_be_are_told_with_those_that_can(
    name: str, targets: tuple[str, ...], kept: tuple[str, ...], told: str
) -> None:
    with pytest.raises(UserError, match=f"^{told}"):
        chosen(base(name), "lora", *targets, kept=kept)


def test_an_adapter_of_another_architecture_is_told_with_its_modules() -> None:
    with pytest.raises(
        UserError, match=r"^-model x: the adapter is of another model: there is no q, v in a bart model"
    ):
        fitted(base("bart"), chosen(base("t5"), "lora"), "-model x")


def test_weights_that_do_not_fit_are_told() -> None:
    model = base("t5")
    weights = state(trained("t5", "lora"))
    name = next(iter(weights))
    with pytest.raises(ValueError, match=r"^encoder\.block\.0\..* is missing$"):
        apply(model, chosen(model, "lora"), {key: value for key, value in weights.items() if key != name})


def change(content: dict[str, Any], **fields: Any) -> str:
    return json.dumps({**content, **fields})


FORGED: list[tuple[Callable[[dict[str, Any]], str], str]] = [
    (lambda content: change(content, auto_mapping={"parent_library": "os"}), "auto_mapping names classes to import"),
    (lambda content: change(content, peft_type="XLORA"), "peft_type is 'XLORA'; LORA, IA3, PROMPT_TUNING and P_TUNING"),
    (lambda content: change(content, eva_config={"rho": 2}), r"eva_config is \{'rho': 2\}, which is not supported"),
    (lambda content: change(content, target_modules=".*"), r"target_modules is '\.\*', not a list of names"),
    (lambda content: change(content, init_lora_weights="pissa"), "trained biases, and an init_lora_weights that"),
    (lambda content: change(content, use_rslora=1), "use_rslora is 1, not true or false"),
    (lambda content: change(content, r=-1), r"adapter_config\.json: r is -1, which no adapter can have"),
    (lambda content: change(content, lora_dropout="a"), "lora_dropout is 'a', which no adapter can have"),
    (lambda content: json.dumps(content)[:-9], r"adapter_config\.json is torn or no JSON"),
    (lambda _: "[1]", "is damaged: an object is expected"),
]


@pytest.mark.parametrize(("forge", "told"), FORGED)
def test_what_a_foreign_config_asks_for_beyond_weights_is_refused(
    forge: Callable[[dict[str, Any]], str], told: str, tmp_path: Path
) -> None:
    write_adapter(tmp_path, trained("t5", "lora"))
    content = json.loads((tmp_path / CONFIG_NAME).read_text())
    (tmp_path / CONFIG_NAME).write_text(forge(content))
    with pytest.raises(UserError, match=f"^-model x: .*{told}"):
        read_adapter(str(tmp_path), "-model x")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    write_adapter(tmp_path, trained("t5", "lora"))
    (tmp_path / WEIGHTS_NAME).rename(tmp_path / PICKLE_NAME)
    with pytest.raises(UserError, match=r"^-model x: adapter_model\.bin could run code and is never opened;"):
        read_weights(str(tmp_path), "-model x")


def test_an_adapter_survives_a_checkpoint_and_a_damaged_one_is_told() -> None:
    adapter = replace(chosen(base("t5"), "rslora"), base="google/byt5-small", digest="ab")
    assert parse_adapter(adapter_text(adapter), "-model x") == adapter
    for text in ("[]", "{}", 3, adapter_text(replace(adapter, method="finetune"))):
        with pytest.raises(UserError, match=r"^-model x: "):
            parse_adapter(text, "-model x")


def test_the_folder_of_a_p_tuning_by_peft_itself_is_read(tmp_path: Path) -> None:
    """It has vectors for the decoder too, which the library never reads."""
    peft = pytest.importorskip("peft")
    config = peft.PromptEncoderConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, encoder_hidden_size=16)
    theirs = peft.get_peft_model(base("bart"), config).eval()
    theirs.save_pretrained(tmp_path)
    ours = base("bart")
    adapter = read_adapter(str(tmp_path), "-model x")
    apply(ours, fitted(ours, adapter, "-model x"), read_weights(str(tmp_path), "-model x"))
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "count", "told"),
    [
        ("bart", 128, r"128 virtual tokens leave no room for a source: the model has positions for 128"),
        (
            "pegasus",
            5,
            r"virtual tokens are for the families of T5 and BART, not for pegasus: peft leaves out",
        ),
        ("led", 5, r"virtual tokens are for the families of T5 and BART, not for led: they were not tried there"),
    ],
)
def test_virtual_tokens_that_cannot_be_are_told(kind: str, count: int, told: str) -> None:
    config = AutoConfig.for_model(kind, max_position_embeddings=128)
    with pytest.raises(UserError, match=f"^-model x: {told}"):
        check_virtual_tokens(config, count, "-model x")


def test_prefix_tuning_of_peft_still_gives_layers_the_same_keys() -> None:
    """Why it is no value of -tuning_method: docs/training.md says so until this fails."""
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(base("bart"), config)
    keys = [layer.keys for layer in model.get_prompt(1).self_attention_cache.layers]
    model(input_ids=IDS, labels=IDS).loss.backward()
    of_layers = model.prompt_encoder["default"].embedding.weight.grad.chunk(len(keys), dim=1)
    assert torch.equal(keys[0], keys[1])
    assert [bool(gradient.any()) for gradient in of_layers] == [True, False]
    assert len(model.get_prompt(1).cross_attention_cache.layers) == 0
