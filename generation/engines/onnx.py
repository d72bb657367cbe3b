"""ONNX models by the exporter of `transformers`: encoder, first step and later steps with a cache, and greedy search.

The exporter traces plain layers, so it is handed a copy of the model without our own.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from generation.decoder import decode_texts, generation_config
from generation.engines.base import Prediction
from models.architectures import of_plain_layers
from models.loading import describe, from_checkpoint
from utils.errors import UserError
from utils.libraries import require_package
from utils.padding import pad_sources

PACKAGES = ("onnxscript", "onnxruntime")
EXAMPLES = ([5, 6, 7, 8, 9], [10, 11, 12])  # sources that are traced; what is 1 in them would stay 1


def check_onnx(model_type: str, place: str) -> None:
    """Raise `UserError`, opened by `place`, where a package is missing or the architecture was not tried."""
    for package in PACKAGES:
        require_package(package, place)
    if model_type not in of_plain_layers():
        raise UserError(
            f"{place}: a {model_type} model is not exported, only {', '.join(of_plain_layers())} (ByT5 is a t5)"
        )


def save_onnx(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write `encoder.onnx`, `prefill.onnx`, `decode.onnx`, their weights and the exporter's `export.json`."""
    from transformers.exporters.base import ExportedModel
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    plain = from_checkpoint(describe(model), model.state_dict()).eval()
    config = generation_config(plain, tokenizer)
    config.max_new_tokens = 4
    config.forced_bos_token_id = None  # the search forces it
    end = tokenizer.eos_token_id
    ids, mask = pad_sources([np.array([*row, end]) for row in EXAMPLES], tokenizer.pad_token_id, torch.device("cpu"))
    inputs = {"input_ids": ids, "attention_mask": mask}
    options = OnnxConfig(dynamic=True)
    with _quiet():
        exporter = OnnxExporter()
        parts = exporter.export_for_generation(
            plain, dict(inputs), options, generation_config=config, multi_token_decode=True
        ).components
        parts["encoder"] = exporter.export(plain.get_encoder(), dict(inputs), options).components["model"]
        ExportedModel(parts, "onnx", plain.config, model.generation_config).save_pretrained(folder)


class OnnxEngine:
    """Greedy predictions for batches of encoded sources by ONNX Runtime on the CPU.

    Args:
        folder: what `save_onnx` wrote.
        generation: of the model and its flags, by `generation_config`.
    """

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> None:
        from transformers.exporters.base import ExportedModel

        self.tokenizer, self.generation = tokenizer, generation
        with _quiet():
            self.runners = ExportedModel.from_pretrained(folder, device="cpu", local_files_only=True).runners

    def __call__(
        self, row_ids: Sequence[int], sources: Sequence[np.ndarray], languages: Sequence[str] = ()
    ) -> list[Prediction]:
        """One prediction for each source; see `BatchPredictor`."""
        del row_ids, languages
        config = self.generation
        ids, mask = pad_sources(sources, self.tokenizer.pad_token_id, torch.device("cpu"))
        encoded = self.runners["encoder"](input_ids=ids, attention_mask=mask)
        cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        token = ids.new_full((len(ids), 1), config.decoder_start_token_id)
        ended, written, total = torch.zeros(len(ids), dtype=torch.bool), [], torch.zeros(len(ids))
        for step in range(config.max_new_tokens):
            output = self.runners["decode" if step else "prefill"](
                attention_mask=mask, decoder_input_ids=token, encoder_outputs=encoded, past_key_values=cache
            )
            cache, logits = output.past_key_values, output.logits[:, -1].float()
            best = logits.argmax(-1)
            forced = step == 0 and config.forced_bos_token_id is not None
            if forced:
                best = torch.full_like(best, config.forced_bos_token_id)
            else:
                chosen = logits.log_softmax(-1).gather(1, best.unsqueeze(1)).squeeze(1)
                total += chosen.masked_fill(ended, 0.0)
            best = best.masked_fill(ended, config.pad_token_id)
            written.append(torch.where(ended, torch.full_like(best, -1), best))
            ended = ended | (best == config.eos_token_id)
            if bool(ended.all()):
                break
            token = best.unsqueeze(1)
        rows = [[token for token in row if token >= 0] for row in torch.stack(written, 1).tolist()]
        texts = decode_texts(self.tokenizer, rows)
        scores = [float(of_row) / len(row) for of_row, row in zip(total, rows, strict=True)]
        return [Prediction(text, score) for text, score in zip(texts, scores, strict=True)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice and the progress that the exporter prints; errors are raised all the same."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
