"""Hidden states of the decoder, without the logits: so that the loss can take them in chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

T5_LIKE = ("t5", "mt5", "umt5")
BART_LIKE = ("bart", "mbart")


@dataclass(frozen=True)
class DecoderOutput:
    """What the loss is computed from: logits = scale * hidden @ weight.T + bias.

    `hidden` is (batch, target_length, d_model), `weight` (vocabulary, d_model), `bias` (vocabulary) or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0


def decode_teacher_forced(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
) -> DecoderOutput:
    """One pass over (batch, source_length) sources and (batch, target_length) labels padded with -100."""
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels=labels)
    kind = model.config.model_type
    if kind in T5_LIKE:
        encoded = model.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        hidden = model.decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=encoded,
            encoder_attention_mask=attention_mask,
            use_cache=False,
        )[0]
        scaled = getattr(model.config, "scale_decoder_outputs", kind == "umt5" and model.config.tie_word_embeddings)
        scale = model.config.d_model**-0.5 if scaled else 1.0
        return DecoderOutput(hidden=hidden, weight=model.lm_head.weight, scale=scale)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids}
    if kind in BART_LIKE:
        hidden = model.model(**inputs, use_cache=False)[0]
        return DecoderOutput(hidden=hidden, weight=model.lm_head.weight, bias=model.final_logits_bias)
    return _other_architecture(model, inputs)


def _other_architecture(model: PreTrainedModel, inputs: dict[str, Tensor]) -> DecoderOutput:
    """The hidden states as they enter the output embedding; its logits are computed as well and dropped."""
    head = model.get_output_embeddings()
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        model(**inputs, use_cache=False)
    finally:
        hook.remove()
    bias = getattr(model, "final_logits_bias", None)
    return DecoderOutput(hidden=seen[0], weight=head.weight, bias=bias if bias is not None else head.bias)


def decoder_start_token(model: PreTrainedModel, example_target: list[int]) -> int:
    """The first decoder input that training used, found by shifting an example target."""
    labels = torch.tensor([example_target], device=model.device)
    return int(model.prepare_decoder_input_ids_from_labels(labels=labels)[0, 0])
