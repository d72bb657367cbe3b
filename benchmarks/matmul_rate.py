"""The machine's matmul rate in GFLOP/s, fp32 and bf16, at large squares and at the shapes of a preset's layers.

    python benchmarks/matmul_rate.py                                   # all cores, configs/byt5-mini.json
    python benchmarks/matmul_rate.py --config configs/bart-mini.json --threads 2 --rows 2880

`rate()` is what the other benchmarks use for "share of the machine's matmul rate".
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def rate(m: int, k: int, n: int, dtype: torch.dtype = torch.float32, seconds: float = 0.5) -> float:
    """Best rate of (m, k) @ (k, n) in GFLOP/s within about `seconds`, on the current number of threads."""
    a, b, out = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype), torch.empty(m, n, dtype=dtype)
    repeats = max(1, int(4e8 / (2 * m * k * n)))
    best, deadline = float("inf"), time.perf_counter() + seconds
    with torch.no_grad():
        while time.perf_counter() < deadline or best == float("inf"):
            start = time.perf_counter()
            for _ in range(repeats):
                torch.mm(a, b.t(), out=out)
            best = min(best, (time.perf_counter() - start) / repeats)
    return 2 * m * k * n / best / 1e9


def shapes(config: dict[str, Any], rows: int) -> list[tuple[int, int, int]]:
    """(m, k, n) of the encoder's matmuls on `rows` tokens."""
    d = int(config["d_model"])
    inner = int(config.get("d_kv", d)) * int(config.get("num_heads", 1))
    hidden = int(config.get("d_ff") or config["encoder_ffn_dim"])
    return [(rows, d, inner), (rows, inner, d), (rows, d, hidden), (rows, hidden, d), (hidden, rows, d)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIGS / "byt5-mini.json")
    parser.add_argument("--rows", type=int, default=2880, help="tokens of a batch (default: 32 rows of 90 bytes)")
    parser.add_argument("--threads", type=int, default=0, help="threads (default: PyTorch's choice)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = json.loads(arguments.config.read_text(encoding="utf-8"))
    print(f"threads {torch.get_num_threads()}, GFLOP/s, best of about half a second")
    print(f"{'shape (m, k, n)':>24} {'fp32':>8} {'bf16':>8}")
    for m, k, n in [(1024, 1024, 1024), (2048, 2048, 2048), *shapes(config, arguments.rows)]:
        print(f"{f'{m} {k} {n}':>24} {rate(m, k, n):8.0f} {rate(m, k, n, torch.bfloat16):8.0f}", flush=True)


if __name__ == "__main__":
    main()
