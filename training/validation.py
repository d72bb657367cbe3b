"""A validation's real generation: some validation rows are predicted greedily and scored as inference would."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytorch_lightning as pl

from config.flags.inference import DecodeFlags
from datamodules.encoding.store import EncodedSplit
from datamodules.splits import Splits, evenly_spaced
from generation.decoder import Decoder
from generation.engines.base import Prediction
from metrics.score import score
from models.adapters.tuning import MergedWeights
from models.meter import mixed_figures
from models.seq2seq_module import Seq2SeqModule
from prediction.windows import by_probability, by_row
from training.lightning_loop import data_module, gathered, in_precision, ours
from training.strategies.base import Strategy
from utils.padding import pad_sources

ROWS_AT_ONCE = 32
SAMPLES = 8  # shown in TensorBoard


class GeneratedValidation(pl.Callback):
    """Adds the metrics of generated rows to the figures of a validation; stands before the callbacks that read them.

    A figure that is undefined for these rows is left out.

    Args:
        rows: how many validation rows of each task are predicted, all ranks together; 0 = none.
        metric_names: of the generated rows, by the name of the task among several.
        strategy: of the run; every process predicts with the whole weights.
    """

    def __init__(self, rows: int, metric_names: Mapping[str, tuple[str, ...]], strategy: Strategy) -> None:
        self.rows = rows
        self.strategy = strategy
        self.metric_names = metric_names

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        parts = data_module(trainer).validated
        if not self.rows or not parts:
            return
        module = ours(pl_module)
        with self.strategy.whole(module):
            figures = mixed_figures({part.name: self._score(trainer, module, part) for part in parts})
        module.validation.update({name: figure for name, figure in figures.items() if not math.isnan(figure)})

    def _score(self, trainer: pl.Trainer, module: Seq2SeqModule, part: Splits) -> Mapping[str, float]:
        """The metrics of some validation rows of a task; keeps a few of them as samples."""
        split, postprocessor = part.valid, part.postprocessor
        assert split is not None
        found = self._predict(trainer, module, split, part.has_windows)
        windows = sorted(found)
        rows = split.subset(np.array(windows))
        outputs: Sequence[Prediction] = [found[window] for window in windows]
        if part.has_windows:
            rows, outputs = by_row(rows, outputs, postprocessor)
        predictions = [output.text for output in outputs]
        references = [rows.reference(row) for row in range(len(rows))]
        module.samples[part.named("samples")] = [
            (rows.source_text(row), references[row] or "", as_counted(predictions[row], corrected))
            for row, corrected in enumerate(postprocessor.correct(predictions[:SAMPLES]))
        ]
        return score(references, predictions, postprocessor, names=self.metric_names[part.name]).metrics

    def _predict(
        self, trainer: pl.Trainer, module: Seq2SeqModule, split: EncodedSplit, with_scores: bool
    ) -> dict[int, Prediction]:
        """Those of evenly spaced rows, of each of their windows, shared out over the ranks; the same on every rank."""
        rows = split.windows_of(evenly_spaced(split.num_rows, self.rows))
        rows = rows[np.argsort(-split.source_lengths[rows], kind="stable")]
        world_size = trainer.world_size
        mine = [int(row) for row in rows[trainer.global_rank :: world_size]]
        limit = int(split.target_lengths.max()) * 3 // 2 + 8
        flags = DecodeFlags(max_predict_length=limit)
        merged = MergedWeights(module.model)  # of an adapter: searched as fast as without one
        with merged:
            decoder = Decoder(module.model, module.tokenizer, by_probability(flags) if with_scores else flags)
        predicted: dict[int, Prediction] = {}
        for start in range(0, -(-len(rows) // world_size), ROWS_AT_ONCE):
            module.between_batches()
            chunk = mine[start : start + ROWS_AT_ONCE]
            if chunk:
                sources = [split.source_ids(row) for row in chunk]
                ids, mask = pad_sources(sources, module.tokenizer.pad_token_id, module.device)
                languages = split.target_languages(chunk)
                with in_precision(trainer), merged:  # outside its loops Lightning computes in fp32
                    found = [best for best, *_ in decoder.decode(ids, mask, None, with_scores, languages)]
                predicted |= {row: Prediction(best.text, best.score) for row, best in zip(chunk, found, strict=True)}
        return {row: output for part in gathered(trainer, predicted) for row, output in part.items()}


def as_counted(text: str, corrected: str | None) -> str:
    """A prediction and, where it is another one, the text that it is corrected to."""
    return text if corrected in (text, None) else f"{text} -> {corrected}"
