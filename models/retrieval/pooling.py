"""One vector a text: the mean of the encoder's states, or the decoder's first state."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from models.adapters.virtual_tokens import with_virtual_tokens
from models.architectures import of_plain_layers
from models.forward import source_inputs, unread_mask
from models.freezing import freeze_except
from utils.errors import UserError

MEAN, DECODER = "mean", "decoder"
POOLINGS = (MEAN, DECODER)


def pooled(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, pooling: str, normalize: bool = True
) -> Tensor:
    """(batch, d_model) fp32 vectors of (batch, length) texts, whose mask is 1 at tokens and 0 at padding.

    With `mean` the mean of the encoder's last states, with `decoder` the last state of the decoder at the start token,
    which attends to all of them (Ni et al. 2021, "Sentence-T5", section 3.2). Virtual tokens of an adapter are no part
    of the mean. A text must have a token.

    Args:
        normalize: whether vectors get length 1.
    """
    seen = unread_mask(model.config, with_virtual_tokens(model, attention_mask))
    more = source_inputs(model, attention_mask)
    encoded: Tensor = model.get_encoder()(input_ids=input_ids, attention_mask=seen, **more)[0]
    if pooling == MEAN:
        states = encoded[:, -input_ids.shape[1] :].float()  # virtual tokens stand in front
        is_token = attention_mask.unsqueeze(2)
        vectors = (states * is_token).sum(1) / attention_mask.sum(1, keepdim=True)
    else:
        start = input_ids.new_full((len(input_ids), 1), model.config.decoder_start_token_id)
        inputs = {"input_ids": start, "encoder_hidden_states": encoded, "encoder_attention_mask": seen}
        if seen.dim() == 4:  # else the library makes a mask of ones, and reads it
            inputs["attention_mask"] = seen.new_ones(1, 1, 1, 1)
        vectors = model.get_decoder()(**inputs, use_cache=False)[0][:, 0].float()
    return nn.functional.normalize(vectors) if normalize else vectors


def check_pooling(config: PreTrainedConfig, pooling: str, place: str) -> None:
    """Refuse a model whose texts cannot be pooled so; `place` opens the message.

    Raises:
        UserError: an architecture that was not tried; no start token.
    """
    if config.model_type not in of_plain_layers():
        raise UserError(
            f"{place}: was not tried with a {config.model_type} model; give one of {', '.join(of_plain_layers())}"
        )
    if pooling == DECODER and getattr(config, "decoder_start_token_id", None) is None:
        raise UserError(f"{place}: a {config.model_type} model has no start token for -pooling {DECODER}; give {MEAN}")


def freeze_unused(model: PreTrainedModel, pooling: str) -> None:
    """Stop training the parameters that the vectors do not depend on: of the output layer, with `mean` of the decoder.

    Raises:
        UserError: nothing is left to train.
    """
    freeze_except(model, _stacks(model, pooling))
    check_trained(model, pooling)


def check_trained(model: PreTrainedModel, pooling: str) -> None:
    """Raise `UserError` where nothing is trained of what the vectors depend on."""
    if not any(parameter.requires_grad for stack in _stacks(model, pooling) for parameter in stack.parameters()):
        raise UserError(f"-freeze: leaves nothing to train of what -pooling {pooling} takes a vector from")


def _stacks(model: PreTrainedModel, pooling: str) -> list[nn.Module]:
    """What the vectors are computed by."""
    return [model.get_encoder(), *([model.get_decoder()] if pooling == DECODER else [])]
