"""Rows that a model and its export both decode: equal texts, scores, metrics, rows a second and size."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checkpoints.model_source import InferenceModel
from config.flags.export import ExportFlags
from config.flags.inference import InferenceConfig
from config.parser import parse_flags
from datamodules.encoding.store import EncodedSplit
from datamodules.splits import evenly_spaced, prediction_split
from generation.decoder import Decoder, generation_config
from generation.engines.base import BatchPredictor, Prediction
from generation.engines.ctranslate2 import SCORE_TOLERANCE, CTranslate2Engine, supported_compute_types, unread_outputs
from generation.engines.onnx import OnnxEngine
from generation.engines.pytorch import TorchPredictor
from metrics.registry import METRICS
from metrics.score import score
from prediction.checks import check_inference
from prediction.setup import Ready, prepare
from utils.console import tell
from utils.errors import UserError, raise_if_any
from utils.tables import format_table

CPU = torch.device("cpu")
BATCH_ROWS = 32
TIES = 8  # of so many rows one may have another text with the same score


@dataclass(frozen=True)
class ProofRows:
    """Encoded rows of -valid_data, and what the training says of how they are decoded and scored."""

    ready: Ready
    split: EncodedSplit
    rows: Sequence[int]

    def decoded(self, predictor: BatchPredictor) -> tuple[list[Prediction], float]:
        """A prediction of each row, in order, and the seconds that they took; a first batch is not timed."""
        order = sorted(self.rows, key=lambda row: -int(self.split.source_lengths[row]))
        batches = [order[start : start + BATCH_ROWS] for start in range(0, len(order), BATCH_ROWS)]
        self._predict(predictor, batches[-1])
        began = time.perf_counter()
        found = {row: one for rows in batches for row, one in zip(rows, self._predict(predictor, rows), strict=True)}
        return [found[row] for row in self.rows], time.perf_counter() - began

    def _predict(self, predictor: BatchPredictor, rows: Sequence[int]) -> list[Prediction]:
        sources = [self.split.source_ids(row) for row in rows]
        return predictor(rows, sources, self.split.target_languages(np.array(rows)))

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Those of the task; none where no row has a reference."""
        references = [self.split.reference(row) for row in self.rows]
        texts = [prediction.text for prediction in predictions]
        return score(references, texts, self.ready.postprocessor, names=self.ready.task.metrics).metrics


def proof_rows(flags: ExportFlags, name: str, temporary: Path) -> ProofRows | None:
    """The rows of -valid_data, encoded as the model `name` was trained; None where none are given, or where this
    processor does not calculate with -compute_type, which is told.

    Raises:
        UserError: data or a model that `inference.py` refuses as well.
    """
    if not flags.valid_data:
        return None
    converted = flags.format == "ctranslate2"
    if converted and flags.compute_type not in supported_compute_types("cpu"):
        tell(f"-valid_data: not decoded, since this processor does not calculate with {flags.compute_type}")
        return None
    words = ["-model", name, "-gpus", "0", "-doc_stride", "0"]
    words += [word for path in flags.valid_data for word in ("-valid_data", path)]
    words += ["-task", flags.task] if flags.task else []
    words += ["-base_model", flags.base_model] if flags.base_model else []
    words += ["-engine", "ctranslate2", "-compute_type", flags.compute_type] if converted else []
    config, given, problems = parse_flags(InferenceConfig, words)
    check_inference(config, problems)
    raise_if_any(problems)
    ready = prepare(config, given, temporary)
    split, lines = prediction_split(ready.encoder)
    tell(*lines)
    rows = evenly_spaced(len(split), flags.rows or len(split)).tolist()
    return ProofRows(ready, split, rows)


def prove(chosen: ProofRows, flags: ExportFlags, folder: Path, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Decode the rows with `model` and with its export in `folder`, tell how both compare, and give it for
    export.json.

    Raises:
        UserError: texts or scores differ in a format that keeps them.
    """
    decode = chosen.ready.config.decode
    decoder = Decoder(model, tokenizer, decode)
    ours, our_seconds = chosen.decoded(TorchPredictor(decoder, tokenizer, CPU, with_scores=True))
    generation = generation_config(model, tokenizer, decode)
    exported: BatchPredictor
    if flags.format == "ctranslate2":
        unread = unread_outputs(decoder, generation, CPU)
        threads = torch.get_num_threads()
        exported = CTranslate2Engine(folder, tokenizer, decode, generation, threads=threads, unread=unread)
    elif flags.format == "onnx":
        exported = OnnxEngine(folder, tokenizer, generation)
    else:
        loaded, own_tokenizer = InferenceModel(str(folder))()
        exported = TorchPredictor(Decoder(loaded, own_tokenizer, decode), own_tokenizer, CPU, with_scores=True)
    theirs, their_seconds = chosen.decoded(exported)
    kept = flags.compute_type if flags.format == "ctranslate2" else "float32"
    if kept == "float32":
        refuse_other_outputs(flags.format, chosen.rows, ours, theirs)
    count = len(chosen.rows)
    proof = {
        "valid_data": [Path(path).name for path in flags.valid_data],
        "rows": count,
        "equal_texts": sum(one.text == other.text for one, other in zip(ours, theirs, strict=True)),
        "largest_score_difference": max(_score_differences(ours, theirs)),
        "metrics": {"model": chosen.metrics(ours), "export": chosen.metrics(theirs)},
        "rows_per_second": {"model": count / our_seconds, "export": count / their_seconds},
        "bytes": {"model": sum(part.nbytes for part in model.parameters()), "export": _bytes(folder)},
    }
    tell(*proof_lines(proof, f"ctranslate2 {flags.compute_type}" if flags.format == "ctranslate2" else flags.format))
    return proof


def refuse_other_outputs(
    form: str, rows: Sequence[int], ours: Sequence[Prediction], theirs: Sequence[Prediction]
) -> None:
    """Raise `UserError` where an export in fp32 decodes otherwise: safetensors any row, other engines a score by more
    than their tolerance, or more than an eighth of the texts."""
    exact = form == "safetensors"
    differences = _score_differences(ours, theirs)
    other = [place for place, (one, its) in enumerate(zip(ours, theirs, strict=True)) if one.text != its.text]
    wrong = [place for place, difference in enumerate(differences) if difference > (0.0 if exact else SCORE_TOLERANCE)]
    if exact or len(other) > len(rows) // TIES:
        wrong = other or wrong
    if wrong:
        place = wrong[0]
        one, its = ours[place], theirs[place]
        what = f"{len(other or wrong):,} of {len(rows):,} {'texts' if other else 'scores'}"
        raise UserError(
            f"-format {form}: {what} differ from the model's, and nothing is written: row {rows[place] + 1} is"
            f" {its.text[:60]!r} (score {its.score:.4f}) for {one.text[:60]!r} ({one.score:.4f})"
        )


def proof_lines(proof: Mapping[str, Any], engine: str) -> list[str]:
    """What `prove` found, as a table."""
    metrics, speed, size = proof["metrics"], proof["rows_per_second"], proof["bytes"]
    both = ("model", "export")
    table = [
        *((name, *(METRICS[name].text(metrics[side][name]) for side in both)) for name in metrics["model"]),
        ("rows/s", *(f"{speed[side]:,.1f}" for side in both)),
        ("MB", *(f"{size[side] / 1e6:,.1f}" for side in both)),
    ]
    return [
        f"{proof['equal_texts']:,} of {proof['rows']:,} texts of -valid_data are equal; the largest difference of a"
        f" length-normalised log-probability is {proof['largest_score_difference']:.2g}",
        *format_table(("", "model", engine), table),
    ]


def _score_differences(ours: Sequence[Prediction], theirs: Sequence[Prediction]) -> list[float]:
    return [abs((one.score or 0.0) - (other.score or 0.0)) for one, other in zip(ours, theirs, strict=True)]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
