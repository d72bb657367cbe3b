"""Which adapter: its method, its size, and the modules of a model that it goes to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from models.architectures import architecture, source_limit
from utils.errors import UserError, shortened
from utils.json_files import parse_json

LORA = ("lora", "dora", "rslora", "pissa", "adalora")
PROMPTS = ("prompt", "ptuning")  # virtual tokens in front of the sources
ALL_LINEAR = "all-linear"
LARGEST_RANK = 1 << 16  # and most virtual tokens
DEFAULT_TARGETS = {  # of T5's family, and of BART's and most others: as the papers have them
    "lora": (("q", "v"), ("q_proj", "v_proj")),
    "ia3": (("k", "v", "wo"), ("k_proj", "v_proj", "fc2")),
}
SCALED_INPUTS = ("wo", "fc2")  # of IA3: where the inner activations are scaled, not the output


@dataclass(frozen=True)
class Adapter:
    """What makes an adapter besides its weights.

    `target_modules` are names of linear layers, or their endings behind a dot; `feedforward_modules` those of them
    whose input an IA3 scales; `modules_to_save` are whole names of modules that are trained in full.
    """

    method: str
    target_modules: tuple[str, ...]
    feedforward_modules: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    r: int = 0
    lora_alpha: int = 0
    lora_dropout: float = 0.0
    num_virtual_tokens: int = 0
    base: str = ""  # the model that it was trained on: a folder or a hub name
    digest: str = ""  # of the weights of that; "" = not known

    @property
    def first_r(self) -> int:
        """The rank that a LoRA's matrices are made with, of which AdaLoRA leaves `r` on average."""
        return -(-3 * self.r // 2) if self.method == "adalora" else self.r


def adapter_text(adapter: Adapter) -> str:
    """The adapter as text, for a checkpoint."""
    return json.dumps(asdict(adapter))


def parse_adapter(text: Any, place: str) -> Adapter:
    """The adapter of `adapter_text`. Raises `UserError`, opened by `place`, where it is none."""
    try:
        content = parse_json(text)
        lists = {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
        return checked(Adapter(**{**content, **lists}), place)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{place}: damaged: its adapter is none ({error})") from error


def checked(adapter: Adapter, place: str) -> Adapter:
    """`adapter`, which somebody else may have written. Raises `UserError`, opened by `place`, where it cannot be."""
    of_lora, most = adapter.method in LORA, LARGEST_RANK if adapter.method in PROMPTS else 0
    possible = {
        "method": adapter.method in (*LORA, "ia3", *PROMPTS),
        "num_virtual_tokens": _is_whole(adapter.num_virtual_tokens, min(most, 1), most),
        "r": not of_lora or _is_whole(adapter.r, 1, LARGEST_RANK),
        "lora_alpha": not of_lora or _is_number(adapter.lora_alpha, LARGEST_RANK**2),
        "lora_dropout": not of_lora or _is_number(adapter.lora_dropout, 1),
    }
    for field in fields(adapter):
        value = getattr(adapter, field.name)
        listed = isinstance(value, tuple) and all(isinstance(name, str) for name in value)
        if not possible.get(field.name, listed or (field.name in ("base", "digest") and isinstance(value, str))):
            raise UserError(f"{place}: {field.name} is {value!r:.60}, which no adapter can have")
    return adapter


def _is_whole(value: Any, lowest: int, highest: int) -> bool:
    return type(value) is int and lowest <= value <= highest


def _is_number(value: Any, limit: float) -> bool:
    """Whether it is one from 0 on, below the limit."""
    return type(value) in (int, float) and 0 <= value < limit


def chosen_adapter(
    model: PreTrainedModel,
    method: str,
    targets: Sequence[str],
    modules_to_save: Sequence[str],
    r: int,
    alpha: int,
    dropout: float,
    num_virtual_tokens: int = 0,
) -> Adapter:
    """The adapter that the flags ask for, of the modules that `model` has.

    Raises:
        UserError: -target_modules or -modules_to_save names what is not there; the message lists what is.
    """
    if method in PROMPTS:
        return Adapter(method, (), num_virtual_tokens=num_virtual_tokens)
    found = _targets(model, method, targets)
    kept = _whole_names(model, modules_to_save)
    both = [name for name in _matching(model, found) if name in kept]
    if both:
        raise UserError(f"-modules_to_save {both[0]}: is a layer of -target_modules as well; a layer has one of them")
    if method == "ia3":
        scaled = tuple(target for target in found if target.rpartition(".")[2] in SCALED_INPUTS)
        return Adapter(method, found, scaled, kept)
    return Adapter(method, found, (), kept, r, alpha, dropout)


def check_virtual_tokens(config: PreTrainedConfig, count: int, place: str) -> None:
    """Raise `UserError`, opened by `place`, where the model cannot have so many in front of its sources."""
    kind, limit = config.model_type, source_limit(config)
    row = architecture(kind)
    if not row.own_search or row.scaled_behind_embedding:
        why = "peft leaves out its scale of embeddings" if row.scaled_behind_embedding else "they were not tried there"
        raise UserError(f"{place}: virtual tokens are for the families of T5 and BART, not for {kind}: {why}")
    if limit and count >= limit:
        raise UserError(
            f"{place}: {count:,} virtual tokens leave no room for a source: the model has positions for {limit:,}"
        )


def fitted(model: PreTrainedModel, adapter: Adapter, place: str) -> Adapter:
    """`adapter` with the whole names of the modules that are trained in full, which others write as endings.

    Raises:
        UserError: opened by `place`: the model lacks modules that the adapter was made for, or shares one of these with
            another one; or cannot have its virtual tokens.
    """
    if adapter.method in PROMPTS:
        check_virtual_tokens(model.config, adapter.num_virtual_tokens, place)
    owners = _owners(model)
    kept = {ending: [name for name in owners if _ends(name, ending)] for ending in adapter.modules_to_save}
    missing = [name for name in adapter.target_modules if not _matching(model, (name,))]
    missing += [ending for ending, names in kept.items() if not names]
    if missing:
        raise UserError(
            f"{place}: the adapter is of another model: there is no {shortened(missing, 3)} in a"
            f" {model.config.model_type} model, whose linear layers are {', '.join(_endings(model))}"
        )
    whole = tuple(dict.fromkeys(name for names in kept.values() for name in names))
    if tied := _tied_outside(model, whole):
        raise UserError(f"{place}: the adapter holds {tied[0]}, which is one matrix with {tied[1]} in this model")
    return replace(adapter, modules_to_save=whole)


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers, without the one that makes the logits."""
    output = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not output]


def _targets(model: PreTrainedModel, method: str, targets: Sequence[str]) -> tuple[str, ...]:
    endings = _endings(model)
    if ALL_LINEAR in targets:
        return tuple(endings)
    if not targets:
        for choice in DEFAULT_TARGETS["ia3" if method == "ia3" else "lora"]:
            if set(choice) <= set(endings):
                return choice
        raise UserError(
            f"-tuning_method {method}: give -target_modules for a {model.config.model_type} model, {ALL_LINEAR} or some"
            f" of {', '.join(endings)}"
        )
    for target in targets:
        if not _matching(model, (target,)):
            raise UserError(
                f"-target_modules {target}: no linear layer has this name; there are {', '.join(endings)}, or"
                f" {ALL_LINEAR}; a longer name, such as {linear_layers(model)[-1]}, chooses fewer"
            )
    return tuple(dict.fromkeys(targets))


def _endings(model: PreTrainedModel) -> list[str]:
    """The last parts of the names of the linear layers, in their order."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in linear_layers(model)))


def _matching(model: PreTrainedModel, endings: Iterable[str]) -> list[str]:
    """The linear layers that have one of these names or endings."""
    return [name for name in linear_layers(model) if any(_ends(name, ending) for ending in endings)]


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _owners(model: PreTrainedModel) -> list[str]:
    """The modules with parameters of their own."""
    return [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]


def _whole_names(model: PreTrainedModel, endings: Sequence[str]) -> tuple[str, ...]:
    """The modules with parameters of their own that have one of these names or endings."""
    owners = _owners(model)
    found: dict[str, None] = {}
    for ending in endings:
        named = [name for name in owners if _ends(name, ending)]
        if not named:
            choices = dict.fromkeys(name.rpartition(".")[2] for name in owners)
            raise UserError(f"-modules_to_save {ending}: no such module; there are {', '.join(choices)}")
        found |= dict.fromkeys(named)
    tied = _tied_outside(model, found)
    if tied:
        raise UserError(
            f"-modules_to_save {tied[0]}: is one matrix with {tied[1]} in this model, which an adapter cannot hold;"
            " leave it out, or give -tuning_method finetune with -freeze"
        )
    return tuple(found)


def _tied_outside(model: PreTrainedModel, names: Iterable[str]) -> tuple[str, str] | None:
    """The first of the modules that shares a parameter with another one, and that."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    shared = {name: others for others in owners.values() if len(others) > 1 for name in others}
    for name in names:
        if name in shared:
            return name, next(other for other in shared[name] if other != name)
    return None
