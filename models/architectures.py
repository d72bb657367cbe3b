"""What differs between architectures: one row for each, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig, PreTrainedModel

from utils.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """What is special about a model type; the defaults are those of one that is not in the table."""

    family: str = ""  # t5 or bart: built like it, so that our own search and encoder pass serve it
    class_name: str = ""  # how the classes of the libraries begin, of a family
    plain_logits: bool = True  # product of hidden states and output embedding, plus a bias; test_architectures.py
    norm_first: bool = True  # in a layer; else after it
    embedding_norm: bool = True  # of BART's family: a norm behind the embedding
    places_skip_padding: bool = False  # of BART's family: a pad token has no position of its own
    relative_positions: bool = False  # and so no longest source or target
    bias_in_each_layer: bool = False  # of T5's family: else the first layer's position bias is that of all
    overflows_in_fp16: bool = False
    tying_scales: bool = False  # `tie_word_embeddings` also switches the scaling of the decoder's output
    last_token_first: bool = False  # the first decoder input is the target's own last token
    needs_start_token: bool = True
    output_layer: str = ""  # where the logits are made, if not in the output embedding
    two_models: bool = False  # a pair, each with a config of its own; the encoder's pooler takes no part
    refused_loss: str = ""  # its training needs this, which is not computed here

    @property
    def like_t5(self) -> bool:
        """Whether its modules are those of T5."""
        return self.family == "t5"

    @property
    def like_bart(self) -> bool:
        """Whether its modules are those of BART."""
        return self.family == "bart"

    @property
    def own_search(self) -> bool:
        """Whether our own search and encoder pass serve it."""
        return self.like_t5 or self.like_bart


_T5 = Architecture(family="t5", relative_positions=True, overflows_in_fp16=True)
ARCHITECTURES = {  # by model_type; ByT5 is a t5
    "t5": replace(_T5, class_name="T5"),
    "mt5": replace(_T5, class_name="MT5"),
    "umt5": replace(_T5, class_name="UMT5", bias_in_each_layer=True, tying_scales=True),
    "bart": Architecture(family="bart", class_name="Bart", norm_first=False),
    "mbart": Architecture(family="bart", class_name="MBart", last_token_first=True, needs_start_token=False),
    "pegasus": Architecture(family="bart", class_name="Pegasus", embedding_norm=False),
    "m2m_100": Architecture(family="bart", class_name="M2M100", embedding_norm=False, places_skip_padding=True),
    "longt5": replace(_T5, family=""),
    "plbart": Architecture(last_token_first=True, needs_start_token=False),
    "fsmt": Architecture(
        last_token_first=True, needs_start_token=False, output_layer="model.decoder.output_projection"
    ),
    **dict.fromkeys(("bigbird_pegasus", "blenderbot", "blenderbot-small", "led", "marian", "mvp"), Architecture()),
    **dict.fromkeys(("pegasus_x", "seamless_m4t", "seamless_m4t_v2"), Architecture()),
    "t5gemma": Architecture(plain_logits=False, needs_start_token=False),
    "t5gemma2": Architecture(plain_logits=False, needs_start_token=False),
    "encoder-decoder": Architecture(plain_logits=False, two_models=True),
    "switch_transformers": replace(_T5, family="", plain_logits=False, refused_loss="a router loss"),
    "nllb-moe": Architecture(plain_logits=False, refused_loss="a router loss"),
    "prophetnet": Architecture(plain_logits=False, refused_loss="a loss of several future tokens"),
}
OTHER = Architecture(plain_logits=False)


def architecture(model_type: str) -> Architecture:
    """The row of a model type."""
    return ARCHITECTURES.get(model_type, OTHER)


def with_plain_logits() -> list[str]:
    """The model types whose logits are known to be plain."""
    return sorted(name for name, row in ARCHITECTURES.items() if row.plain_logits)


def own_search() -> list[str]:
    """The model types that our own search decodes."""
    return [name for name, row in ARCHITECTURES.items() if row.own_search]


def overflowing(model_type: str) -> str:
    """`model_type` if its activations overflow in fp16, else empty."""
    return model_type if architecture(model_type).overflows_in_fp16 else ""


def logit_scale(model: PreTrainedModel) -> float:
    """What a T5's decoder states are multiplied by before the output embedding; 1 for BART."""
    config, row = model.config, architecture(model.config.model_type)
    if not row.like_t5:
        return 1.0
    tied = row.tying_scales and config.tie_word_embeddings
    return float(config.d_model**-0.5) if getattr(config, "scale_decoder_outputs", tied) else 1.0


def source_limit(config: PreTrainedConfig) -> int:
    """Longest source in tokens that the model has positions for; 0 = no limit (T5's relative bias)."""
    return _positions(config, "encoder")


def target_limit(config: PreTrainedConfig) -> int:
    """Longest target in tokens that the model has positions for; 0 = no limit. LED's is below its `source_limit`."""
    return _positions(config, "decoder")


def shared_target_limit(configs: Iterable[PreTrainedConfig]) -> int:
    """Longest target in tokens that all models together have positions for; 0 = no limit."""
    return min(filter(None, map(target_limit, configs)), default=0)


def longest_output(limit: int) -> int:
    """Tokens that a model with that `target_limit` writes at most (the start token takes a place); 0 = no limit."""
    return limit - 1 if limit else 0


def _positions(config: PreTrainedConfig, side: str) -> int:
    row = architecture(config.model_type)
    if row.relative_positions:
        return 0
    part = getattr(config, side, None) if row.two_models else config
    found = (getattr(part, name, None) for name in ("max_position_embeddings", f"max_{side}_position_embeddings"))
    return min((int(value) for value in found if value), default=0)


def refuse_other_losses(config: PreTrainedConfig, place: str) -> None:
    """Refuse a model whose loss is more than the cross-entropy of a product of hidden states and output embedding."""
    kind = config.model_type
    if refused := architecture(kind).refused_loss:
        raise UserError(f"{place}: a {kind} model trains with {refused}, which is not supported")
    for part in (config, getattr(config, "decoder", None)):
        if getattr(part, "final_logit_softcapping", None) is not None:
            raise UserError(
                f"{place}: a {kind} model with final_logit_softcapping changes its logits before the loss, which is not"
                " supported; choose a model without it (T5, mT5, UMT5, ByT5, BART, mBART, Pegasus, M2M100, ...)"
            )
