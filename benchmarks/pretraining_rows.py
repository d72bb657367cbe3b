"""Pretraining rows of every objective: none longer than asked, nothing lost, and how fast batches are built.

    python benchmarks/pretraining_rows.py                # 100,000 rows of each objective; some minutes
    python benchmarks/pretraining_rows.py -rows 2000

Raw tokens are drawn at random from a vocabulary like T5's (32,000 pieces and 256 sentinels). Of every row the lengths
told beforehand, the limits and the tokens restored from source and target are checked. Speed is that of one core, by
CPU time: raw tokens -> noise -> source and target -> padded batches of 64 rows, as text of 4.5 bytes a token.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamodules.collate import collate
from datamodules.objectives.frames import Frame
from datamodules.objectives.mlm import MaskedLM
from datamodules.objectives.pieces import Pieces
from datamodules.objectives.prefix_lm import PrefixLM
from datamodules.objectives.protocol import Objective
from datamodules.objectives.span_corruption import SpanCorruption
from datamodules.objectives.text_infilling import TextInfilling
from datamodules.objectives.ul2 import ul2

PIECES, SENTINELS, MASK = 32_000, 256, 32_300
MODES = {"R": [10], "X": [11], "S": [12]}
BYTES = 4.5  # of text a token; KE-T5's pieces have 5.1 on Korean prose, Kc-MoE's 4.2
SEED, BATCH = 1, 64


def objectives() -> dict[str, tuple[Objective, int]]:
    """Each with the length of its sources."""
    sentinels = np.arange(PIECES + SENTINELS - 1, PIECES - 1, -1).astype(np.int32)
    t5 = (Frame.of([], [1]), Frame.of([], [1]))
    bart = (Frame.of([0], [2]), Frame.of([0], [2]))
    generator = np.random.default_rng(0)
    starts, ends = generator.random(PIECES) < 0.7, generator.random(PIECES) < 0.04
    pieces = Pieces(np.arange(13, PIECES, dtype=np.int32), starts, ends, np.zeros(PIECES, np.bool_))
    return {
        "span corruption 512": (SpanCorruption(sentinels, *t5), 512),
        "span corruption 512, random roll": (SpanCorruption(sentinels, *t5, random_roll=True), 512),
        "span corruption 1024, spans of 20": (SpanCorruption(sentinels, *t5, mean_length=20.0), 1024),
        "ul2 512": (ul2(sentinels, t5, MODES), 512),
        "prefix lm 512": (PrefixLM(*t5), 512),
        "infilling 512": (TextInfilling(pieces, MASK, *bart), 512),
        "mlm 512": (MaskedLM(MASK, pieces.ordinary, *t5), 512),
    }


def restored(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The raw tokens of a row with sentinels: each span of the target in place of its sentinel in the source."""
    if source[0] in (10, 11, 12):
        source = source[1:]
    source, target = source[:-1], target[:-1]
    places, starts = np.flatnonzero(source >= PIECES), np.flatnonzero(target >= PIECES)
    if not len(places):  # a prefix and its rest
        return np.concatenate((source, target))
    assert source[places].tolist() == target[starts].tolist()
    assert len(set(source[places].tolist())) == len(places)
    kept, spans = np.split(source, places), np.split(target, starts)
    return np.concatenate([kept[0], *(part[1:] for pair in zip(spans[1:], kept[1:], strict=True) for part in pair)])


def whole(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The raw tokens of a row whose target is the whole text."""
    del source
    return target[target >= 13]


def checked(objective: Objective, longest: int, rows: int, back: Callable[..., np.ndarray]) -> dict[str, Any]:
    """What is seen of `rows` rows; an assertion fails where one is wrong."""
    raw = objective.raw_length(longest)
    generator = np.random.default_rng(1)
    text = generator.integers(13, PIECES, 1 << 22).astype(np.uint16)
    samples = np.arange(rows) * 977
    sources, targets = objective.lengths(np.full(rows, raw), samples, SEED)
    assert sources.max() <= longest
    assert targets.max() <= longest
    longest_seen = [0, 0]
    for row in range(rows):
        start = row * 31 % (len(text) - raw)
        ids = text[start : start + raw]
        source, target = objective.apply(ids, int(samples[row]), SEED)
        assert len(target) == targets[row]
        assert len(source) == sources[row] or (isinstance(objective, TextInfilling) and len(source) < sources[row])
        assert np.array_equal(back(source, target), ids)
        longest_seen = [max(longest_seen[0], len(source)), max(longest_seen[1], len(target))]
    return {"raw": raw, "longest source": longest_seen[0], "longest target": longest_seen[1], "rows": rows}


def speed(objective: Objective, longest: int, rows: int) -> float:
    """MB of text a second of one core; the best of three."""
    raw = objective.raw_length(longest)
    text = np.random.default_rng(1).integers(13, PIECES, 1 << 22).astype(np.uint16)
    best = 0.0
    for _ in range(3):
        start = time.process_time()
        for first in range(0, rows, BATCH):
            batch = [objective.apply(text[row * 31 :][:raw], row, SEED) for row in range(first, first + BATCH)]
            collate(batch, pad_token_id=0)
        best = max(best, rows * raw * BYTES / 1e6 / (time.process_time() - start))
    return round(best, 1)


def main() -> None:
    """Print a line of JSON for each objective."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-rows", type=int, default=100_000, help="rows of each objective that are checked")
    rows = parser.parse_args().rows
    for name, (objective, longest) in objectives().items():
        back = whole if isinstance(objective, TextInfilling | MaskedLM) else restored
        seen = checked(objective, longest, rows, back)
        print(json.dumps({"objective": name, **seen, "MB/s a core": speed(objective, longest, 6400)}), flush=True)


if __name__ == "__main__":
    main()
