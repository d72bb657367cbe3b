"""Tokenizers of train_tokenizer.py: seconds and memory of training, MB/s of encoding against `tokenizers`. Own data.

    python benchmarks/tokenizer_speed.py                                   # 5 MB of made-up sentences; minutes
    python benchmarks/tokenizer_speed.py -text FILE.txt -vocab_size 16000  # the lines of yours
    python benchmarks/tokenizer_speed.py -morphemes mecab                  # with an analyser that is installed

Speeds are MB (10^6 bytes) of text a second of processor time, of lines and of documents of 30 lines; every tokenizer is
trained in a process of its own. `equal` says whether all ids were the same.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
MODELS = ("unigram", "bpe", "byte_bpe")
MADE_UP = 5_000_000  # bytes
LINES_A_DOCUMENT = 30
ROWS_AT_ONCE = 10_000


def write_text(path: Path) -> None:
    """A file of made-up sentences, one a line."""
    from benchmarks.prepare_speed import sentences

    size = 0
    with open(path, "wb") as file:
        for line in sentences(1, MADE_UP):
            size += file.write(f"{line}\n".encode())
            if size >= MADE_UP:
                return


def figures(text: Path, folder: Path, flags: list[str]) -> dict[str, Any]:
    """Train a tokenizer on the lines of a file, and encode them with it."""
    import train_tokenizer

    before = time.process_time()
    with redirect_stdout(sys.stderr):
        train_tokenizer.main(["-data", str(text), "-corpus_format", "text", "-save_path", str(folder), *flags])
    training = {
        "flags": " ".join(flags),
        "MB": round(text.stat().st_size / 1e6, 1),
        "s of training": round(time.process_time() - before, 1),
        "peak MB of memory": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }
    lines = text.read_text(encoding="utf-8").splitlines()
    starts = range(0, len(lines), LINES_A_DOCUMENT)
    documents = ["\n".join(lines[start : start + LINES_A_DOCUMENT]) for start in starts]
    return {**training, "lines": speeds(folder, lines), "documents": speeds(folder, documents)}


def speeds(folder: Path, rows: list[str]) -> dict[str, Any]:
    """MB/s of our encoder and of the tokenizer's own library for the same rows."""
    import pyarrow as pa

    from datamodules.encoding.tokens import make_encoder
    from models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    encoder, texts = make_encoder(tokenizer), pa.array(rows, pa.large_string())
    size = sum(len(row.encode()) for row in rows) / 1e6
    starts = range(0, len(rows), ROWS_AT_ONCE)
    before = time.process_time()
    ours = [encoder.encode(texts[start : start + ROWS_AT_ONCE], 0, False).values for start in starts]
    seconds, before = time.process_time() - before, time.process_time()
    rust = tokenizer.backend_tokenizer
    theirs = [
        encoding.ids for start in starts for encoding in rust.encode_batch_fast(rows[start : start + ROWS_AT_ONCE])
    ]
    own_seconds = time.process_time() - before
    return {
        "MB/s": round(size / seconds, 1),
        "MB/s of tokenizers": round(size / own_seconds, 1),
        "equal": np.concatenate(ours).tolist() == [id_ for ids in theirs for id_ in ids],
    }


def main() -> None:
    """Print a line of JSON for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-text", type=Path, default=None, help="a text file")
    parser.add_argument("-vocab_size", default="8000")
    parser.add_argument("-morphemes", default="none")
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as name:
        text = given.text or Path(name) / "text.txt"
        if not given.text:
            write_text(text)
        for model in MODELS:
            flags = ["-model", model, "-vocab_size", given.vocab_size, "-morphemes", given.morphemes]
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(figures, (text, Path(name) / model, flags))
            print(json.dumps(found, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
