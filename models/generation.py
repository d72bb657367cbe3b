"""Beam search and greedy decoding of batches into texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import ByT5Tokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from models.forward import decoder_start_token
from models.loading import source_limit

BYTE_OFFSET = 3  # ByT5: id = byte + 3; 0 pad, 1 end, 2 unknown
BYTE_END = BYTE_OFFSET + 256


@dataclass(frozen=True)
class DecodingOptions:
    """How texts are decoded. `max_length` is in tokens, the end token included."""

    beam_size: int = 1
    length_penalty: float = 1.0
    max_length: int = 512
    no_repeat_ngram_size: int = 0  # tokens; 0 = off


def generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: DecodingOptions
) -> GenerationConfig:
    """Every generation field that matters, set: none is inherited from a checkpoint's own generation config.

    The start token, and a fixed first token (BART's `<s>`, mBART's language), are taken from an encoded target, so
    that decoding begins as training did.
    """
    target = example_target(tokenizer)
    limit = source_limit(model.config)
    bare = tokenizer(text_target="a", add_special_tokens=False)["input_ids"]
    has_first = len(target) > 1 and target[: len(bare)] != bare
    return GenerationConfig(
        max_new_tokens=min(options.max_length, limit - 1) if limit else options.max_length,
        num_beams=options.beam_size,
        length_penalty=options.length_penalty if options.beam_size > 1 else 1.0,
        no_repeat_ngram_size=options.no_repeat_ngram_size or None,
        early_stopping=False,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=decoder_start_token(model, target),
        forced_bos_token_id=target[0] if has_first else None,
        use_cache=True,
    )


class Decoder:
    """Texts for batches of encoded sources, by greedy or beam search; leaves the model's own config as it was."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: DecodingOptions) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = generation_config(model, tokenizer, options)

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> list[str]:
        """One text for each row of (batch, source_length) ids."""
        own = self.model.generation_config
        self.model.generation_config = self.config  # `generate` fills unset fields from it
        try:
            output = self.model.generate(
                input_ids=input_ids, attention_mask=attention_mask, generation_config=self.config
            )
        finally:
            self.model.generation_config = own
        return decode_texts(self.tokenizer, output)


def example_target(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a one-letter target as the data encoding makes it: special tokens included, the end token at the end."""
    ids: list[int] = tokenizer(text_target="a")["input_ids"]
    return ids if tokenizer.eos_token_id in ids else [*ids, tokenizer.eos_token_id]


def decode_texts(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> list[str]:
    """Texts of (batch, length) ids without special tokens."""
    rows = ids.tolist()
    if isinstance(tokenizer, ByT5Tokenizer):
        return [_decode_bytes(row) for row in rows]
    texts: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return texts


def _decode_bytes(row: list[int]) -> str:
    content = bytes(token - BYTE_OFFSET for token in row if BYTE_OFFSET <= token < BYTE_END)
    return content.decode("utf-8", errors="ignore")
