"""The test split of a training run: predicted greedily with the best weights, scored, and written as JSON."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

from checkpoints.model_source import InferenceModel
from checkpoints.run_folder import TEST_REPORT
from config.flags.inference import DecodeFlags
from config.flags.run import BatchFlags
from datamodules.encoding.store import EncodedSplit
from datamodules.splits import Splits
from generation.batch_limits import BatchLimits
from generation.engines.pytorch import TorchEngine
from metrics.registry import METRICS
from metrics.report import report_dict, report_text
from metrics.score import Scores, score
from models.adapters.folder import is_adapter_folder
from models.architectures import target_limit
from models.meter import mean_figures
from prediction.groups import Groups, group_dict
from prediction.lazy_sequence import LazySequence
from prediction.output import outputs_of
from prediction.predict import predict
from prediction.setup import with_length
from prediction.windows import by_probability, by_row
from prediction.written_report import look_at_predictions
from training.run import write_report_page
from training.setup import Prepared
from utils.files import write_json


def prediction_rows(split: EncodedSplit, batch: BatchFlags) -> int:
    """Rows of a batch that fit where the training's batches fit: -batch_size, or what -max_tokens holds of the longest.

    Short rows are not put together without end: the caches of decoding grow with the rows, however short the sources.
    """
    if not batch.max_tokens:
        return batch.batch_size
    longest = int(split.source_lengths.max(initial=1)) + int(split.target_lengths.max(initial=0))
    return min(max(1, batch.max_tokens // longest), DecodeFlags().batch_size)


def report_test_splits(prepared: Prepared) -> list[str]:
    """Predict the test rows of every task with `best/` on one device; returns what to tell, and writes
    `test_report.json`: the report of the only task, or those of several by task, and the means of their metrics."""
    path = Path(prepared.config.run.save_path) / TEST_REPORT
    lines: list[str] = []
    reports, figures = {}, {}
    for part in prepared.data.parts:
        if part.test is not None:
            scores, reports[part.name], told = _report(prepared, part, part.test)
            figures[part.name] = scores.metrics
            lines += told
    content: Mapping[str, Any] = reports.get("", {})
    if "" not in reports:
        means = mean_figures(figures)
        content = {"metrics": {name: None if isnan(mean) else mean for name, mean in means.items()}, "tasks": reports}
        lines.append("mean over the tasks that have the metric:")
        lines += [f"  {name:<18}  {METRICS[name].text(value):>7}" for name, value in means.items()]
    write_json(path, content)
    write_report_page(path.parent)
    return [*lines, f"written to {path}"]


def _report(prepared: Prepared, part: Splits, split: EncodedSplit) -> tuple[Scores, dict[str, Any], list[str]]:
    """The scores of the test rows of a task, their report, and what to tell of it."""
    config, devices, postprocessor = prepared.config, prepared.devices, part.postprocessor
    best = Path(config.run.save_path) / "best"
    one_device = replace(devices, count=1, num_nodes=1)
    model = InferenceModel(str(best), base=config.model.init_model if is_adapter_folder(str(best)) else "")
    model_config, tokenizer = model.config_and_tokenizer()
    flags = DecodeFlags(batch_size=prediction_rows(split, config.batch))
    flags = by_probability(flags) if part.has_windows else flags
    flags = with_length(flags, postprocessor, tokenizer, target_limit(model_config))
    limits = BatchLimits.of(flags)
    engine = TorchEngine((model,), flags, with_scores=part.has_windows)
    with tempfile.TemporaryDirectory() as parts, predict(engine, split, limits, one_device, Path(parts)) as found:
        rows, of_rows = by_row(split, found, postprocessor) if part.has_windows else (split, found)
        references = LazySequence(len(rows), rows.reference)
        texts = LazySequence(len(rows), lambda row: of_rows[row].text)
        scored_as = partial(score, postprocessor=postprocessor, names=part.task.metrics)
        scores = scored_as(references, texts)
        report = report_text(scores, outputs_of(rows, of_rows, postprocessor)).splitlines()
        content = report_dict(scores, {"model": str(best), **asdict(flags)})
        if groups := Groups.of_directions(rows):
            by_group = groups.scores(references, texts, scored_as)
            report += groups.lines(by_group)
            content["groups"] = group_dict(by_group)
        cut_offs = int(config.length.max_seq_length or part.task.max_seq_length), flags.max_predict_length
        content["outputs"] = look_at_predictions(scores, rows, of_rows, tokenizer, cut_offs).to_dict()
    place = f"{part.name}: " if part.name else ""
    return scores, content, [f"{place}test split ({split.num_rows:,} rows, greedy, {best}):", *report]
