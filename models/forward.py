"""One pass of the model under teacher forcing: hidden states without logits, for a loss that takes chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from models.adapters.virtual_tokens import with_virtual_tokens
from models.architectures import architecture, logit_scale, logit_softcap, with_plain_logits
from utils.errors import UserError
from utils.padding import IGNORE_INDEX

INPUTS = ("input_ids", "attention_mask", "labels", "source_segments", "target_segments")  # of a batch


@dataclass(frozen=True)
class DecoderOutput:
    """What the loss is computed from: logits = scale * hidden @ weight.T + bias, bounded by softcap unless that is 0.

    `hidden` is (batch, target_length, d_model), `weight` (vocabulary, d_model), `bias` (vocabulary) or None.
    `router_loss` is what the routers of a mixture of experts add in training, a mean over tokens.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0
    router_loss: Tensor | float = 0.0


def decode_batch(model: PreTrainedModel, batch: Mapping[str, Any]) -> DecoderOutput:
    """One pass over a batch of `datamodules.collate`."""
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    if "source_segments" in inputs:
        del inputs["attention_mask"]
        return decode_packed(model, **inputs)
    return decode_teacher_forced(model, **inputs)


def decode_teacher_forced(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
) -> DecoderOutput:
    """One pass over (batch, source_length) sources and (batch, target_length) labels padded with -100."""
    decoder_input_ids = shift_right(model, labels)
    row = architecture(model.config.model_type)
    attention_mask = unread_mask(model.config, with_virtual_tokens(model, attention_mask))
    if row.like_t5:
        tokens = None, labels != IGNORE_INDEX
        return _decode_t5(model, input_ids, decoder_input_ids, attention_mask, None, attention_mask, tokens)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids}
    if row.like_bart:
        if attention_mask.dim() == 4:  # else the library makes a mask of ones, and reads it
            length = labels.shape[1]
            inputs["decoder_attention_mask"] = attention_mask.new_ones(1, 1, length, length).tril()
        hidden = model.model(**inputs, use_cache=False)[0]
        return DecoderOutput(hidden=hidden, weight=model.lm_head.weight, bias=logits_bias(model))
    return _other_architecture(model, inputs)


def encode_batch(model: PreTrainedModel, batch: Mapping[str, Any]) -> DecoderOutput:
    """One pass of the encoder by itself over a batch of `datamodules.collate` whose labels stand at the places of the
    source: its states go to the output layer as those of the decoder do."""
    mask = unread_mask(model.config, batch["attention_mask"])
    hidden = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask)[0]
    return DecoderOutput(hidden, model.lm_head.weight, logits_bias(model), logit_scale(model))


def decode_packed(
    model: PreTrainedModel, input_ids: Tensor, labels: Tensor, source_segments: Tensor, target_segments: Tensor
) -> DecoderOutput:
    """One pass over rows of several documents, each of which attends to itself alone.

    Only of T5's family, whose positions are differences (`takes_packed`), and not with the kernel of -attention fused,
    which knows no such masks.

    Args:
        source_segments, target_segments: (batch, source_length) and (batch, target_length) number of a token's
            document, the same in source and target; 0 = padding.
    """
    decoder_input_ids = shift_right(model, labels)
    begins = target_segments[:, 1:] != target_segments[:, :-1]
    decoder_input_ids[:, 1:].masked_fill_(begins, model.config.decoder_start_token_id)
    length = labels.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=labels.device).tril_()
    # Padding of a target looks everywhere: a query that looks nowhere is NaN in some kernels.
    across = _same(target_segments, source_segments) | (target_segments == 0)[:, None, :, None]
    within_source, within_target = _same(source_segments, source_segments), _same(target_segments, target_segments)
    tokens = source_segments > 0, target_segments > 0
    return _decode_t5(model, input_ids, decoder_input_ids, within_source, within_target & earlier, across, tokens)


def _same(queries: Tensor, keys: Tensor) -> Tensor:
    """(batch, 1, queries, keys) boolean: of the same segment."""
    return queries[:, None, :, None] == keys[:, None, None, :]


def takes_packed(config: PreTrainedConfig) -> bool:
    """Whether a model can have several documents in a row."""
    return architecture(config.model_type).like_t5


def _decode_t5(
    model: PreTrainedModel,
    input_ids: Tensor,
    decoder_input_ids: Tensor,
    encoder_mask: Tensor,
    decoder_mask: Tensor | None,
    cross_mask: Tensor,
    tokens: tuple[Tensor | None, Tensor],
) -> DecoderOutput:
    """`tokens` of source and target: where no padding is, which takes no place in an expert; None = where the encoder
    may look."""
    experts = architecture(model.config.model_type).experts
    of_source, of_target = ({"token_mask": part} if experts else {} for part in tokens)
    encoded = model.encoder(input_ids=input_ids, attention_mask=encoder_mask, **of_source)[0]
    hidden = model.decoder(
        input_ids=decoder_input_ids,
        attention_mask=decoder_mask,
        encoder_hidden_states=encoded,
        encoder_attention_mask=cross_mask,
        use_cache=False,
        **of_target,
    )[0]
    return DecoderOutput(hidden=hidden, weight=model.lm_head.weight, scale=logit_scale(model))


def unread_mask(config: Any, attention_mask: Tensor) -> Tensor:
    """The (batch, source_length) mask in a form of which the library does not read the values on the host.

    Of a mask of two dimensions it asks whether any token is masked, and the host waits for the device. One of four,
    (batch, 1, 1, source_length) and boolean, is taken as it is. On the CPU nothing is waited for.
    """
    own = architecture(config.model_type).own_search
    if attention_mask.device.type == "cpu" or not own or not config._attn_implementation.startswith("sdpa"):
        return attention_mask
    return attention_mask.bool()[:, None, None]


def _other_architecture(model: PreTrainedModel, inputs: dict[str, Tensor]) -> DecoderOutput:
    """The hidden states as they enter the output layer; its logits are computed as well and dropped."""
    head = _output_layer(model)
    seen: list[Tensor] = []
    routed = model.training and architecture(model.config.model_type).router_losses
    router_loss: Tensor | float = 0.0
    hook = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        options = {"output_router_logits": True} if routed else {}
        output = model(**inputs, **source_inputs(model, inputs["attention_mask"]), **options, use_cache=False)
    finally:
        hook.remove()
    bias = logits_bias(model)
    bias = getattr(head, "bias", None) if bias is None else bias
    if routed:
        router_loss = model.router_z_loss_coef * (output.encoder_z_loss + output.decoder_z_loss)
        router_loss += model.router_aux_loss_coef * (output.encoder_aux_loss + output.decoder_aux_loss)
    softcap = logit_softcap(model.config)
    return DecoderOutput(seen[0], head.weight, bias, softcap=softcap, router_loss=router_loss)


def source_inputs(model: PreTrainedModel, attention_mask: Tensor) -> dict[str, Tensor]:
    """What an architecture takes of sources besides ids and mask: LED's first token attends to all, and all to it.

    Beltagy et al. 2020, "Longformer", section 7, and the examples of the library.
    """
    if not architecture(model.config.model_type).first_sees_all:
        return {}
    seen = torch.zeros_like(attention_mask)
    seen[:, 0] = 1
    return {"global_attention_mask": seen}


def logits_bias(model: PreTrainedModel) -> Tensor | None:
    """What is added to the logits of BART and its relatives, (1, vocabulary); M2M100 and T5 have none."""
    return getattr(model, "final_logits_bias", None)


def _output_layer(model: PreTrainedModel) -> Any:
    """The layer that makes the logits. (FSMT calls the decoder's input embedding its output embedding.)"""
    place = architecture(model.config.model_type).output_layer
    return model.get_submodule(place) if place else model.get_output_embeddings()


def shift_right(model: PreTrainedModel, labels: Tensor) -> Tensor:
    """Decoder inputs of (batch, target_length) labels: one place to the right, padding in place of -100.

    In front stands `decoder_start_token_id`, or the target's own last token where the architecture has it so; a row
    without a label gets padding there (the library's shift of mBART fails on it, that of FSMT changes the labels).
    """
    config = model.config
    if architecture(config.model_type).last_token_first:
        last = (labels != IGNORE_INDEX).sum(1, keepdim=True) - 1
        first = labels.gather(1, last.clamp(min=0))
    elif hasattr(model, "prepare_decoder_input_ids_from_labels"):
        shifted: Tensor = model.prepare_decoder_input_ids_from_labels(labels=labels)
        return shifted
    else:  # M2M100, NLLB, Blenderbot
        first = labels.new_full((len(labels), 1), config.decoder_start_token_id)
    shifted = torch.cat((first, labels[:, :-1]), 1)
    return shifted.masked_fill(shifted == IGNORE_INDEX, config.pad_token_id)


def decoder_start_token(model: PreTrainedModel, example_target: list[int]) -> int:
    """The first decoder input that training used, found by shifting an example target."""
    return int(shift_right(model, torch.tensor([example_target], device=model.device))[0, 0])


def check_logits(model: PreTrainedModel, place: str) -> None:
    """Refuse an architecture that is not known and does more to its logits: it would train on a wrong loss.

    Raises:
        UserError: its logits for two tokens are other ones; `place` (the flag and its value) opens the message.
    """
    kind = model.config.model_type
    if architecture(kind).plain_logits:
        return
    training = model.training
    ids = torch.tensor([[2, 3]], device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        extra = source_inputs(model, inputs["attention_mask"])
        own = model.eval()(**inputs, **extra, decoder_input_ids=shift_right(model, ids), use_cache=False).logits
        output = decode_teacher_forced(model, **inputs, labels=ids)
    model.train(training)
    logits = output.scale * output.hidden @ output.weight.T
    logits = logits if output.bias is None else logits + output.bias
    logits = output.softcap * torch.tanh(logits / output.softcap) if output.softcap else logits
    if not bool(((logits - own).abs() <= 1e-5 * own.abs().max()).all()):
        raise UserError(
            f"{place}: a {kind} model changes its logits behind the output embedding, which is not supported; choose"
            f" an architecture of {', '.join(with_plain_logits())}"
        )
