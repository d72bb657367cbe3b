"""A validation's real generation: some validation rows are predicted greedily and scored as inference would."""

from __future__ import annotations

import math

import numpy as np
import pytorch_lightning as pl
import torch

from config.inference_flags import DecodeFlags
from datamodules.encoding.store import EncodedSplit
from datamodules.splits import evenly_spaced
from generation.decoder import Decoder
from metrics.score import score
from models.seq2seq_module import Seq2SeqModule
from training.lightning_loop import data_module, ours
from utils.padding import pad_sources

ROWS_AT_ONCE = 32
SAMPLES = 8  # shown in TensorBoard


class GeneratedValidation(pl.Callback):
    """Adds the metrics of generated rows to the figures of a validation; stands before the callbacks that read them.

    A figure that is undefined for these rows is left out.

    Args:
        rows: how many validation rows are predicted, all ranks together; 0 = none.
        metric_names: of the generated rows.
    """

    def __init__(self, rows: int, metric_names: tuple[str, ...]) -> None:
        self.rows = rows
        self.metric_names = metric_names

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = data_module(trainer)
        split = data.valid
        if not self.rows or split is None:
            return
        module = ours(pl_module)
        predicted = self._predict(trainer, module, split)
        order = sorted(predicted)
        references, predictions = [split.reference(row) for row in order], [predicted[row] for row in order]
        shown = order[:SAMPLES]
        module.samples = [
            (split.source_text(row), split.reference(row) or "", as_counted(predicted[row], corrected))
            for row, corrected in zip(shown, data.correct(predictions[:SAMPLES]), strict=True)
        ]
        scores = score(references, predictions, data.postprocessor, names=self.metric_names)
        defined = {name: figure for name, figure in scores.metrics.items() if not math.isnan(figure)}
        module.validation.update(defined)

    def _predict(self, trainer: pl.Trainer, module: Seq2SeqModule, split: EncodedSplit) -> dict[int, str]:
        """Row -> text of evenly spaced rows, shared out over the ranks; the same on every rank."""
        rows = evenly_spaced(len(split), self.rows)
        rows = rows[np.argsort(-split.source_lengths[rows], kind="stable")]
        world_size = trainer.world_size
        mine = [int(row) for row in rows[trainer.global_rank :: world_size]]
        limit = int(split.target_lengths.max()) * 3 // 2 + 8
        decoder = Decoder(module.model, module.tokenizer, DecodeFlags(max_predict_length=limit))
        predicted: dict[int, str] = {}
        for start in range(0, -(-len(rows) // world_size), ROWS_AT_ONCE):
            module.between_batches()
            chunk = mine[start : start + ROWS_AT_ONCE]
            if chunk:
                sources = [split.source_ids(row) for row in chunk]
                ids, mask = pad_sources(sources, module.tokenizer.pad_token_id, module.device)
                predicted.update(zip(chunk, decoder(ids, mask), strict=True))
        if world_size == 1:
            return predicted
        gathered: list[dict[int, str]] = [{} for _ in range(world_size)]
        torch.distributed.all_gather_object(gathered, predicted)
        return {row: text for part in gathered for row, text in part.items()}


def as_counted(text: str, corrected: str | None) -> str:
    """A prediction and, where it is another one, the text that it is corrected to."""
    return text if corrected in (text, None) else f"{text} -> {corrected}"
