"""Training and prediction beside a busy process, by how OpenMP threads wait for each other.

    python benchmarks/busy_neighbour.py                        # our choice by the machine's load against PyTorch's own
    python benchmarks/busy_neighbour.py -settings ours,none,GOMP_SPINCOUNT=10000,OMP_WAIT_POLICY=PASSIVE -repeats 5

Every run is a process of its own that trains `bart-mini` (batches of 8) or decodes with it (batches of 32, 4 beams) on
rows of the bundled sample for some seconds, quiet or beside a process that spins in Python. Runs alternate; figures are
medians of rows a second, "lost" is against PyTorch's own choice on the quiet machine, "kept" against the quiet rate of
the same setting.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SAMPLE = ROOT / "samples" / "text_normalization"
JOBS = ("train", "predict")
KNOBS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def sample_rows(name: str, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Byte ids of the sources and targets of a split of the sample."""
    lines = (SAMPLE / f"{name}.tsv").read_text(encoding="utf-8").splitlines()[:count]
    pairs = [line.split("\t") for line in lines]
    return [(byte_ids(source), byte_ids(target)) for source, target in pairs]


def byte_ids(text: str) -> np.ndarray:
    return np.array([*(byte + 3 for byte in text.encode()), 1])  # the end token last


def child(options: argparse.Namespace) -> None:
    """Work for some seconds; print the rows a second of the time after the first three batches."""
    import torch

    from config.flags.inference import DecodeFlags
    from datamodules.collate import collate
    from generation.decoder import Decoder
    from models.forward import decode_teacher_forced
    from models.loading import from_config
    from models.losses.cross_entropy import token_loss_sum
    from models.optimizers.build import build_optimizer
    from models.presets import read_config
    from models.tokenizers import load_tokenizer
    from utils.devices import share_cores
    from utils.padding import pad_sources

    if options.child_setting == "ours":
        share_cores(torch.get_num_threads())
    model = from_config(read_config("bart-mini"), seed=1)
    optimizer = build_optimizer(model, "adam", 1e-3, 0.0)
    rows = sample_rows("train", 2000)
    decoder = Decoder(model.eval(), load_tokenizer("bytes"), DecodeFlags(beam_size=4, max_predict_length=30))
    size = 8 if options.child == "train" else 32
    ends: list[float] = []
    while len(ends) < 4 or ends[-1] - ends[2] < options.seconds:
        start = len(ends) * size % (len(rows) - size)
        batch = rows[start : start + size]
        if options.child == "train":
            made = collate(batch, 0)
            output = decode_teacher_forced(model.train(), made["input_ids"], made["attention_mask"], made["labels"])
            token_loss_sum(output.hidden, output.weight, made["labels"], bias=output.bias, scale=0.001).backward()
            optimizer.step()
            optimizer.zero_grad()
        else:
            decoder(*pad_sources([source for source, _ in batch], 0, torch.device("cpu")))
        ends.append(time.perf_counter())
    print(f"RATE {(len(ends) - 3) * size / (ends[-1] - ends[2])}")


def rate(options: argparse.Namespace, job: str, setting: str, busy: bool) -> float:
    """Rows a second of one run."""
    environment = {name: value for name, value in os.environ.items() if name not in KNOBS}
    environment |= {"HF_HUB_OFFLINE": "1"} | dict(part.split("=") for part in setting.split("+") if "=" in part)
    command = [sys.executable, __file__, "-seconds", str(options.seconds), "-child", job, "-child_setting", setting]
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    finally:
        if neighbour:
            neighbour.kill()
            neighbour.wait()
    return float(done.stdout.split("RATE ")[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-settings", default="ours,none", help="ours, none, or NAME=VALUE, several joined by +")
    parser.add_argument("-seconds", type=float, default=8.0, help="of each run")
    parser.add_argument("-repeats", type=int, default=3)
    parser.add_argument("-jobs", default=",".join(JOBS))
    parser.add_argument("-child", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("-child_setting", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    settings = options.settings.split(",")
    runs = [(job, setting, busy) for job in options.jobs.split(",") for setting in settings for busy in (False, True)]
    rates: dict[tuple[str, str, bool], list[float]] = {run: [] for run in runs}
    for _ in range(options.repeats):
        for run in runs:
            rates[run].append(rate(options, *run))
            print(*run, f"{rates[run][-1]:.1f} rows/s", file=sys.stderr, flush=True)
    middle = {run: statistics.median(found) for run, found in rates.items()}
    print(f"{'':42} {'quiet':>8} {'busy':>8} {'lost':>6} {'kept':>6}")
    for job, setting, _ in runs[::2]:
        quiet, busy = middle[job, setting, False], middle[job, setting, True]
        lost = 1 - quiet / middle[job, "none", False] if "none" in settings else float("nan")
        print(f"{job:8} {setting:33} {quiet:8.1f} {busy:8.1f} {lost:6.0%} {busy / quiet:6.0%}")


if __name__ == "__main__":
    main()
