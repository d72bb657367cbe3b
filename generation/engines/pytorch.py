"""The engine of `-engine torch`: our own decoder on the model, or on several that decode together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from checkpoints.model_source import InferenceModel
from config.flags.inference import DecodeFlags
from generation.decoder import Decoder, generation_config
from generation.engines.base import BatchPredictor, Prediction
from generation.passage_spans import PassageRule
from models.architectures import own_search
from postprocessors.labels import LabelMap
from utils.console import tell
from utils.errors import errors_at
from utils.padding import pad_sources


@dataclass(frozen=True)
class TorchEngine:
    """Where the models lie and how they decode; calling it loads them, in the precision that is in force then.

    Args:
        models: more than one decode together, with the mean of their log-probabilities.
        with_scores: predictions carry a score; the best outputs too when `flags.num_return` is above 1.
        labels: of which the texts are; None = free text.
        passage: where the passage is of which the texts are parts; None = they need not be.
    """

    models: tuple[InferenceModel, ...]
    flags: DecodeFlags
    with_scores: bool = False
    labels: LabelMap | None = None
    passage: PassageRule | None = None

    def __call__(self, device: torch.device) -> BatchPredictor:
        loaded = [model() for model in self.models]
        model, tokenizer = loaded[0]
        members = [member.to(device).eval() for member, _ in loaded]
        constrained = self.labels or self.passage
        with errors_at("-label_decoding constrained" if constrained else f"-model {self.models[0].name}"):
            decoder = Decoder(model, tokenizer, self.flags, self.labels, members[1:], self.passage)
        if not decoder.own and model.config.model_type in own_search() and not device.index:
            tell(
                f"-model {self.models[0].name}: its layers are no plain ones, so that generate of transformers decodes"
            )
        decoder.release()
        return TorchPredictor(decoder, tokenizer, device, self.with_scores)


@dataclass(frozen=True)
class TorchPredictor:
    """Predictions of batches by a decoder whose models lie on `device`."""

    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    with_scores: bool

    def with_beams(self, count: int) -> TorchPredictor:
        """The same weights with fewer beams, and no more outputs than beams."""
        flags = self.decoder.flags
        stopping = flags.early_stopping and count > 1
        flags = replace(flags, beam_size=count, num_return=min(flags.num_return, count), early_stopping=stopping)
        decoder = copy.copy(self.decoder)
        decoder.flags = flags
        decoder.config = generation_config(decoder.model, decoder.tokenizer, flags, decoder.models[1:])
        decoder.config.max_new_tokens = self.decoder.config.max_new_tokens  # labels may have set it
        return replace(self, decoder=decoder)

    def __call__(
        self, row_ids: Sequence[int], sources: Sequence[np.ndarray], languages: Sequence[str] = ()
    ) -> list[Prediction]:
        ids, mask = pad_sources(sources, self.tokenizer.pad_token_id, self.device)
        several = self.decoder.flags.num_return > 1
        if not self.with_scores and not self.decoder.flags.do_sample:
            outputs = self.decoder.decode(ids, mask, with_scores=several, languages=languages)
            return [Prediction(found[0].text, cut=found[0].cut) for found in outputs]
        outputs = self.decoder.decode(ids, mask, row_ids, languages=languages)
        return [
            Prediction(found[0].text, found[0].score, tuple(found) if several else (), cut=found[0].cut)
            for found in outputs
        ]
