"""A corpus to token shards: MB/s a core, memory by the size of the corpus, time of a sample. Makes its own data.

    python benchmarks/corpus_speed.py                        # a file of 50 MB; a minute or two
    python benchmarks/corpus_speed.py -text FILE.txt         # the text of yours, a document a line
    python benchmarks/corpus_speed.py -sizes 1000,4000       # MB; the text is repeated with other first words

Speeds are MB (10^6 bytes) of text a second of processor time, reading and writing included; `tokenizers` is the
tokenizer's own library on some of the same text. Every corpus is built in a process of its own, with its workers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
SAMPLE = 568  # tokens of a row of T5
OWN_LIBRARY_MB = 5


def write_text(path: Path, source: Path | None, size: int) -> None:
    """A file of `size` MB, a document a line: the lines of `source`, or made-up sentences, each time with a number."""
    from benchmarks.prepare_speed import sentences

    base = source.read_text(encoding="utf-8").split("\n") if source else [*sentences(1, 200_000)]
    base = [line for line in base if line.strip()]
    with open(path, "wb") as file:
        for number in itertools.count():
            for line in base:
                file.write(f"{number} {line}\n".encode())
                if file.tell() >= size * 1_000_000:
                    return


def unigram(folder: Path, text: Path) -> Any:
    """A T5 tokenizer with a SentencePiece model of 32,000 pieces, or what the text has."""
    from sentencepiece import SentencePieceTrainer
    from transformers import T5Tokenizer

    folder.mkdir()
    with open(folder / "spiece.model", "wb") as model, open(text, encoding="utf-8") as lines:
        SentencePieceTrainer.train(
            sentence_iterator=itertools.islice(lines, 50_000), model_writer=model, vocab_size=32_000,
            hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        )  # fmt: skip
    return T5Tokenizer.from_pretrained(folder)


def in_process(function: Any, *arguments: Any) -> dict[str, Any]:
    """What a function returns in a new process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(function, arguments)


def built(tokenizer: Any, text: Path, folder: Path, spec_name: str) -> dict[str, Any]:
    """Build the corpus with one worker in this process, read samples, and leave out duplicates."""
    from datamodules.corpus import corpus as module
    from datamodules.corpus.corpus import build_corpus
    from datamodules.corpus.encoders import encoder_specs
    from datamodules.corpus.selection import Selection
    from datamodules.corpus.sources import DocumentOptions

    module.encoder_specs = lambda own: [spec for spec in encoder_specs(own) if spec.name == spec_name]  # type: ignore[attr-defined]
    size = text.stat().st_size / 1e6
    before, start = time.process_time(), time.perf_counter()
    corpus = build_corpus([str(text)], DocumentOptions(), Selection(), tokenizer, folder, 1)
    seconds, wall = time.process_time() - before, time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # before shards are mapped: their pages are counted too
    numbers = np.random.default_rng(0).integers(0, max(1, corpus.num_tokens - SAMPLE), 2000).tolist()
    before = time.process_time()
    for number in numbers:
        corpus.tokens(number, number + SAMPLE)
    sampling, before = time.process_time() - before, time.process_time()
    build_corpus([str(text)], DocumentOptions(), Selection(deduplicate=True), tokenizer, folder, 1)
    return {
        "encoder": corpus.report.encoder,
        "MB": round(size),
        "MB/s a core": round(size / seconds, 1),
        "MB/s": round(size / wall, 1),
        "bytes a token": round(corpus.report.text_bytes / corpus.num_tokens, 2),
        "peak MB of memory": round(peak / 1000),
        "shards, bytes a byte": round(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / size / 1e6, 2),
        "us a sample": round(sampling / len(numbers) * 1e6),
        "documents": corpus.num_documents,
        "s to leave out duplicates": round(time.process_time() - before, 1),
        "notes": corpus.report.notes,
    }


def measured(text: Path | None, sizes: list[int], only: list[str]) -> Iterator[dict[str, Any]]:
    """The figures, one after the other."""
    from transformers import ByT5Tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in sizes:
            path = folder / "text.txt"
            write_text(path, text, size)
            tokenizers: dict[str, Any] = {"bytes": ByT5Tokenizer()}
            if "sentencepiece" in only:
                shutil.rmtree(folder / "model", ignore_errors=True)
                tokenizers["sentencepiece"] = unigram(folder / "model", path)
            for kind in only:
                yield in_process(built, tokenizers[kind], path, folder / "cache", kind)
                shutil.rmtree(folder / "cache")
            if "sentencepiece" in only:
                write_text(path, text, OWN_LIBRARY_MB)
                yield in_process(built, tokenizers["sentencepiece"], path, folder / "cache", "tokenizers")
                shutil.rmtree(folder / "cache")


def main() -> None:
    """Print a line of JSON for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-text", type=Path, default=None, help="a text file, a document a line")
    parser.add_argument("-sizes", default="50", help="MB of the corpora, with commas between")
    parser.add_argument("-encoders", default="sentencepiece,bytes", help="of these, with commas between")
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for figures in measured(given.text, [int(size) for size in given.sizes.split(",")], given.encoders.split(",")):
        print(json.dumps(figures, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
