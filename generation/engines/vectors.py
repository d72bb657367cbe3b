"""Sources as vectors: the mean of what the encoder makes of their tokens, at length 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from generation.engines.base import Prediction
from generation.topk import require_finite
from models.adapters.virtual_tokens import with_virtual_tokens
from models.forward import source_inputs
from utils.padding import pad_sources


@dataclass(frozen=True)
class VectorEngine:
    """The engine that gives every row its vector; calling it loads the model."""

    model: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]

    def __call__(self, device: torch.device) -> VectorPredictor:
        return VectorPredictor(*self.model(), device)


class VectorPredictor:
    """A `BatchPredictor` of vectors, without texts. Only the encoder is on the device."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
        self.model, self.device = model, device
        self.encoder = model.get_encoder().to(device).eval()
        self.pad_token_id = tokenizer.pad_token_id

    @torch.inference_mode()
    def __call__(
        self,
        row_ids: Sequence[int],  # noqa: ARG002 (nothing is drawn)
        sources: Sequence[np.ndarray],
        languages: Sequence[str] = (),  # noqa: ARG002 (sources have their own already)
    ) -> list[Prediction]:
        ids, mask = pad_sources(sources, self.pad_token_id, self.device)
        more = source_inputs(self.model, mask)
        hidden = self.encoder(input_ids=ids, attention_mask=with_virtual_tokens(self.model, mask), **more)[0]
        hidden = hidden[:, -ids.shape[1] :].float()  # without virtual tokens, which stand in front
        means = (hidden * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        require_finite(~means.isfinite().all(), hidden.dtype)
        vectors = torch.nn.functional.normalize(means).cpu().numpy().astype(np.float16)
        return [Prediction("", vector=vector.tobytes()) for vector in vectors]
