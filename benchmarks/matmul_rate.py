"""The machine's matmul rate in GFLOP/s, fp32 and bf16, at large squares and at the shapes of a preset's layers.

    python benchmarks/matmul_rate.py                                   # all cores, configs/byt5-mini.json
    python benchmarks/matmul_rate.py --config configs/bart-mini.json --threads 2 --rows 2880
    python benchmarks/matmul_rate.py --device cuda --rows 16384        # TF32 as well

`large_rate()` is what the other benchmarks use for "share of the machine's matmul rate".
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.device import Place  # noqa: E402

CONFIGS = ROOT / "configs"


def rate(
    m: int, k: int, n: int, dtype: torch.dtype = torch.float32, seconds: float = 0.5, place: Place | None = None
) -> float:
    """Best rate of (m, k) @ (k, n) in GFLOP/s within about `seconds`, on the current number of threads or a device."""
    place = place or Place("cpu")
    a, b = (torch.randn(*shape, device=place.device).to(dtype) for shape in ((m, k), (n, k)))
    out = torch.empty(m, n, dtype=dtype, device=place.device)
    repeats = max(1, int((4e8 if place.name == "cpu" else 4e12) / (2 * m * k * n)))

    def work() -> None:
        for _ in range(repeats):
            torch.mm(a, b.t(), out=out)

    best, deadline = float("inf"), time.perf_counter() + seconds
    with torch.no_grad():
        place.seconds(work)
        while time.perf_counter() < deadline or best == float("inf"):
            best = min(best, place.seconds(work) / repeats)
    return 2 * m * k * n / best / 1e9


def large_rate(place: Place) -> float:
    """GFLOP/s of large squares: fp32 on the CPU, bf16 on a GPU."""
    size, dtype = (2048, torch.float32) if place.name == "cpu" else (8192, torch.bfloat16)
    return rate(size, size, size, dtype, place=place)


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
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="threads (default: PyTorch's choice)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = json.loads(arguments.config.read_text(encoding="utf-8"))
    place = Place(arguments.device)
    large = (1024, 2048) if place.name == "cpu" else (4096, 8192)
    print(f"{place.device}, threads {torch.get_num_threads()}, GFLOP/s, best of about half a second")
    kinds = {"fp32": (torch.float32, "highest"), "bf16": (torch.bfloat16, "highest")}
    kinds |= {} if place.name == "cpu" else {"tf32": (torch.float32, "high")}
    print(f"{'shape (m, k, n)':>24}" + "".join(f" {kind:>8}" for kind in kinds))
    for m, k, n in [*((size, size, size) for size in large), *shapes(config, arguments.rows)]:
        print(f"{f'{m} {k} {n}':>24}", end="")
        for dtype, precision in kinds.values():
            torch.set_float32_matmul_precision(precision)
            print(f" {rate(m, k, n, dtype, place=place):8.0f}", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
