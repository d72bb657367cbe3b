"""Our decoder against `generate` of transformers, and label scores against sums of token log-probabilities.

    python benchmarks/parity.py             six half-trained small models, 300 words, 1, 4 and 8 beams

Rows with the same text, rows whose whole n-best list is the same, and the largest difference of a score; of label
scores the largest difference from a brute-force sum, in float64, of the logits of the library's fp32 model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

NAMES = ("t5", "t5-untied", "mt5", "umt5", "bart", "mbart")
LABELS = ("긍정", "부정", "a", "ab", "abc", "중립입니다", "b", "hgf", "bad", "feed")


def search_parity(name: str, beams: int, rows: int) -> tuple[int, int, float]:
    """Rows of the same best text, rows of the same list, and the largest difference of a beam's score."""
    from config.flags.inference import DecodeFlags
    from tests.trained_models import TOKENIZER, encoded, half_trained, words
    from tests.unit.generation.test_search import LONGEST, Decoder, by_library

    model = half_trained(name)
    ids, mask = encoded(words(rows, seed=77))
    options = DecodeFlags(max_predict_length=LONGEST, beam_size=beams, num_return=beams)
    found = Decoder(model, TOKENIZER, options).decode(ids, mask)
    start = 1 if name == "mbart" else 0
    expected = by_library(model, ids, mask, start, num_beams=beams, num_return_sequences=beams)
    pairs = list(zip(found, expected, strict=True))
    best = sum(ours[0].text == theirs[0][0] for ours, theirs in pairs)
    lists = sum([output.text for output in ours] == [text for text, _ in theirs] for ours, theirs in pairs)
    if beams == 1:
        return best, lists, 0.0
    scores = [
        abs(output.score - score)
        for ours, theirs in pairs
        for output, (text, score) in zip(ours, theirs, strict=True)
        if output.text == text
    ]
    return best, lists, max(scores)


def label_parity(name: str, rows: int, lowest: float) -> tuple[float, float]:
    """The largest difference among scores above `lowest`, and the smallest score."""
    import torch

    from generation.label_scoring import LabelScorer
    from models.special_tokens import encoded_target
    from tests.trained_models import TOKENIZER, encoded, half_trained, words
    from tests.unit.generation.test_label_scoring import brute_force

    model = half_trained(name)
    ids, mask = encoded(words(rows, seed=78))
    scores = LabelScorer(model, TOKENIZER, LABELS)(ids, mask)
    expected = torch.stack([brute_force(model, ids, mask, encoded_target(TOKENIZER, text)) for text in LABELS], 1)
    difference = (scores - expected).abs()
    return float(difference[expected > lowest].max()), float(expected.min())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-rows", type=int, default=300)
    options: Any = parser.parse_args()
    print(f"{'model':10} {'beams':>5} {'same text':>10} {'same list':>10} {'score differs by':>17}")
    for name in NAMES:
        for beams in (1, 4, 8):
            best, lists, score = search_parity(name, beams, options.rows)
            print(f"{name:10} {beams:5} {best:5}/{options.rows} {lists:6}/{options.rows} {score:17.1e}", flush=True)
    print(f"\n{'model':10} {'labels, > -20':>14} {'all':>10} {'smallest score':>15}")
    for name in NAMES:
        likely, _ = label_parity(name, options.rows, -20.0)
        every, smallest = label_parity(name, options.rows, float("-inf"))
        print(f"{name:10} {likely:14.1e} {every:10.1e} {smallest:15.1f}", flush=True)


if __name__ == "__main__":
    main()
