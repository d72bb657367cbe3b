"""The test split of a training run: predicted greedily with the best weights, scored, and written as JSON."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

from checkpoints.model_source import InferenceModel
from checkpoints.run_folder import TEST_REPORT
from config.flags import BatchFlags
from config.inference_flags import DecodeFlags
from datamodules.encoding.store import EncodedSplit
from generation.batch_limits import BatchLimits
from generation.engines.pytorch import TorchEngine
from metrics.report import report_dict, report_text
from metrics.score import score
from models.architectures import target_limit
from prediction.groups import Groups, group_dict
from prediction.lazy_sequence import LazySequence
from prediction.output import outputs_of
from prediction.predict import predict
from prediction.setup import with_length
from prediction.windows import by_row
from training.setup import Prepared
from utils.devices import Devices
from utils.files import write_json


def prediction_rows(split: EncodedSplit, batch: BatchFlags) -> int:
    """Rows of a batch that fit where the training's batches fit: -batch_size, or what -max_tokens holds of the longest.

    Short rows are not put together without end: the caches of decoding grow with the rows, however short the sources.
    """
    if not batch.max_tokens:
        return batch.batch_size
    longest = int(split.source_lengths.max(initial=1)) + int(split.target_lengths.max(initial=0))
    return min(max(1, batch.max_tokens // longest), DecodeFlags().batch_size)


def report_test_split(prepared: Prepared, split: EncodedSplit) -> list[str]:
    """Predict `split` with `best/` on one device; returns what to tell, and writes `test_report.json`."""
    config, task, devices, postprocessor = prepared.config, prepared.task, prepared.devices, prepared.postprocessor
    folder = Path(config.run.save_path)
    best = folder / "best"
    one_device = Devices(devices.accelerator, 1, 1, devices.precision)
    model = InferenceModel(str(best))
    model_config, tokenizer = model.config_and_tokenizer()
    flags = DecodeFlags(batch_size=prediction_rows(split, config.batch))
    flags = with_length(flags, postprocessor, tokenizer, target_limit(model_config))
    limits = BatchLimits.of(flags)
    windows = config.length.doc_stride > 0
    engine = TorchEngine((model,), flags, with_scores=windows)
    with tempfile.TemporaryDirectory() as parts, predict(engine, split, limits, one_device, Path(parts)) as found:
        rows, of_rows = by_row(split, found, postprocessor) if windows else (split, found)
        references = LazySequence(len(rows), rows.reference)
        texts = LazySequence(len(rows), lambda row: of_rows[row].text)
        scores = score(references, texts, postprocessor, names=task.metrics)
        report = report_text(scores, outputs_of(rows, of_rows, postprocessor)).splitlines()
        content = report_dict(scores, {"model": str(best), **asdict(flags)})
        if groups := Groups.of_directions(rows):
            by_group = groups.scores(references, texts, partial(score, postprocessor=postprocessor, names=task.metrics))
            report += groups.lines(by_group)
            content["groups"] = group_dict(by_group)
    write_json(folder / TEST_REPORT, content)
    return [
        f"test split ({split.num_rows:,} rows, greedy, {best}):",
        *report,
        f"written to {folder / TEST_REPORT}",
    ]
