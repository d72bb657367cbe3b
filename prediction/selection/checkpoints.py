"""Every checkpoint of a run on the same rows: encode once -> predict with each -> compare -> report the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from checkpoints.averaging import checkpoints_by_step
from checkpoints.model_source import InferenceModel, check_same_texts, inference_models
from checkpoints.run_folder import checkpoints_of
from config.flags.inference import InferenceConfig
from datamodules.encoding.store import EncodedSplit
from metrics.registry import METRICS
from metrics.score import Scores
from prediction.checks import named_metrics
from prediction.confidence import Confidence, confidence_of
from prediction.parts_folder import checkpoint_output
from prediction.run import (
    Predicted,
    finish_parts,
    parts_of,
    read_parts,
    rows_of,
    scores_of,
    write_outputs,
    write_report,
)
from prediction.setup import Ready, find_label_decoding, prepare
from prediction.workers.ranks import Shared
from reports.checkpoints import checkpoint_lines
from utils.console import tell
from utils.errors import UserError
from utils.tables import counted

FLAG = "-all_checkpoints"


@dataclass(frozen=True)
class ScoredCheckpoint:
    """What a checkpoint of a run came to; `read` gives its predictions."""

    step: int
    path: str
    scores: Scores
    confidence: Confidence | None
    read: Callable[[], AbstractContextManager[Predicted]]

    def to_dict(self) -> dict[str, Any]:
        """The part of a JSON report; None where a figure is undefined."""
        metrics = {name: value if math.isfinite(value) else None for name, value in self.scores.metrics.items()}
        more = {"confidence": self.confidence.to_dict()} if self.confidence else {}
        return {"step": self.step, "path": self.path, "metrics": metrics, **more}


def run_checkpoints(run: Path, config: InferenceConfig, given: frozenset[str], shared: Shared) -> None:
    """Predict the rows of files with every checkpoint of the run; write and report what the best one predicts.

    Args:
        config: of one of the checkpoints.

    Raises:
        UserError: a checkpoint that cannot be read; no metric; no row has a reference.
    """
    paths = dict(sorted(checkpoints_by_step(checkpoints_of(run, last_first=False), FLAG).items()))
    models = inference_models([*map(str, paths.values())], config.model.tokenizer, config.model.base_model)
    check_same_texts(models)
    ready = prepare(config, given, shared.folder)
    metric = next(iter(named_metrics(config.output.metrics) or ready.task.metrics), "")
    if not metric:
        raise UserError(f"{FLAG}: task {ready.task.name} has no metric to compare by; name one in -metrics")
    split, records, groups = rows_of(ready)
    if not any(split.reference(row) is not None for row in range(len(split))):
        raise UserError(f"{FLAG}: no row has a reference to compare the checkpoints by")
    with ExitStack() as stack:
        scored: list[ScoredCheckpoint] = []
        for step, model in zip(paths, models, strict=True):
            tell("", f"checkpoint {len(scored) + 1} of {len(paths)}: step {step:,}, {model.name}")
            scored.append(_scored(step, model, ready, split, stack))
        best, *others = _ranked(scored, metric)
        content = {
            "metric": metric,
            "higher_is_better": METRICS[metric].higher_is_better,
            "best": best.step,
            "scored": [one.to_dict() for one in scored],
        }
        with best.read() as found:
            tell("", f"the best of {counted(len(scored), 'checkpoint')}: step {best.step:,}, {best.path}")
            write_outputs(found, records)
            if others:
                with others[0].read() as other:
                    content["next"] = {"step": others[0].step, **_compared(metric, best, found, other)}
            write_report(found, groups, best.scores, {"checkpoints": content})
    tell("", *checkpoint_lines(content))


def _scored(step: int, model: InferenceModel, ready: Ready, split: EncodedSplit, stack: ExitStack) -> ScoredCheckpoint:
    """Predict with one checkpoint, and score it. Its parts stay until `stack` ends without an error."""
    languages = {name: getattr(ready.models[0], name) for name in ("source_language", "target_language")}
    config = replace(ready.config, model=replace(ready.config.model, model=(model.name,)))
    ready = replace(ready, models=(replace(model, **languages),), config=config)
    decoding = find_label_decoding(ready, split)
    parts = stack.enter_context(parts_of(_with_own_parts(ready, step), split, decoding))
    finish_parts(ready, split, decoding, parts)
    read = partial(read_parts, ready, split, decoding, parts)
    level, confidence = config.output.confidence, None
    with read() as found:
        scores = scores_of(found)
        if level:
            confidence = confidence_of(level, scores, found.references, found.texts, ready.postprocessor)
    return ScoredCheckpoint(step, model.name, scores, confidence, read)


def _with_own_parts(ready: Ready, step: int) -> Ready:
    """The same with a name for the parts of a checkpoint, beside -save_output where that is given."""
    output = ready.config.output
    if not output.save_output:
        return ready
    named = checkpoint_output(Path(output.save_output), step)
    return replace(ready, config=replace(ready.config, output=replace(output, save_output=str(named))))


def _ranked(scored: Sequence[ScoredCheckpoint], metric: str) -> list[ScoredCheckpoint]:
    """The checkpoints with a figure, the best first; of equal ones the earlier.

    Raises:
        UserError: the figure is undefined for all of them.
    """
    sign = -1 if METRICS[metric].higher_is_better else 1
    known = [one for one in scored if not math.isnan(one.scores.metrics.get(metric, math.nan))]
    if not known:
        raise UserError(f"{FLAG}: {metric} is undefined on these rows for every checkpoint; name another in -metrics")
    return sorted(known, key=lambda one: sign * one.scores.metrics[metric])


def _compared(metric: str, best: ScoredCheckpoint, found: Predicted, other: Predicted) -> dict[str, Any]:
    """How many rows tell the best checkpoint from the next one, and how sure the difference of their figures is."""
    references, level = found.references, found.ready.config.output.confidence
    rows = [row for row, reference in enumerate(references) if reference is not None]
    content: dict[str, Any] = {
        "rows": len(rows),
        "rows_that_differ": sum(found.texts[row] != other.texts[row] for row in rows),
    }
    if level:
        alone = replace(best.scores, metrics={metric: best.scores.metrics[metric]})
        postprocessor = found.ready.postprocessor
        content["confidence"] = confidence_of(
            level, alone, references, found.texts, postprocessor, other.texts
        ).to_dict()
    return content
