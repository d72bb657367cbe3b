"""Which parameters share a learning rate and a weight decay."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

from torch import Tensor, nn

from models.optimizers.settings import OptimSettings

LAYER = re.compile(r"(.*?)(?:^|\.)(\d+)\.")  # the first number in a parameter's name is that of its layer


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are moved alike."""

    decays: bool
    rate: float = 1.0  # times the learning rate
    matrices: bool = False  # those of layers, where the optimizer has a way of its own for them
    parameters: list[Tensor] = field(default_factory=list)


def parameter_groups(model: nn.Module, settings: OptimSettings) -> list[ParameterGroup]:
    """Give the trainable parameters in groups; tied ones once.

    Biases, norms and vectors have no weight decay. (T5's relative position biases are biases too, though they are
    stored as an embedding.) The first group has the learning rate itself, and so has the second one; others follow
    where the embeddings have another rate, or each layer its own. Of muon the first one are the layers' matrices.

    Raises:
        ValueError: the model has no trainable parameter.
    """
    names = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise ValueError("the model has no trainable parameter")
    norms = {
        id(parameter)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }
    rates, by_matrix = _rates(model, settings), settings.optim == "muon"
    groups: dict[tuple[bool, bool, str], ParameterGroup] = {}
    for decays, matrices in (*(((True, True),) if by_matrix else ()), (True, False), (False, False)):
        groups[decays, matrices, ""] = ParameterGroup(decays, 1.0, matrices)
    for name, parameter in names:
        decays = not (parameter.ndim < 2 or id(parameter) in norms or "bias" in name)
        matrices = by_matrix and decays and parameter.ndim == 2 and LAYER.match(name) is not None
        place, rate = rates.get(id(parameter), ("", 1.0))
        group = groups.setdefault((decays, matrices, place), ParameterGroup(decays, rate, matrices))
        group.parameters.append(parameter)
    return sorted(groups.values(), key=lambda group: not group.matrices)


def _rates(model: nn.Module, settings: OptimSettings) -> dict[int, tuple[str, float]]:
    """Where each parameter with a rate of its own lies, and the factor of its rate, by the parameter's id.

    Layer i of n in an encoder or decoder has decay ** (n - 1 - i), as in ELECTRA (Clark et al. 2020, appendix A); the
    embeddings, of positions too, lie below the lowest layer of the deeper stack.
    """
    embeddings = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and not LAYER.match(f"{name}.")
    }
    decay, rates = settings.layerwise_lr_decay, dict[int, tuple[str, float]]()
    if decay != 1.0:
        depths: dict[str, int] = defaultdict(int)
        found = [(parameter, LAYER.match(name)) for name, parameter in model.named_parameters()]
        layers = {id(parameter): match.groups() for parameter, match in found if match}
        for stack, layer in layers.values():
            depths[stack] = max(depths[stack], int(layer) + 1)
        for key, (stack, layer) in layers.items():
            below = depths[stack] - 1 - int(layer)
            rates[key] = (f"{below} below the top" if below else "", decay**below)
        below = max(depths.values(), default=0)
        rates |= dict.fromkeys(embeddings, (f"{below} below the top", decay**below))
    if settings.embedding_learning_rate is not None:
        assert settings.learning_rate is not None
        rates |= dict.fromkeys(embeddings, ("embeddings", settings.embedding_learning_rate / settings.learning_rate))
    return rates
