"""What differs between architectures: families, positions, how logits are made."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedConfig, PreTrainedModel

from utils.errors import UserError

T5_LIKE = ("t5", "mt5", "umt5")
BART_LIKE = ("bart", "mbart")
# Their logits are the product of hidden states and output embedding, plus a bias; tests/unit/test_architectures.py.
PLAIN_LOGITS = frozenset(
    (*T5_LIKE, *BART_LIKE, "bigbird_pegasus", "blenderbot", "blenderbot-small", "fsmt", "led", "longt5", "m2m_100")
) | {"marian", "mvp", "pegasus", "pegasus_x", "plbart", "seamless_m4t", "seamless_m4t_v2"}
LAST_TOKEN_FIRST = ("mbart", "plbart", "fsmt")  # the first decoder input is the target's own last token
T5_FAMILY = (*T5_LIKE, "longt5", "switch_transformers")
FP16_UNSAFE = T5_FAMILY
WITH_ROUTER_LOSS = ("switch_transformers", "nllb-moe")  # their training needs a loss that is not computed here


def logit_scale(model: PreTrainedModel) -> float:
    """What a T5's decoder states are multiplied by before the output embedding; 1 for BART."""
    config = model.config
    if config.model_type not in T5_LIKE:
        return 1.0
    tied = config.model_type == "umt5" and config.tie_word_embeddings
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
    if config.model_type in T5_FAMILY:
        return 0
    part = getattr(config, side, None) if config.model_type == "encoder-decoder" else config
    found = (getattr(part, name, None) for name in ("max_position_embeddings", f"max_{side}_position_embeddings"))
    return min((int(value) for value in found if value), default=0)


def _refuse_other_losses(config: PreTrainedConfig, place: str) -> None:
    """Refuse a model whose loss is more than the cross-entropy of a product of hidden states and output embedding."""
    kind = config.model_type
    if kind in WITH_ROUTER_LOSS:
        raise UserError(f"{place}: a {kind} model trains with a router loss, which is not supported")
    if kind == "prophetnet":
        raise UserError(f"{place}: a {kind} model trains with a loss of several future tokens, which is not supported")
    for part in (config, getattr(config, "decoder", None)):
        if getattr(part, "final_logit_softcapping", None) is not None:
            raise UserError(
                f"{place}: a {kind} model with final_logit_softcapping changes its logits before the loss, which is not"
                " supported; choose a model without it (T5, mT5, UMT5, ByT5, BART, mBART, Pegasus, M2M100, ...)"
            )
