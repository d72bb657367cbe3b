"""Rows a second of `embed.py` against a plain loop over `transformers`; the bytes of 1 to 3 processes and of kills.

    python benchmarks/embed_speed.py                                  # made-up texts; a few minutes
    python benchmarks/embed_speed.py -text FILE.txt -rows 4000 -kills 10 -threads 2

The model is a T5 of small's width with random weights. The loop takes the rows as they come, in batches of as many,
padded to the longest; it has its model loaded when its time begins, `embed.py` has not.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SHAPE = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 6, "num_heads": 8, "feed_forward_proj": "gated-gelu"}
BATCH = 64


def make_model(folder: Path, config: dict[str, int | str]) -> None:
    """A T5 of random weights with a unigram tokenizer."""
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    from benchmarks.prepare_speed import make_tokenizer

    make_tokenizer("unigram", folder)
    size = len(AutoTokenizer.from_pretrained(folder))
    shape = {"num_decoder_layers": 1, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, **config}
    T5ForConditionalGeneration(T5Config(vocab_size=size, **shape)).save_pretrained(folder)


def plain_loop(folder: Path, texts: list[str], longest: int) -> float:
    """Rows a second of what one would write by hand."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer, model = AutoTokenizer.from_pretrained(folder), T5EncoderModel.from_pretrained(folder).eval()
    start, found = time.perf_counter(), []
    with torch.inference_mode():
        for first in range(0, len(texts), BATCH):
            rows = texts[first : first + BATCH]
            inputs = tokenizer(rows, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            mask = inputs["attention_mask"].unsqueeze(2)
            mean = (model(**inputs)[0] * mask).sum(1) / mask.sum(1)
            found.append(torch.nn.functional.normalize(mean).numpy())
    np.save(folder / "plain.npy", np.concatenate(found))
    return len(texts) / (time.perf_counter() - start)


def command(folder: Path, output: Path, longest: int, processes: int) -> list[str]:
    flags = ("-model", folder, "-data", folder / "rows.txt", "-source_column", 1, "-max_seq_length", longest)
    more = ("-batch_size", BATCH, "-gpus", 0, "-cpu_processes", processes, "-save_output", output)
    return [sys.executable, str(ROOT / "embed.py"), *map(str, (*flags, *more))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-text", type=Path, help="a text a line; else made-up sentences")
    parser.add_argument("-rows", type=int, default=2000)
    parser.add_argument("-longest", type=int, default=128, help="tokens")
    parser.add_argument("-repeats", type=int, default=3)
    parser.add_argument("-kills", type=int, default=5)
    parser.add_argument("-threads", type=int, default=1)
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}
    from benchmarks.prepare_speed import sentences

    lines = given.text.read_text(encoding="utf-8").split("\n") if given.text else sentences(1, given.rows)
    texts = [
        *islice((line.replace("\t", " ").replace("\\", "/").strip() for line in lines if line.strip()), given.rows)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_model(folder, SHAPE)
        (folder / "rows.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        speeds: dict[str, list[float]] = {"plain loop": [], "embed.py": []}
        for repeat in range(given.repeats):
            output = folder / f"one-{repeat}.npy"
            done = subprocess.run(command(folder, output, given.longest, 1), capture_output=True, text=True, check=True)
            speeds["embed.py"].append(float(re.findall(r"([\d,.]+) rows/s", done.stdout)[-1].replace(",", "")))
            speeds["plain loop"].append(plain_loop(folder, texts, given.longest))
        for name, found in speeds.items():
            print(f"{name:12} {sorted(found)[len(found) // 2]:,.1f} rows/s (median of {given.repeats})")
        compare(folder, given.longest, given.kills, len(texts))


def compare(folder: Path, longest: int, kills: int, rows: int) -> None:
    """The bytes of several processes, and of commands that were killed, with those of the first run."""
    import numpy as np

    vectors, plain = np.load(folder / "one-0.npy"), np.load(folder / "plain.npy")
    print(f"largest difference from the loop {np.abs(vectors - plain).max():.1e} in {rows:,} rows")
    whole = (folder / "one-0.npy").read_bytes()
    for processes in (2, 3):
        output = folder / f"of-{processes}.npy"
        subprocess.run(command(folder, output, longest, processes), capture_output=True, check=True)
        print(f"{processes} processes: {'the same bytes' if output.read_bytes() == whole else 'OTHER BYTES'}")
    output, draw, count = folder / "killed.npy", random.Random(1), 0
    while not output.exists():
        process = subprocess.Popen(
            command(folder, output, longest, 1 + count % 3), stdout=subprocess.DEVNULL, start_new_session=True
        )
        wait = draw.uniform(4, 12) if count < kills else None
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            count += 1
    print(f"after {count} kills: {'the same bytes' if output.read_bytes() == whole else 'OTHER BYTES'}")


if __name__ == "__main__":
    main()
