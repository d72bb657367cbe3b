"""Which engine decodes: our own on the PyTorch model, or CTranslate2 on a conversion of it."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from checkpoints.model_source import InferenceModel
from models.ctranslate2_conversion import cached_conversion, require_ctranslate2
from models.ctranslate2_engine import CTranslate2Engine, check_start_token, unread_sources
from models.generation import Decoder, DecodingOptions, Hypothesis, generation_config
from models.predictions import BatchPredictor
from utils.console import tell
from utils.padding import pad_sources


@dataclass(frozen=True)
class ConvertedModel:
    """A conversion on the disk and how it decodes; calling it loads it."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    options: DecodingOptions
    generation: GenerationConfig
    compute_type: str
    with_scores: bool
    unread: Mapping[tuple[int, ...], Sequence[Hypothesis]]  # outputs of the sources that CTranslate2 does not read

    def __call__(self, device: torch.device) -> BatchPredictor:
        return self.load(device)

    def load(self, device: torch.device) -> CTranslate2Engine:
        """The engine on that device, with as many threads as PyTorch has.

        Raises:
            UserError: options or a compute type that it has not.
        """
        return CTranslate2Engine(
            self.folder,
            self.tokenizer,
            self.options,
            self.generation,
            self.compute_type,
            device.type,
            device.index or 0,
            threads=torch.get_num_threads(),
            with_scores=self.with_scores,
            unread=self.unread,
        )


def convert(
    model: InferenceModel,
    options: DecodingOptions,
    compute_type: str,
    with_scores: bool,
    examples: Sequence[np.ndarray],
    device: torch.device,
) -> ConvertedModel:
    """Convert the model, once for all runs, and compare what it makes of `examples` with our own engine.

    Raises:
        UserError: the package is missing, the architecture or an option is not supported, or outputs differ.
    """
    require_ctranslate2("-engine ctranslate2")
    loaded, tokenizer = model()
    generation = generation_config(loaded, tokenizer, options)
    check_start_token(options, generation.decoder_start_token_id, generation.eos_token_id)
    folder = cached_conversion(model.name, loaded, tokenizer, compute_type)
    decoder = Decoder(loaded.to(device), tokenizer, options)
    sources = unread_sources(generation.decoder_start_token_id, generation.eos_token_id)
    outputs = decoder.decode(*pad_sources([np.array(ids) for ids in sources], tokenizer.pad_token_id, device))
    unread = dict(zip(sources, outputs, strict=True))
    converted = ConvertedModel(folder, tokenizer, options, generation, compute_type, with_scores, unread)
    engine = converted.load(device)
    tell(*engine.notes())
    tell(engine.check_parity(decoder, examples))
    del engine, decoder, loaded  # they lie on the device, where the worker is about to load the converted model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return converted
