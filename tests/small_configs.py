"""Model configs small enough for tests, one for each architecture, over the byte vocabulary (384)."""

from __future__ import annotations

from typing import Any

_T5 = {
    "vocab_size": 384,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "s2s_tokenizer": "bytes",
}
_BART = {
    "vocab_size": 384,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 128,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "init_std": 0.08,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": None,
    "s2s_tokenizer": "bytes",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "t5": {**_T5, "model_type": "t5"},
    "t5-untied": {**_T5, "model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": {**_T5, "model_type": "mt5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "umt5": {**_T5, "model_type": "umt5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "bart": {**_BART, "model_type": "bart"},
    "mbart": {**_BART, "model_type": "mbart"},
}


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    """A fresh copy of one of `CONFIGS` or `NEWER` with some keys changed."""
    return {**(CONFIGS[name] if name in CONFIGS else NEWER[name]), **changes}


def with_dropout(name: str, rate: float = 0.1) -> dict[str, Any]:
    """One of `CONFIGS` with dropout everywhere."""
    keys = ("dropout_rate",) if "t5" in name else ("dropout", "attention_dropout", "activation_dropout")
    return config_of(name, **dict.fromkeys(keys, rate))


_WIDE = {"dropout": 0.1, "encoder_layers": 1, "decoder_layers": 1, "scale_embedding": True}
_DEEP = {"dropout_rate": 0.1, "num_layers": 1, "num_decoder_layers": 1}
_GEMMA = {"vocab_size": 384, "dropout_rate": 0.1, "decoder_start_token_id": 2, "pad_token_id": 0, "eos_token_id": 1}
_GEMMA_LAYERS = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,  # with a sliding window, and without
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 4,
    "max_position_embeddings": 128,
    "final_logit_softcapping": 3.0,
    "attn_logit_softcapping": 2.0,
    "initializer_range": 0.1,
}
_SEEING = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_IMAGES = {"boi_token_index": 380, "eoi_token_index": 381, "image_token_index": 382}
NEWER: dict[str, dict[str, Any]] = {  # small, with dropout
    "pegasus": config_of("bart", **_WIDE, model_type="pegasus"),
    "m2m_100": config_of("bart", **_WIDE, model_type="m2m_100", decoder_start_token_id=1),
    "longt5-local": config_of("t5", **_DEEP, model_type="longt5", encoder_attention_type="local", local_radius=3),
    "longt5-global": config_of(
        "t5",
        **_DEEP,
        model_type="longt5",
        encoder_attention_type="transient-global",
        local_radius=3,
        global_block_size=4,
    ),
    "led": config_of(
        "bart",
        **_WIDE,
        model_type="led",
        attention_window=4,
        max_encoder_position_embeddings=62,
        max_decoder_position_embeddings=32,
    ),
    "t5gemma": {**_GEMMA, "encoder": _GEMMA_LAYERS, "decoder": _GEMMA_LAYERS, "model_type": "t5gemma"},
    "t5gemma2": {
        **_GEMMA,
        "encoder": {"text_config": _GEMMA_LAYERS, "vision_config": _SEEING, "mm_tokens_per_image": 4, **_IMAGES},
        "decoder": _GEMMA_LAYERS,
        "model_type": "t5gemma2",
        **_IMAGES,
    },
    "switch-t5": config_of(
        "t5",
        model_type="switch_t5",
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.1,
        num_experts=4,
        experts_per_token=2,
        min_expert_capacity=1,
    ),
    "switch": config_of(
        "t5",
        model_type="switch_transformers",
        dropout_rate=0.1,
        num_experts=4,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        router_z_loss_coef=0.1,
        router_aux_loss_coef=0.1,
    ),
}
