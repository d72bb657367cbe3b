"""Flags of the raw text that `pretrain.py` reads. No torch import."""

from __future__ import annotations

import dataclasses

from config.parser import free

CORPUS_FORMATS = ("auto", "text", "jsonl", "parquet")
DOCUMENT_ENDS = ("line", "blank", "file")


@dataclasses.dataclass(frozen=True)
class CorpusFlags:
    """Corpus"""

    corpus: tuple[str, ...] = free(
        (),
        "Raw text: a .txt, .jsonl or .parquet file (the first two also .gz, .zst, .bz2, .xz), a folder of them or a"
        " save_to_disk folder, or a hub name (name[:config[:split]]); may repeat. With :RATE behind each, samples are"
        " drawn from them in these proportions, e.g. news.txt:0.3; without, all documents come once an epoch.",
        required=True,
        metavar="PATH[:RATE]",
        path="read",
    )
    valid_corpus: tuple[str, ...] = free((), "Held-out text for validation, like -corpus.", metavar="PATH", path="read")
    corpus_format: str = free(
        "auto", "What the files of -corpus are; auto goes by their names.", choices=CORPUS_FORMATS
    )
    corpus_documents: str = free(
        "line",
        "Where a document of a text file ends: at the end of its line, at a blank line, or with the file.",
        choices=DOCUMENT_ENDS,
    )
    corpus_column: str = free("text", "JSON key or Parquet column of the text; a.b is key b of the object at key a.")
    min_document_tokens: int = free(0, "Leave out documents of fewer tokens; 0 = none.", minimum=0)
    max_document_tokens: int = free(0, "Leave out documents of more tokens; 0 = none.", minimum=0)
    deduplicate: bool = free(False, "Keep the first of all documents of -corpus that have the same text.")
