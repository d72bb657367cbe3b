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
    """A fresh copy of one of `CONFIGS` with some keys changed."""
    return {**CONFIGS[name], **changes}


def with_dropout(name: str, rate: float = 0.1) -> dict[str, Any]:
    """One of `CONFIGS` with dropout everywhere."""
    keys = ("dropout_rate",) if "t5" in name else ("dropout", "attention_dropout", "activation_dropout")
    return config_of(name, **dict.fromkeys(keys, rate))


_WIDE = {"dropout": 0.1, "encoder_layers": 1, "decoder_layers": 1, "scale_embedding": True}
NEWER: dict[str, dict[str, Any]] = {  # one layer a side, with dropout
    "pegasus": config_of("bart", **_WIDE, model_type="pegasus"),
    "m2m_100": config_of("bart", **_WIDE, model_type="m2m_100", decoder_start_token_id=1),
}
