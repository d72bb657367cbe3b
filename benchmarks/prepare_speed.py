"""Speed and memory of data preparation: MB/s a core, start from the cache, peak memory. Makes its own data.

    python benchmarks/prepare_speed.py                     # everything; a few minutes
    python benchmarks/prepare_speed.py -parts byt5,cache   # some of it
    python benchmarks/prepare_speed.py -data FILE.tsv      # speed on a file of yours (no header, columns 1 and 2)

Every measurement runs in a process of its own with one thread. `stock` is the tokenizer's own call on some of the same
rows, one core as well. MB are 10^6 bytes of the TSV file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
STOCK_ROWS = 3000


def words(generator: random.Random, count: int) -> list[str]:
    """Made-up Korean stems of one to four syllables, of a Zipf-like alphabet."""
    syllables = [chr(0xAC00 + generator.randrange(11172)) for _ in range(900)]
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(syllables))))
    return [
        "".join(generator.choices(syllables, cum_weights=weights, k=generator.choice((1, 2, 2, 3, 3, 4))))
        for _ in range(count)
    ]


def sentences(seed: int, rows: int) -> Iterator[str]:
    """Sentences of 3 to 17 words: a stem by Zipf's law and an ending. Stems are the same for every seed."""
    stems = words(random.Random(0), 30_000)
    weights = list(itertools.accumulate(1 / (rank + 5) for rank in range(len(stems))))
    endings = [
        "은",
        "는",
        "이",
        "가",
        "을",
        "를",
        "에서",
        "으로",
        "했다",
        "합니다",
        "였어요",
        "",
        "",
        "",
        ".",
        "!",
        "?",
    ]
    generator = random.Random(seed)
    for _ in range(rows):
        count = generator.randrange(3, 18)
        chosen = zip(
            generator.choices(stems, cum_weights=weights, k=count), generator.choices(endings, k=count), strict=True
        )
        yield " ".join(stem + ending for stem, ending in chosen)


def write_tsv(path: Path, rows: int) -> None:
    """A TSV of `rows` rows: a sentence and its beginning. Sentences repeat after 200,000 rows."""
    texts = list(sentences(1, min(rows, 200_000)))
    with open(path, "w", encoding="utf-8") as file:
        for row in range(rows):
            text = texts[row % len(texts)]
            file.write(f"{text} {row}\t{text[:20]}\n")


def make_tokenizer(name: str, folder: Path) -> None:
    """Save the ByT5 tokenizer, or a T5 one with 32,000 pieces trained on generated sentences."""
    from tests.small_models import byte_tokenizer, unigram_tokenizer

    if name == "byt5":
        byte_tokenizer(folder)
    else:
        corpus = (f"{text} {row}" for row, text in enumerate(sentences(2, 60_000)))
        unigram_tokenizer(folder, corpus, 32_000)


def measure(data: Path, tokenizer_folder: Path, cache: Path, stock: bool) -> dict[str, float]:
    """Seconds and peak memory (bytes) of one call of `encode_rows`, in this process, with one thread."""
    from transformers import AutoTokenizer

    from datamodules.encoding.encode import EncodeOptions, encode_rows
    from datamodules.readers.read import ReadOptions
    from task_utils import Task

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    options = EncodeOptions("{{ source }}", "{{ target }}", None, 0, 0, True)
    start, cpu = time.perf_counter(), time.process_time()
    split = encode_rows("-train_data", [str(data)], Task("t", ""), ReadOptions(), options, tokenizer, cache, 1)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "rows": len(split),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak": peak,
        "before": base,
        "vocabulary": len(tokenizer),
    }
    if stock:
        texts = [split.source_text(row) for row in range(min(STOCK_ROWS, len(split)))]
        start = time.process_time()
        ids = tokenizer(texts, verbose=False)["input_ids"]
        result["stock_mb_s"] = sum(len(text.encode()) for text in texts) / 1e6 / (time.process_time() - start)
        assert all(split.source_ids(row).tolist() == expected for row, expected in enumerate(ids))
    return result


def in_process(**arguments: Any) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "-measure", json.dumps({key: str(value) for key, value in arguments.items()})]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def speed(name: str, data: Path, folder: Path, rounds: int) -> None:
    """Print MB/s of encoding `data`, the best of `rounds`."""
    size = data.stat().st_size / 1e6
    make_tokenizer(name, folder / name)
    results = [
        in_process(data=data, tokenizer_folder=folder / name, cache=folder / f"{name}-{number}", stock=number == 0)
        for number in range(rounds)
    ]
    best = min(results, key=lambda result: result["cpu_seconds"])
    print(
        f"{name:8} {size:7.1f} MB, vocabulary {best['vocabulary']:,}: {size / best['cpu_seconds']:6.1f} MB/s a core "
        f"({size / best['seconds']:.1f} MB/s of wall time, disk included); stock call {results[0]['stock_mb_s']:.2f} "
        f"MB/s; ids equal on {STOCK_ROWS:,} rows; peak memory {best['peak'] / 1e6:.0f} MB"
    )


def cache_start(folder: Path, rows: int) -> None:
    """Print the seconds of opening a cache."""
    data = folder / "cache.tsv"
    write_tsv(data, rows)
    make_tokenizer("byt5", folder / "byt5")
    arguments = {"data": data, "tokenizer_folder": folder / "byt5", "cache": folder / "cache", "stock": False}
    first, second = in_process(**arguments), in_process(**arguments)
    print(f"cache    {rows:,} rows: encoding {first['seconds']:.2f} s, from the cache {second['seconds']:.3f} s")


def memory(folder: Path, rows: int) -> None:
    """Print the peak memory of encoding and of opening, for a tenth of `rows` and for all."""
    make_tokenizer("byt5", folder / "byt5")
    for count in (rows // 10, rows):
        data = folder / f"memory-{count}.tsv"
        write_tsv(data, count)
        arguments = {"data": data, "tokenizer_folder": folder / "byt5", "cache": folder / f"m{count}", "stock": False}
        first, second = in_process(**arguments), in_process(**arguments)
        print(
            f"memory   {count:,} rows, {data.stat().st_size / 1e6:.0f} MB file: "
            f"peak {first['peak'] / 1e6:.0f} MB while encoding "
            f"({first['seconds']:.1f} s), {second['peak'] / 1e6:.0f} MB when opened from the cache "
            f"({second['seconds']:.2f} s); {first['before'] / 1e6:.0f} MB before the data"
        )
        data.unlink()


def main() -> None:
    """Parse the flags and run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-parts", default="byt5,unigram,cache,memory", help="of byt5, unigram, cache, memory")
    parser.add_argument("-rows", type=int, default=400_000, help="rows of the speed measurements (default 400000)")
    parser.add_argument("-cache_rows", type=int, default=150_000, help="rows of the cache (default 150000)")
    parser.add_argument("-memory_rows", type=int, default=2_000_000, help="rows of the memory part (default 2000000)")
    parser.add_argument("-rounds", type=int, default=3, help="the best of so many rounds counts (default 3)")
    parser.add_argument("-data", default="", help="a TSV file for the speed measurements (default: generated)")
    parser.add_argument("-measure", default="", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        given = json.loads(flags.measure)
        paths = {key: Path(given[key]) for key in ("data", "tokenizer_folder", "cache")}
        print(json.dumps(measure(**paths, stock=given["stock"] == "True")))
        return
    parts = flags.parts.split(",")
    if unknown := sorted(set(parts) - {"byt5", "unigram", "cache", "memory"}):
        parser.error(f"-parts: unknown {', '.join(unknown)}; known: byt5, unigram, cache, memory")
    with tempfile.TemporaryDirectory(prefix="prepare_speed-") as name:
        folder = Path(name)
        data = Path(flags.data) if flags.data else folder / "speed.tsv"
        if not flags.data and {"byt5", "unigram"} & set(parts):
            write_tsv(data, flags.rows)
        for part in ("byt5", "unigram"):
            if part in parts:
                speed(part, data, folder, flags.rounds)
        if "cache" in parts:
            cache_start(folder, flags.cache_rows)
        if "memory" in parts:
            memory(folder, flags.memory_rows)


if __name__ == "__main__":
    main()
