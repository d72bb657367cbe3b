"""The folder of an adapter as `peft` writes and loads it: adapter_config.json and adapter_model.safetensors.

One that comes from elsewhere is data: fields that would name code or fetch a model are refused or left alone, and no
pickle is opened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, cat
from transformers import PreTrainedModel

from models.adapters.methods import LORA, PROMPTS, Adapter, checked
from models.adapters.tuning import NAME, adapter_of, lora_settings, state
from models.adapters.virtual_tokens import in_file
from utils.errors import UserError
from utils.files import write_json
from utils.json_files import read_object
from utils.libraries import require_package

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
BASE_NAME = "base_model_name_or_path"
PREFIX = "base_model.model."  # of the names of weights in the file
READ = ("peft_type", "target_modules", "modules_to_save", "feedforward_modules", "r", "lora_alpha", "lora_dropout")
VIRTUAL = ("PROMPT_TUNING", "P_TUNING")  # of both the file holds vectors, as prompt tuning trains them
OF_VIRTUAL = (  # how training began, and what it took the vectors from
    *("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"),
    *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    *("encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"),
)
SWITCHES = ("use_dora", "use_rslora")
SAYS_NOTHING = (  # about what the adapter computes, or only together with another field
    *("task_type", "peft_version", BASE_NAME, "revision", "inference_mode", "init_ia3_weights", "bias"),
    *("megatron_core", "qalora_group_size", "init_lora_weights"),
)
BEGUN_PLAIN = (None, True, False, "gaussian", "orthogonal")  # init_lora_weights that leave the base as it is
OWN = {  # a weight in the file -> in the model
    re.compile(r"\.(lora_[AB])\.weight$"): rf".\1.{NAME}.weight",
    re.compile(r"\.lora_magnitude_vector$"): f".lora_magnitude_vector.{NAME}.weight",
    re.compile(r"\.ia3_l$"): f".ia3_l.{NAME}",
}


def is_adapter_folder(name: str) -> bool:
    """Whether this is a folder with the config of an adapter."""
    return Path(name, CONFIG_NAME).is_file()


def write_adapter(folder: Path, model: PreTrainedModel, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write config and weights of the model's adapter into `folder`, so that `peft` loads them on its base.

    What PiSSA trained is written as a LoRA of twice the rank, the difference from what it began with: that is an
    adapter of the base itself (Meng et al. 2024, appendix C). What AdaLoRA trained is written as a LoRA of the rank
    that it began with, whose A holds the singular values. What p-tuning trained is written as the vectors that it
    gives, those of a prompt tuning.

    Args:
        weights: those of `model`; None takes them from it.
    """
    adapter = adapter_of(model)
    assert adapter is not None
    own = state(model, weights)
    if adapter.method == "adalora":
        adapter, own = replace(adapter, method="lora", r=adapter.first_r), _of_singular_values(own, adapter.first_r)
    own = in_file(model, own) if adapter.method in PROMPTS else {_in_file(name): own[name] for name in own}
    own = {name: value.detach().cpu() for name, value in own.items()}
    if adapter.method == "pissa":
        adapter, own = (
            replace(adapter, method="lora", r=2 * adapter.r, lora_alpha=2 * adapter.lora_alpha),
            _plain_lora(own),
        )
    save_file(
        {name: value.contiguous() for name, value in own.items()}, folder / WEIGHTS_NAME, metadata={"format": "pt"}
    )
    package = require_package("peft", f"-tuning_method {adapter.method}")
    common: dict[str, Any] = {
        "modules_to_save": list(adapter.modules_to_save) or None,
        "task_type": "SEQ_2_SEQ_LM",
        "inference_mode": True,
        BASE_NAME: adapter.base or None,
    }
    layers = {"target_modules": list(adapter.target_modules)}
    if adapter.method in PROMPTS:
        config = package.PromptTuningConfig(**common, **_virtual_sizes(model, adapter))
    elif adapter.method in LORA:
        config = package.LoraConfig(**lora_settings(adapter), **layers, **common)
    else:
        config = package.IA3Config(feedforward_modules=list(adapter.feedforward_modules), **layers, **common)
    settings = {name: _as_json(value) for name, value in config.to_dict().items()}
    write_json(folder / CONFIG_NAME, settings)


def _virtual_sizes(model: PreTrainedModel, adapter: Adapter) -> dict[str, int]:
    return {
        "num_virtual_tokens": adapter.num_virtual_tokens,
        "token_dim": model.config.hidden_size,
        "num_transformer_submodules": 1,
        "num_attention_heads": model.config.num_attention_heads,
        "num_layers": model.config.num_hidden_layers,
    }


def _as_json(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)  # the library writes them in any order
    return value.value if isinstance(value, Enum) else value


def _in_file(name: str) -> str:
    name = name.replace(f".lora_magnitude_vector.{NAME}.weight", ".lora_magnitude_vector")
    return PREFIX + re.sub(rf"\.(lora_[AB]|ia3_l)\.{NAME}(?=$|\.)", r".\1", name)


def _plain_lora(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """B A - B0 A0 as one product of matrices of twice the rank."""
    found = {}
    for name, value in own.items():
        if name.endswith(".lora_A.weight"):
            found[name] = cat((value, own[name.replace("lora_A.weight", "pissa_initial_A")]), 0)
        elif name.endswith(".lora_B.weight"):
            found[name] = cat((value, -own[name.replace("lora_B.weight", "pissa_initial_B")]), 1)
        elif "pissa_initial_" not in name:
            found[name] = value
    return found


def _of_singular_values(own: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """B and diag(E) A by their names in a LoRA of `peft`, which for AdaLoRA divides by a little more than the rank."""
    found = {}
    for name, value in own.items():
        if name.endswith(f".lora_A.{NAME}"):
            singular = own[name.replace(".lora_A.", ".lora_E.")]
            found[f"{name}.weight"] = value * singular * (rank / (rank + 1e-5))
        elif name.endswith(f".lora_B.{NAME}"):
            found[f"{name}.weight"] = value
        elif not name.endswith(f".lora_E.{NAME}"):
            found[name] = value
    return found


def read_adapter(folder: str, place: str, digest: str = "") -> Adapter:
    """The adapter of a folder; its weights are not read.

    Args:
        digest: of the weights of its base, where the training says so.

    Raises:
        UserError: opened by `place`: torn, of a method that is not ours, or with settings that are not supported.
    """
    path = Path(folder, CONFIG_NAME)
    content = read_object(path, place)
    kind = content.get("peft_type")
    if kind not in ("LORA", "IA3", *VIRTUAL):
        raise UserError(
            f"{place}: {path}: peft_type is {kind!r:.60}; LORA, IA3, PROMPT_TUNING and P_TUNING are supported"
        )
    if content.get("auto_mapping"):
        raise UserError(f"{place}: {path}: auto_mapping names classes to import, which is never done; leave it out")
    for name, value in content.items():
        if name not in (*READ, *SWITCHES, *SAYS_NOTHING, *(OF_VIRTUAL if kind in VIRTUAL else ())) and value:
            raise UserError(f"{place}: {path}: {name} is {value!r:.60}, which is not supported")
    for name in SWITCHES:
        if not isinstance(content.get(name, False), bool):
            raise UserError(f"{place}: {path}: {name} is {content[name]!r:.60}, not true or false")
    if content.get("bias", "none") != "none" or content.get("init_lora_weights") not in BEGUN_PLAIN:
        raise UserError(
            f"{place}: {path}: trained biases, and an init_lora_weights that changes the base, are not supported"
        )
    adapter = _adapter(content, f"{place}: {path}")
    return replace(adapter, base=str(content.get(BASE_NAME) or ""), digest=digest)


def _adapter(content: Mapping[str, Any], place: str) -> Adapter:
    if (kind := content["peft_type"]) in VIRTUAL:
        if content.get("modules_to_save"):
            raise UserError(f"{place}: modules_to_save besides virtual tokens are not supported")
        return checked(Adapter("prompt", (), num_virtual_tokens=content.get("num_virtual_tokens", 0)), place)
    lists = {name: _names(content.get(name), f"{place}: {name}") for name in READ[1:4]}
    if not lists["target_modules"]:
        raise UserError(f"{place}: target_modules names no module")
    if kind == "IA3":
        return checked(Adapter("ia3", **lists), place)  # type: ignore[arg-type]
    dora, rslora = (content.get(name) is True for name in SWITCHES)
    if dora and rslora:
        raise UserError(f"{place}: use_dora and use_rslora together are not supported")
    method = "dora" if dora else "rslora" if rslora else "lora"
    sizes = {name: content.get(name) for name in READ[4:]}
    return checked(Adapter(method, **lists, **sizes), place)  # type: ignore[arg-type]


def _names(value: Any, place: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise UserError(f"{place} is {value!r:.60}, not a list of names")
    return tuple(value)


def read_weights(folder: str, place: str) -> dict[str, Tensor]:
    """The weights of an adapter's folder by their names in the model.

    Raises:
        UserError: opened by `place`: missing or torn; only .safetensors files are read.
    """
    path = Path(folder, WEIGHTS_NAME)
    if not path.is_file():
        pickled = Path(folder, PICKLE_NAME).is_file()
        why = f"{PICKLE_NAME} could run code and is never opened; " if pickled else ""
        raise UserError(f"{place}: {why}there is no {WEIGHTS_NAME}")
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{place}: {path} is torn ({error})") from error
    return {_in_model(name): value for name, value in found.items()}


def _in_model(name: str) -> str:
    name = name.removeprefix(PREFIX)
    for pattern, own in OWN.items():
        name = pattern.sub(own, name)
    return name
