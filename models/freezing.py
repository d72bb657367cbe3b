"""Which weights are not trained, by `-freeze` or since the loss does not reach them, and a table of those that are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence

from torch import nn
from transformers import PreTrainedModel

from models.adapters.quantised import parameter_counts, quantised_layers
from models.adapters.tuning import adapter_of, own_names
from utils.errors import UserError, closest
from utils.tables import format_table

LAYERS = re.compile(r"layers:(\d{1,9})(?:-(\d{1,9}))?")
PARTS = ("embedding", "encoder", "decoder", "output layer", "other", "adapter")  # of the table
SHOWN = 4  # names in a message
FP32 = 4  # bytes
SECONDS = 10  # in which a regular expression must have been searched in all names
SEARCH = """\
import json, re, sys
part, names = json.load(sys.stdin)
print(json.dumps([name for name in names if re.search(part, name)]))
"""


def freeze_parts(model: PreTrainedModel, parts: tuple[str, ...]) -> list[str]:
    """Stop training what -freeze names, and give lines that say what else that means.

    `embedding`, `encoder`, `decoder`; `layers:A-B` are these layers of encoder and decoder, counted from 0; anything
    else is a regular expression that is searched in the names of parameters. A shared embedding is frozen only when it
    is named: freezing the encoder leaves it trained.

    Raises:
        UserError: a part that is not there, or nothing is left to train.
    """
    lines = []
    for part in parts:
        chosen = _chosen(model, part)
        for parameter in chosen.values():
            parameter.requires_grad_(False)
        shared = model.get_input_embeddings().weight
        output = getattr(model.get_output_embeddings(), "weight", None)
        if shared is output and any(value is shared for value in chosen.values()):
            lines.append(f"-freeze {part}: the output layer is the same matrix as the embedding, and frozen with it")
    if parts and not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"-freeze {' '.join(parts)}: leaves nothing to train")
    return lines


def freeze_except(model: nn.Module, parts: Iterable[nn.Module]) -> None:
    """Stop training the parameters that none of the `parts` of a model has."""
    used = {id(parameter) for part in parts for parameter in part.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in used:
            parameter.requires_grad_(False)


def freeze_decoder(model: PreTrainedModel) -> None:
    """Stop training all but the encoder and the output layer; what the decoder shares with these is trained.

    Raises:
        UserError: nothing is left to train.
    """
    freeze_except(model, (model.get_encoder(), model.lm_head))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "-freeze: leaves nothing to train, since -objective encoder_mlm trains the encoder and the output layer"
            " alone"
        )


def _chosen(model: PreTrainedModel, part: str) -> dict[str, nn.Parameter]:
    """The parameters that a part names."""
    parameters = dict(model.named_parameters())
    if part == "embedding":
        weights = list(model.get_input_embeddings().parameters())
        return {name: value for name, value in parameters.items() if any(value is one for one in weights)}
    stacks = _stacks(model)
    if part in stacks:
        return _without_embeddings(model, stacks[part])
    if found := LAYERS.fullmatch(part):
        first, last = int(found[1]), int(found[2] or found[1])
        highest = max(number for number, _ in _layers(stacks))
        if not first <= last <= highest:
            raise UserError(f"-freeze {part}: the layers of this model are layers:0-{highest}")
        layers = [layer for number, layer in _layers(stacks) if first <= number <= last]
        inside = {id(value) for layer in layers for value in layer.parameters()}
        return {name: value for name, value in parameters.items() if id(value) in inside}
    chosen = {name: parameters[name] for name in _found(part, list(parameters))}
    if not chosen:
        names = list(parameters)
        some = names[:: max(1, len(names) // SHOWN)][:SHOWN]
        words = ("embedding", *stacks, "layers:0-1")
        raise UserError(
            f"-freeze {part}: no parameter has such a name{closest(part, words)}; give embedding, encoder, decoder,"
            f" layers:A-B, or a regular expression for names such as {', '.join(some)}"
        )
    return chosen


def _found(part: str, names: Sequence[str]) -> list[str]:
    """Those of the names in which the regular expression is found; in a process that can be ended, as it may backtrack
    for ever."""
    command = [sys.executable, "-I", "-S", "-c", SEARCH]
    try:
        done = subprocess.run(
            command, input=json.dumps([part, names]), stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=True
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"-freeze {part}: this regular expression was searched for more than {SECONDS} seconds; write it without a"
            " repetition inside a repetition, such as (a+)+"
        ) from None
    found: list[str] = json.loads(done.stdout)
    return found


def _stacks(model: PreTrainedModel) -> dict[str, nn.Module]:
    base = getattr(model, "model", model)
    return {"encoder": base.get_encoder(), "decoder": base.get_decoder()}


def _layers(stacks: dict[str, nn.Module]) -> Iterator[tuple[int, nn.Module]]:
    """The layers of encoder and decoder with their numbers: the longest list of modules of each."""
    for stack in stacks.values():
        lists = [list(module) for module in stack.modules() if isinstance(module, nn.ModuleList)]
        longest = max(lists, key=len, default=[])
        yield from enumerate(longest)


def _without_embeddings(model: PreTrainedModel, stack: nn.Module) -> dict[str, nn.Parameter]:
    modules = filter(None, (model.get_input_embeddings(), model.get_output_embeddings()))
    embeddings = {id(parameter) for module in modules for parameter in module.parameters()}
    return {name: value for name, value in stack.named_parameters() if id(value) not in embeddings}


def trained_lines(model: PreTrainedModel) -> list[str]:
    """A table of the parameters by part, where not all are trained, and how small an adapter's checkpoints are."""
    if all(parameter.requires_grad for parameter in model.parameters()):
        return []
    counts = {part: [0, 0] for part in PARTS}
    sizes = parameter_counts(model)
    for part, name, parameter in _by_part(model):
        counts[part][0] += sizes[name]
        counts[part][1] += sizes[name] if parameter.requires_grad else 0
    total, trained = (sum(column) for column in zip(*counts.values(), strict=True))
    rows = [(part, f"{entry[0]:,}", f"{entry[1]:,}", "") for part, entry in counts.items() if entry[0]]
    rows.append(("total", f"{total:,}", f"{trained:,}", f"{trained / total:.2%}"))
    lines = format_table(("part", "parameters", "trained", "share"), rows)
    if adapter_of(model):
        weights = model.state_dict()
        own = sum(weights[name].nbytes for name in own_names(model))
        whole = total * FP32
        lines.append(f"best/ and last/ hold the adapter only: {_size(own)} of weights in place of {_size(whole)}")
    if layers := quantised_layers(model).values():
        kept = sum(buffer.nbytes for layer in layers for buffer in layer.buffers())
        plain = sum(layer.in_features * layer.out_features for layer in layers) * FP32
        bits = next(iter(layers)).bits
        lines.append(f"{len(layers)} frozen layers take {_size(kept)} in {bits} bits in place of {_size(plain)}")
    return lines


def _by_part(model: PreTrainedModel) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Each parameter once: the part of the model that it belongs to, its name, itself."""
    own = set(own_names(model)) if adapter_of(model) else set()
    input_, output = model.get_input_embeddings(), model.get_output_embeddings()
    stacks = {part: {id(one) for one in stack.parameters()} for part, stack in _stacks(model).items()}
    for name, parameter in model.named_parameters():
        if name in own:
            yield "adapter", name, parameter
        elif any(parameter is one for one in input_.parameters()):
            yield "embedding", name, parameter
        elif output is not None and any(parameter is one for one in output.parameters()):
            yield "output layer", name, parameter
        else:
            yield next((part for part, ids in stacks.items() if id(parameter) in ids), "other"), name, parameter


def _size(count: int) -> str:
    """`1.2 MB`, `950 MB`."""
    size = count / 1e6
    return f"{size:,.0f} MB" if size >= 100 else f"{size:.1f} MB" if size >= 0.1 else f"{size:.3f} MB"
