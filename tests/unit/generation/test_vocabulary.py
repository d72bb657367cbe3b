"""Best tokens and normalisers equal `topk` and `logsumexp`, whatever the width."""

from __future__ import annotations

import pytest
import torch

from generation.topk import BLOCK, BLOCKS_FROM, best_scores, log_normaliser


@pytest.mark.parametrize("count", [1, 2, 8, 200])
@pytest.mark.parametrize("width", [384, BLOCKS_FROM - 1, BLOCKS_FROM, BLOCKS_FROM + BLOCK - 1, 3 * BLOCKS_FROM + 7])
def test_best_scores_are_those_of_topk(width: int, count: int) -> None:
    scores = torch.randn(5, width, generator=torch.Generator().manual_seed(width))
    scores[1, -3:] = 9.0 + torch.arange(3)  # in the rest after the last block
    scores[2, : width - 300] = float("-inf")
    scores[3, 10 : 10 + count] = 20.0 + torch.arange(count)  # all in neighbouring blocks
    values, places = best_scores(scores, count)
    expected = scores.topk(count, 1)
    assert torch.equal(values, expected.values)
    assert torch.equal(places, expected.indices)


@pytest.mark.parametrize("width", [384, 250_112])
def test_normalisers_are_logsumexp(width: int) -> None:
    logits = torch.randn(7, width, generator=torch.Generator().manual_seed(1)) * 8
    torch.testing.assert_close(log_normaliser(logits), logits.logsumexp(1, keepdim=True), rtol=0, atol=1e-6)
