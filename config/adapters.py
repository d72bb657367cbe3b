"""`-adapter`: several adapters of one base model, predicted one after the other. No torch import."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from config.flags.inference import OUTPUT_FILES, InferenceConfig
from utils.launch import world_size

PLACE = "{adapter}"  # in the name of a written file: the name of the adapter
OF_RUNS = ("best", "last")  # folders of a run, which has the telling name


def each_adapter(config: InferenceConfig, problems: list[str]) -> list[InferenceConfig]:
    """The config for each -adapter, on -model as its base; `config` itself where none is given.

    Appends to `problems` where two would write the same file.
    """
    chosen = config.model.adapter
    if not chosen:
        return [config]
    if world_size() > 1:
        problems.append(
            f"-adapter {chosen[0]}: not where torchrun or srun starts several processes; give one adapter as -model"
        )
    if config.model.base_model:
        problems.append(f"-base_model {config.model.base_model}: with -adapter the base model is -model")
    names = [_name(adapter) for adapter in chosen]
    if len(config.model.model) != 1:
        given = " ".join(f"-model {name}" for name in config.model.model)
        problems.append(f"-adapter {chosen[0]}: give its base model as one -model{given and f', not {given}'}")
    problems += [
        f"-adapter {adapter}: two adapters have the name {name}; give a link or a copy another name"
        for number, (adapter, name) in enumerate(zip(chosen, names, strict=True))
        if name in names[:number]
    ]
    for flag in OUTPUT_FILES:
        path = getattr(config.output, flag)
        if path and len(chosen) > 1 and PLACE not in path:
            problems.append(f"-{flag} {path}: each adapter writes a file of its own; put {PLACE} into the name")
    base = config.model.model[0] if config.model.model else ""
    return [
        replace(
            config,
            model=replace(config.model, model=(adapter,), base_model=base, adapter=(adapter,)),
            output=replace(
                config.output, **{flag: getattr(config.output, flag).replace(PLACE, name) for flag in OUTPUT_FILES}
            ),
        )
        for adapter, name in zip(chosen, names, strict=True)
    ]


def _name(adapter: str) -> str:
    """The last part of the path that tells adapters apart."""
    path = Path(os.path.abspath(adapter))
    return path.parent.name if path.name in OF_RUNS else path.name
