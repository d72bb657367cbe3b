"""Sources as vectors: the mean of what the encoder makes of their tokens, or the first state of the decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from generation.engines.base import Prediction
from generation.topk import require_finite
from models.retrieval.pooling import MEAN, pooled
from utils.errors import RunError
from utils.padding import pad_sources


@dataclass(frozen=True)
class VectorForm:
    """What the vector of a text is: `pooling` is one of `models.retrieval.pooling.POOLINGS`; with `normalize` its
    length is 1; `dtype` is the name of numpy for its numbers."""

    pooling: str = MEAN
    normalize: bool = True
    dtype: str = "float16"

    def describe(self) -> str:
        """`mean of the encoder's states, length 1, float16`."""
        states = "mean of the encoder's states" if self.pooling == MEAN else "first state of the decoder"
        return f"{states}, {'length 1' if self.normalize else 'not normalized'}, {self.dtype}"


@dataclass(frozen=True)
class VectorEngine:
    """The engine that gives every row its vector; calling it loads the model."""

    model: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    form: VectorForm = VectorForm()

    def __call__(self, device: torch.device) -> VectorPredictor:
        return VectorPredictor(*self.model(), device, self.form)


class VectorPredictor:
    """A `BatchPredictor` of vectors, without texts. On the device is what they are made by: of means, the encoder."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        form: VectorForm = VectorForm(),
    ) -> None:
        self.model, self.device, self.form = model.eval(), device, form
        for part in (model.get_encoder(), *(() if form.pooling == MEAN else (model.get_decoder(),))):
            part.to(device)
        self.pad_token_id = tokenizer.pad_token_id

    @torch.inference_mode()
    def __call__(
        self,
        row_ids: Sequence[int],  # noqa: ARG002 (nothing is drawn)
        sources: Sequence[np.ndarray],
        languages: Sequence[str] = (),  # noqa: ARG002 (sources have their own already)
    ) -> list[Prediction]:
        ids, mask = pad_sources(sources, self.pad_token_id, self.device)
        found = pooled(self.model, ids, mask, self.form.pooling, self.form.normalize)
        kind = self.device.type
        mixed = torch.is_autocast_enabled(kind)
        require_finite(~found.isfinite().all(), torch.get_autocast_dtype(kind) if mixed else found.dtype)
        vectors = found.to(getattr(torch, self.form.dtype)).cpu()
        if not bool(vectors.isfinite().all()):
            raise RunError(f"numbers of a vector are beyond those of {self.form.dtype}; give -dtype float32")
        return [Prediction("", vector=vector.tobytes()) for vector in vectors.numpy()]
