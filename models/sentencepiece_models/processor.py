"""The SentencePiece processor of a tokenizer that was made from its model: the same ids, several times as fast."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from models.sentencepiece_models.fast_tokenizer import SPECIAL_TOKENS, UNKNOWN, Form, parsed_model, set_frame

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

FRAME = ("normalizer", "pre_tokenizer", "decoder")


def sentencepiece_processor(tokenizer: Any) -> tuple[SentencePieceProcessor, Form] | None:
    """What gives the ids of `tokenizer` for texts in the normal form of Unicode that it names (NFC or NFKC), without
    added tokens in them.

    None where the tokenizer is not of the very parts that `fast_tokenizer` puts together.
    """
    rust = getattr(tokenizer, "backend_tokenizer", None)
    if rust is None or getattr(tokenizer, "split_special_tokens", False):
        return None
    charsmap = _charsmap(rust)
    if not _has_our_frame(rust, charsmap):
        return None
    content = json.loads(rust.to_str())  # megabytes, so only now
    added = content["added_tokens"]
    special = [token["content"] for token in added[: len(SPECIAL_TOKENS)]]
    if special != list(SPECIAL_TOKENS) or any(token["normalized"] or token["single_word"] for token in added):
        return None
    from sentencepiece import SentencePieceProcessor

    model = _model(content["model"], charsmap)
    return SentencePieceProcessor(model_proto=model.SerializeToString()), "NFKC" if charsmap else "NFC"


def _charsmap(rust: Any) -> bytes:
    """The compiled normalization; empty for none."""
    state = json.loads(rust.normalizer.__getstate__()) if rust.normalizer else {}
    return base64.b64decode("".join(part.get("precompiled_charsmap", "") for part in state.get("normalizers", [])))


def _has_our_frame(rust: Any, charsmap: bytes) -> bool:
    from tokenizers import Tokenizer, models

    ours = Tokenizer(models.BPE())
    set_frame(ours, charsmap)
    parts = [(getattr(rust, name), getattr(ours, name)) for name in FRAME]
    return all(part is not None and part.__getstate__() == own.__getstate__() for part, own in parts)


def _model(content: dict[str, Any], charsmap: bytes) -> Any:
    model = parsed_model()
    is_bpe = content["type"] == "BPE"
    vocabulary = sorted(content["vocab"].items(), key=lambda item: item[1]) if is_bpe else content["vocab"]
    for number, (text, score) in enumerate(vocabulary):
        piece = model.pieces.add(piece=text, score=-float(number) if is_bpe else score)
        if text == UNKNOWN:
            piece.type = piece.UNKNOWN
        elif text in SPECIAL_TOKENS:
            piece.type = piece.CONTROL
        elif len(text) == len("<0x00>") and text.startswith("<0x") and content["byte_fallback"]:
            piece.type = piece.BYTE
        if piece.type != piece.NORMAL:
            piece.score = 0.0
    spec = model.trainer_spec
    spec.model_type = spec.BPE if is_bpe else spec.UNIGRAM
    spec.byte_fallback = bool(content["byte_fallback"])
    spec.pad_id, spec.eos_id, spec.unk_id, spec.bos_id = 0, 1, 2, -1
    model.normalizer_spec.precompiled_charsmap = charsmap
    return model
