"""A tokenizer of `transformers` that gives the ids of a SentencePiece model, with sentinels behind its pieces.

The library's own classes do not: they ignore the file they are given, lose byte fallback and take every model for a
Unigram one. So the parts are put together here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Form: TypeAlias = Literal["NFC", "NFKC"]  # normal forms of Unicode

PAD, END, UNKNOWN, MASK = "<pad>", "</s>", "<unk>", "<mask>"
SPECIAL_TOKENS = (PAD, END, UNKNOWN, MASK)  # their ids are 0, 1, 2 and 3
BLANK = "▁"
NEVER = -1e6  # log probability of pieces that stand for no text of their own: the library knows no types of pieces


def parsed_model(content: bytes = b"") -> Any:
    """The SentencePiece `ModelProto` of a file's content; an empty one without."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    return ModelProto.FromString(content)


def sentinel_names(count: int) -> list[str]:
    """The sentinels in the order of their ids: `<extra_id_0>` has the highest."""
    return [f"<extra_id_{number}>" for number in reversed(range(count))]


def fast_tokenizer(model: Any, sentinels: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a SentencePiece `ModelProto` that begins with `SPECIAL_TOKENS`."""
    spec = model.trainer_spec
    tokenizer = Tokenizer(_bpe(model) if spec.model_type == spec.BPE else _unigram(model))
    set_frame(tokenizer, model.normalizer_spec.precompiled_charsmap)
    return with_special_tokens(tokenizer, sentinels)


def set_frame(tokenizer: Tokenizer, charsmap: bytes) -> None:
    """What stands around the model: normalization, words that begin with a blank, and the way back to text.

    Args:
        charsmap: the compiled normalization of the SentencePiece model; empty for none.
    """
    form = [normalizers.NFKC(), normalizers.Precompiled(charsmap)] if charsmap else [normalizers.NFC()]
    one_blank = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(r"\A "), "")]
    marks = [
        normalizers.Prepend(BLANK),
        normalizers.Replace(" ", BLANK),
        normalizers.Replace(Regex(rf"{BLANK}+\z"), ""),
    ]
    tokenizer.normalizer = normalizers.Sequence([*form, *one_blank, *marks])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="never", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )


def with_special_tokens(tokenizer: Tokenizer, sentinels: int) -> PreTrainedTokenizerFast:
    """`tokenizer`, whose ids begin with `SPECIAL_TOKENS`, with sentinels at the end and `</s>` behind every text."""
    from transformers import PreTrainedTokenizerFast

    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, end)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL_TOKENS])
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in sentinel_names(sentinels)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        mask_token=MASK,
        extra_special_tokens=sentinel_names(sentinels)[::-1],
        clean_up_tokenization_spaces=False,
    )


def _unigram(model: Any) -> models.Unigram:
    normal = model.SentencePiece.NORMAL
    pieces = [(piece.piece, piece.score if piece.type == normal else NEVER) for piece in model.pieces]
    unknown = model.trainer_spec.unk_id
    return models.Unigram(pieces, unk_id=unknown, byte_fallback=model.trainer_spec.byte_fallback)


def _bpe(model: Any) -> models.BPE:
    """Its merges are all ways to put a piece together, those of earlier pieces first, as SentencePiece scores them."""
    ids = {piece.piece: number for number, piece in enumerate(model.pieces)}
    normal = [piece.piece for piece in model.pieces if piece.type == model.SentencePiece.NORMAL]
    known = set(normal)
    merges = [
        (piece[:cut], piece[cut:])
        for piece in normal
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    spec = model.trainer_spec
    return models.BPE(ids, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=spec.byte_fallback)
