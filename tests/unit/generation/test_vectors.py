"""Vectors of sources: the mean of the encoder's outputs, whatever stands beside a row in its batch."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from generation.engines.vectors import VectorPredictor
from prediction.parts import Chunks, Parts, write_part
from tests.trained_models import TOKENIZER, half_trained, words


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_a_vector_is_the_mean_of_the_encoder_over_the_tokens_of_a_row(name: str, tmp_path: Path) -> None:
    model, texts = half_trained(name), words(9, seed=6)
    sources = [np.array(TOKENIZER(text).input_ids) for text in texts]
    found = VectorPredictor(copy.deepcopy(model), TOKENIZER, torch.device("cpu"))(range(9), sources)
    for source, prediction in zip(sources, found, strict=True):
        with torch.inference_mode():
            hidden = model.get_encoder()(torch.from_numpy(source)[None])[0][0]
        mean = hidden.mean(0).numpy()
        vector = np.frombuffer(prediction.vector, np.float16)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-3)
        assert prediction.text == ""
    write_part(tmp_path, 0, range(9), found)
    with Parts(tmp_path, Chunks(np.arange(9), [0], 1)) as kept:
        assert list(kept) == found
