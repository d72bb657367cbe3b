"""Small models of every architecture after some steps of training, so that their outputs end at various lengths."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from transformers import ByT5Tokenizer, PreTrainedModel

from models.forward import decode_teacher_forced
from models.kernels.accelerate import accelerate
from models.loading import from_config
from models.losses.cross_entropy import token_loss_sum
from postprocessors.labels import LabelMap
from tests.small_configs import config_of
from utils.padding import pad_sources

LETTERS = "abcdefgh"
TOKENIZER = ByT5Tokenizer()


def words(count: int, seed: int, longest: int = 8) -> list[str]:
    """Random words of 1 to `longest` letters."""
    draw = random.Random(seed)
    return ["".join(draw.choice(LETTERS) for _ in range(draw.randint(1, longest))) for _ in range(count)]


def encoded(texts: list[str]) -> tuple[Tensor, Tensor]:
    """(batch, length) byte ids and attention mask."""
    return pad_sources([torch.tensor(TOKENIZER(text).input_ids).numpy() for text in texts], 0, torch.device("cpu"))


def label_map(texts: Sequence[str], separator: str = "") -> LabelMap:
    """Labels with these texts, of which a row may have several where there is a separator."""
    return LabelMap(tuple((str(number), text) for number, text in enumerate(texts)), separator)


@cache
def half_trained(name: str, steps: int = 100) -> PreTrainedModel:
    """A model of `tests.small_configs` on its way to copying words: uncertain still, and no longer degenerate."""
    model = from_config(config_of(name), seed=4).train()
    accelerate(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    for step in range(steps):
        ids, mask = encoded(words(16, seed=step))
        labels = ids.masked_fill(mask == 0, -100)
        output = decode_teacher_forced(model, ids, mask, labels)
        loss = token_loss_sum(output.hidden, output.weight, labels, bias=output.bias, scale=output.scale)
        optimizer.zero_grad()
        (loss / mask.sum()).backward()
        optimizer.step()
    return model.eval()
