"""Best tokens and normalisers of logits over a large vocabulary, without passes over memory that can be saved.

On a CPU, `topk` and `logsumexp` over 250,000 logits a row spend most of their time on copies of the whole tensor. Here
the one is taken among the best blocks only, and the other by parts that stay in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from utils.errors import RunError

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


def best_continuations(
    logits: Tensor, scores: Tensor, count: int, normaliser: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` best next tokens of each source, best first: log-probability, beam and token, each (B, count).

    Fewer where fewer may follow. Of a large vocabulary the best of each beam are found first, among its plain logits:
    what is the same for all tokens of a beam is subtracted and added on those alone.

    Args:
        logits: (B, k, vocabulary); overwritten.
        scores: (B, k) log-probabilities of the beams.
        normaliser: (B, k, 1); None where these are log-probabilities already.
    """
    sources, _, width = logits.shape
    if width < BLOCKS_FROM:
        log_probs = logits if normaliser is None else logits.sub_(normaliser)
        flat = log_probs.add_(scores.unsqueeze(2)).view(sources, -1)
        values, places = best_scores(flat, min(count, flat.shape[1]))
        return values, places // width, places % width
    best, tokens = (part.view(*scores.shape, -1) for part in best_scores(logits.view(-1, width), count))
    best = best if normaliser is None else best.sub_(normaliser)
    values, places = best.add_(scores.unsqueeze(2)).view(sources, -1).topk(count, 1)
    return values, places // count, tokens.view(sources, -1).gather(1, places)


def log_normaliser(logits: Tensor) -> Tensor:
    """`logsumexp` over the last dimension of (rows, vocabulary) logits: (rows, 1)."""
    if logits.device.type != "cpu":
        return logits.logsumexp(1, keepdim=True)
    rows = max(1, PART // logits.shape[1])
    parts = [logits[start : start + rows] for start in range(0, len(logits), rows)]
    return torch.cat([part.logsumexp(1, keepdim=True) for part in parts])


def require_finite(broken: Tensor, dtype: torch.dtype) -> None:
    """Raise when the 0-dim bool `broken` is true; waits for the device, so it is called once a batch.

    Args:
        dtype: of the arithmetic that gave the scores.

    Raises:
        RunError: names what -float_precision to take instead.
    """
    if not bool(broken):
        return
    if dtype == torch.float16:
        found = "the activations overflow in fp16; use -float_precision bf16 or 32"
    elif dtype == torch.bfloat16:
        found = "in bf16; use -float_precision 32, and if that fails too, another checkpoint"
    else:
        found = "at -float_precision 32, so that the activations themselves overflow; use another checkpoint"
    raise RunError(f"the model's scores of a batch are NaN or infinite, and nothing of it is written: {found}")
