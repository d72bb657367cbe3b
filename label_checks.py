"""Which flags about labels go together, with each other and with the task; no torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from config.flags import DecodeFlags, InferenceConfig, LabelFlags
from datamodules.readers.paths import check_data_paths
from engine_checks import RULE_FLAGS
from postprocessors.labels import LabelMap
from task_utils import Task
from utils.errors import raise_if_any

SCORE_FLAGS = ("label_prior", "calibrate", "label_temperature")
SAMPLING_FLAGS = ("temperature", "top_k", "top_p", "do_sample")
SEARCH_FLAGS = ("beam_size", "length_penalty", "num_return", "early_stopping")
EXCLUDED = {
    "generate": (),
    "constrained": (*RULE_FLAGS, *SAMPLING_FLAGS),  # rules could block every label
    "score": (*RULE_FLAGS, *SAMPLING_FLAGS, *SEARCH_FLAGS),
}
REASONS = {
    "constrained": "chooses the best label, and this could leave none",
    "score": "looks at every label and searches nothing",
}


def check_label_flags(config: InferenceConfig, task: Task | None, problems: list[str]) -> None:
    """Problems that the flags show, appended to `problems`; `task` is None when the checkpoint has it."""
    mode = config.label.label_decoding
    if task is not None:
        problems.extend(label_problems(mode, task.label_map))
    given = {**asdict(config.label), **asdict(config.decode)}
    defaults: dict[str, Any] = {**asdict(LabelFlags()), **asdict(DecodeFlags())}
    changed = {name: value for name, value in given.items() if value != defaults[name]}
    if mode != "score":
        problems += [
            f"-{name} {changed[name]} is about label probabilities: it goes with -label_decoding score"
            for name in SCORE_FLAGS
            if name in changed
        ]
    problems += [
        f"-{name} {changed[name]}: -label_decoding {mode} {REASONS[mode]}; leave it out"
        for name in EXCLUDED[mode]
        if name in changed
    ]
    if mode != "generate" and config.decode.engine != "torch":
        problems.append(
            f"-label_decoding {mode} only works with -engine torch; {config.decode.engine} has no search among labels"
        )
    if mode == "score" and len(config.model.model) > 1:
        problems.append("-label_decoding score takes one -model; several decode together with constrained")
    if config.label.calibrate:
        problems.extend(check_data_paths("-calibrate", (config.label.calibrate,)))
        if "label_temperature" in changed:
            problems.append(
                f"-calibrate fits the temperature, and -label_temperature {changed['label_temperature']} gives one:"
                " leave one of them out"
            )


def label_problems(mode: str, labels: LabelMap | None) -> list[str]:
    """What stands against predicting the rows of a task by `-label_decoding mode`."""
    if mode != "generate" and labels is None:
        return [f"-label_decoding {mode} needs labels: give -label_map, or a -task with a label map"]
    if mode == "score" and labels is not None and labels.separator:
        return [
            f"-label_decoding score gives one label a row, and these rows may have several, joined by"
            f" {labels.separator!r}; use constrained"
        ]
    return []


def check_labels(mode: str, labels: LabelMap | None) -> None:
    """Raises `UserError` with the problems of `label_problems`."""
    raise_if_any(label_problems(mode, labels))
