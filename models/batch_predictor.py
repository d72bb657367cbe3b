"""What predicts a batch: the seam between the restartable run over all rows and the engine that decodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from datamodules.encoded_split import EncodedSplit
from errors import errors_at
from models.devices import Devices
from models.forward import pad_sources
from models.generation import Decoder, DecodingOptions
from models.label_prediction import LabelDecoding, ScorePredictor
from models.predictions import Prediction


@dataclass(frozen=True)
class PredictionJob:
    """What is predicted, and how; sent to every process, so all of it is small or reopened there.

    `load` gives the model and tokenizer and is called once in each process. With `with_scores` predictions have scores,
    which costs greedy search some time; several outputs a row have them in any case. With `labels`, no other text comes
    out.
    """

    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    split: EncodedSplit
    batch_size: int
    options: DecodingOptions
    devices: Devices
    with_scores: bool = False
    labels: LabelDecoding | None = None


class BatchPredictor(Protocol):
    """Decodes one batch; what a row gets depends on that batch alone, not on the process or on batches before."""

    def __call__(self, row_ids: Sequence[int], sources: Sequence[np.ndarray]) -> list[Prediction]:
        """One prediction for each of the encoded sources, in their order."""
        ...


def batch_predictor(job: PredictionJob, rank: int) -> BatchPredictor:
    """The engine of `job`, loaded onto the device of process `rank`.

    Raises:
        UserError: the model cannot be loaded, or cannot decode as the options ask.
    """
    if job.labels is not None and job.labels.mode == "score":
        return ScorePredictor(*job.load(), job.labels, job.devices, rank)
    return TorchPredictor(job, rank)


class TorchPredictor:
    """Predictions by our own decoder."""

    def __init__(self, job: PredictionJob, rank: int) -> None:
        cuda = job.devices.accelerator == "cuda"
        self.device = torch.device("cuda", rank) if cuda else torch.device("cpu")
        model, self.tokenizer = job.load()
        model.to(self.device).eval()
        texts, separator = (job.labels.texts, job.labels.separator) if job.labels else ((), "")
        with errors_at("-label_decoding constrained" if job.labels else "-model"):
            self.decoder = Decoder(model, self.tokenizer, job.options, texts, label_separator=separator)
        self.dtype = job.devices.autocast_dtype
        self.num_return = job.options.num_return
        # Samples are drawn by row id, which only `decode` takes.
        self.with_scores = job.with_scores or self.num_return > 1
        self.by_row = self.with_scores or job.options.sampling is not None

    def __call__(self, row_ids: Sequence[int], sources: Sequence[np.ndarray]) -> list[Prediction]:
        """One prediction a source, with the `num_return` best outputs if there are several."""
        batch = pad_sources(sources, self.tokenizer.pad_token_id, self.device)
        with torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext():
            if not self.by_row:
                return [Prediction(text, None) for text in self.decoder(*batch)]
            outputs = self.decoder.decode(*batch, row_ids=[int(row) for row in row_ids])
        return [
            Prediction(
                best[0].text,
                best[0].score if self.with_scores else None,
                tuple(best) if self.num_return > 1 else (),
            )
            for best in outputs
        ]
