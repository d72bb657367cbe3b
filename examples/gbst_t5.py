"""An architecture of one's own for `-user_code`: a T5 over bytes that finds its subwords itself (GBST).

    python train.py -user_code examples/gbst_t5.py -config_path examples/gbst_t5.json -train_data train.tsv ...

Gradient-based subword tokenization (Tay et al. 2021, "Charformer: Fast Character Transformers via Gradient-based
Subword Tokenization", section 2.1) scores, at every byte, the blocks of 1, 2, ... bytes that it lies in, mixes their
means by a softmax of the scores, and means `downsample_factor` bytes into one. The encoder of a T5 reads what is left.
ETRI's GBST-KEByT5 is built so. The calibration of the scores among positions (section 2.1.4) is left out.

The decoder's cross-attention needs the mask of the shorter sequence: the model makes it of the sources' mask, which is
what training and `generate` hand it. Nothing of a row depends on the rows beside it: padding takes no part in a mean.

Shapes: B batch, L bytes, D width, S block sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration
from transformers import initialization as init
from transformers.models.t5.modeling_t5 import T5Stack


class GbstT5Config(T5Config):
    """A T5's, and the sizes of blocks."""

    model_type = "gbst-t5"
    max_block_size: int = 4  # bytes of the longest block
    downsample_factor: int = 2  # bytes that become one position of the encoder


class Gbst(nn.Module):
    """Embeddings of bytes (B, L, D) as (B, L / downsample_factor, D), rounded up."""

    def __init__(self, config: GbstT5Config) -> None:
        super().__init__()
        self.sizes = range(1, config.max_block_size + 1)
        self.factor = config.downsample_factor
        self.order = nn.Conv1d(config.d_model, config.d_model, config.max_block_size)  # else a mean forgets it
        self.score = nn.Linear(config.d_model, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        real = mask.unsqueeze(2).to(x.dtype)  # (B, L, 1)
        ahead = functional.pad((x * real).transpose(1, 2), (0, self.order.kernel_size[0] - 1))
        x = self.order(ahead).transpose(1, 2) * real
        blocks = torch.stack([self._of_each_byte(x, real, size) for size in self.sizes], 2)  # (B, L, S, D)
        weights = self.score(blocks).softmax(2)  # (B, L, S, 1)
        return means((blocks * weights).sum(2) * real, real, self.factor)

    @staticmethod
    def _of_each_byte(x: Tensor, real: Tensor, size: int) -> Tensor:
        """(B, L, D) means of the blocks of `size` bytes that the bytes lie in."""
        found = means(x, real, size).unsqueeze(2).expand(-1, -1, size, -1)
        return found.flatten(1, 2)[:, : x.shape[1]]


def means(x: Tensor, real: Tensor, size: int) -> Tensor:
    """(B, L / size, D), rounded up, of blocks of (B, L, D) that are 0 where `real` (B, L, 1) is: of what is real."""
    sums, counts = (
        functional.pad(part, (0, 0, 0, -part.shape[1] % size)).unflatten(1, (-1, size)).sum(2) for part in (x, real)
    )
    return sums / counts.clamp(min=1.0)


def shorter(mask: Tensor, factor: int) -> Tensor:
    """(B, L / factor), rounded up: whether a block has something real."""
    return functional.pad(mask, (0, -mask.shape[1] % factor)).unflatten(1, (-1, factor)).amax(2)


class DrawnAsT5:
    """Weights drawn as those of a T5, each with a deviation that keeps the size of what passes through it.

    In classes from elsewhere transformers leaves out the modules without parameters of their own, such as attention,
    whose linear layers then keep a deviation of 1, so that hardly anything is learned.
    """

    @classmethod
    def is_custom_code(cls) -> bool:
        """No, as far as the drawing of weights goes; the name is that of transformers."""
        return False

    def _init_weights(self: Any, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[misc]
        if isinstance(module, Gbst):
            for layer in (module.order, module.score):
                init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)


class GbstEncoder(DrawnAsT5, T5Stack):
    """A T5's encoder of what GBST makes of the bytes; its mask is that of the bytes."""

    def __init__(self, config: GbstT5Config) -> None:
        super().__init__(config)
        self.gbst = Gbst(config)

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        embedded = kwargs.pop("inputs_embeds", None)
        embedded = self.embed_tokens(input_ids) if embedded is None else embedded
        mask = torch.ones(embedded.shape[:2], device=embedded.device) if attention_mask is None else attention_mask
        mask = mask.to(torch.long)
        return super().forward(
            inputs_embeds=self.gbst(embedded, mask), attention_mask=shorter(mask, self.gbst.factor), **kwargs
        )


class GbstT5ForConditionalGeneration(DrawnAsT5, T5ForConditionalGeneration):
    """Takes the attention mask of the bytes, as if nothing were shortened."""

    config_class = GbstT5Config

    def __init__(self, config: GbstT5Config) -> None:
        super().__init__(config)
        self.encoder = GbstEncoder(self.encoder.config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds
            )
        if attention_mask is not None:
            attention_mask = shorter(attention_mask, self.config.downsample_factor)
        return super().forward(attention_mask=attention_mask, encoder_outputs=encoder_outputs, **kwargs)


AutoConfig.register(GbstT5Config.model_type, GbstT5Config)
AutoModelForSeq2SeqLM.register(GbstT5Config, GbstT5ForConditionalGeneration)
