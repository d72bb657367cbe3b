"""Best tokens and normalisers of logits over a large vocabulary, without passes over memory that can be saved.

On a CPU, `topk` and `logsumexp` over 250,000 logits a row spend most of their time on copies of the whole tensor. Here
the one is taken among the best blocks only, and the other by parts that stay in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128  # scores
BLOCKS_FROM = 16_384  # scores a row
PART = 2**18  # logits


def best_scores(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row of (rows, width) scores, largest first, and their places.

    The largest `count` scores lie in the `count` blocks of the largest maxima.
    """
    rows, width = scores.shape
    blocks = width // BLOCK
    if scores.device.type != "cpu" or width < BLOCKS_FROM or count > blocks:
        if count == 1:
            top = scores.max(1, keepdim=True)  # twice as fast as argmax
            return top.values, top.indices
        best = scores.topk(count, 1)
        return best.values, best.indices
    blocked = scores[:, : blocks * BLOCK].view(rows, blocks, BLOCK)
    chosen = blocked.amax(2).topk(count, 1).indices
    places = (chosen.unsqueeze(2) * BLOCK + torch.arange(BLOCK)).view(rows, -1)
    rest = torch.arange(blocks * BLOCK, width).expand(rows, -1)
    places = torch.cat((places, rest), 1)
    values, within = scores.gather(1, places).topk(count, 1)
    return values, places.gather(1, within)


def log_normaliser(logits: Tensor) -> Tensor:
    """`logsumexp` over the last dimension of (rows, vocabulary) logits: (rows, 1)."""
    if logits.device.type != "cpu":
        return logits.logsumexp(1, keepdim=True)
    rows = max(1, PART // logits.shape[1])
    parts = [logits[start : start + rows] for start in range(0, len(logits), rows)]
    return torch.cat([part.logsumexp(1, keepdim=True) for part in parts])
