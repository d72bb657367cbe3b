"""What differs between architectures: one row for each, and what follows from it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import ModuleType

from transformers import PreTrainedConfig, PreTrainedModel

from utils.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """What is special about a model type; the defaults are those of one that is not in the table."""

    family: str = ""  # t5 or bart: built like it, so that our own search and encoder pass serve it
    class_name: str = ""  # how the classes of the libraries begin, of a family
    built_of: str = ""  # the model type whose classes those are, if not its own
    experts: bool = False  # some of its layers are ours (models/switch), which nothing but PyTorch runs
    plain_logits: bool = True  # known to be those of `forward.DecoderOutput`: test_architectures.py
    norm_first: bool = True  # in a layer; else after it
    embedding_norm: bool = True  # of BART's family: a norm behind the embedding
    scaled_behind_embedding: bool = False  # of BART's family: the embedding layer itself gives unscaled vectors
    places_skip_padding: bool = False  # of BART's family: a pad token has no position of its own
    relative_positions: bool = False  # and so no longest source or target
    bias_in_each_layer: bool = False  # of T5's family: else the first layer's position bias is that of all
    overflows_in_fp16: bool = False
    tying_scales: bool = False  # `tie_word_embeddings` also switches the scaling of the decoder's output
    last_token_first: bool = False  # the first decoder input is the target's own last token
    needs_start_token: bool = True
    output_layer: str = ""  # where the logits are made, if not in the output embedding
    tied_in_decoder: bool = False  # the output embedding to the decoder's own, and not to the encoder's
    leaves_out_parameters: bool = False  # a training step may: experts, the eyes of a model, a BERT's pooler
    first_sees_all: bool = False  # the first token of a source has global attention, the others a window
    router_losses: bool = False  # a mixture of experts, which adds them to the cross-entropy: docs/architectures.md
    encoder_opens_alone: bool = False  # in sentence-transformers, which takes the decoder's states of others
    refused: str = ""  # what it does that is not supported

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
_GEMMA = Architecture(needs_start_token=False, overflows_in_fp16=True)
_NLLB_MOE = "sends all tokens to two of its experts in this release of transformers"
ARCHITECTURES = {  # by model_type; ByT5 is a t5
    "t5": replace(_T5, class_name="T5", encoder_opens_alone=True),
    "mt5": replace(_T5, class_name="MT5", encoder_opens_alone=True),
    "umt5": replace(_T5, class_name="UMT5", bias_in_each_layer=True, tying_scales=True),
    "bart": Architecture(family="bart", class_name="Bart", norm_first=False),
    "mbart": Architecture(family="bart", class_name="MBart", last_token_first=True, needs_start_token=False),
    "pegasus": Architecture(family="bart", class_name="Pegasus", embedding_norm=False, scaled_behind_embedding=True),
    "m2m_100": Architecture(family="bart", class_name="M2M100", embedding_norm=False, places_skip_padding=True),
    "switch_t5": replace(_T5, class_name="T5", built_of="t5", experts=True),
    "longt5": replace(_T5, family=""),
    "led": Architecture(first_sees_all=True),
    "plbart": Architecture(last_token_first=True, needs_start_token=False),
    "fsmt": Architecture(
        last_token_first=True, needs_start_token=False, output_layer="model.decoder.output_projection"
    ),
    **dict.fromkeys(("bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mvp"), Architecture()),
    **dict.fromkeys(("pegasus_x", "seamless_m4t", "seamless_m4t_v2"), Architecture()),
    "t5gemma": replace(_GEMMA, tied_in_decoder=True),
    "t5gemma2": replace(_GEMMA, leaves_out_parameters=True),
    "encoder-decoder": Architecture(plain_logits=False, leaves_out_parameters=True),
    "switch_transformers": replace(_T5, family="", leaves_out_parameters=True, router_losses=True),
    "nllb-moe": Architecture(plain_logits=False, refused=_NLLB_MOE),
    "prophetnet": Architecture(plain_logits=False, refused="trains with a loss of several future tokens"),
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


def of_plain_layers() -> list[str]:
    """The model types of our own search whose layers are all those of the library."""
    return [name for name in own_search() if not ARCHITECTURES[name].experts]


def opened_alone() -> list[str]:
    """The model types whose encoder sentence-transformers opens alone."""
    return [name for name, row in ARCHITECTURES.items() if row.encoder_opens_alone]


def library_module(model_type: str) -> ModuleType:
    """Where the library has the classes that a model of a family is built of."""
    kind = architecture(model_type).built_of or model_type
    return importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")


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


def source_limit(config: PreTrainedConfig, virtual_tokens: int = 0) -> int:
    """Longest source in tokens that the model has positions for; 0 = no limit (T5's relative bias).

    Args:
        virtual_tokens: of an adapter, in front of every source.
    """
    limit = _positions(config, "encoder")
    return limit - virtual_tokens if limit else 0


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
    part = getattr(config, side, None)  # a config of its own, in which text may have another one, or what is no config
    part = getattr(part, "text_config", part) if isinstance(part, PreTrainedConfig) else config
    found = (getattr(part, name, None) for name in ("max_position_embeddings", f"max_{side}_position_embeddings"))
    limit = min((int(value) for value in found if value), default=0)
    window = getattr(config, "attention_window", 1) if row.first_sees_all and side == "encoder" else 1
    return limit - limit % (max(window) if isinstance(window, list | tuple) else window)  # to which sources are padded


def logit_softcap(config: PreTrainedConfig) -> float:
    """What bounds the logits, softcap * tanh(logits / softcap), as in Gemma; 0 = nothing."""
    parts = (config, getattr(config, "decoder", None))
    return next((float(cap) for part in parts if (cap := getattr(part, "final_logit_softcapping", None))), 0.0)


def notes(config: PreTrainedConfig, training: bool) -> list[str]:
    """What is said at the start of a training or a prediction of an architecture."""
    kind, row = config.model_type, architecture(config.model_type)
    lines = []
    if not row.own_search:
        lines.append(f"a {kind} model is decoded by generate of transformers: slower than our search, the same texts")
    if row.first_sees_all:
        lines.append(f"a {kind} model: the first token of each source has global attention, the others a window")
    if row.router_losses and training:
        lines.append(
            f"a {kind} model: the loss of training includes those of its routers, val_loss does not; an expert takes"
            f" {config.expert_capacity} tokens of a row, and those beyond pass it by"
        )
    if row.experts and training:
        lines.append(
            f"a {kind} model: the balance and z-losses of its routers are trained and logged beside loss, which like"
            " val_loss is the cross-entropy"
        )
    return lines


def refuse_unsupported(config: PreTrainedConfig, place: str) -> None:
    """Refuse an architecture that would train on another loss, or whose library class is wrong."""
    if refused := architecture(config.model_type).refused:
        raise UserError(f"{place}: a {config.model_type} model {refused}, which is not supported")
