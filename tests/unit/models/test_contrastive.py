"""The loss of retrieval: what it compares, and micro-batches whose gradient is that of one batch."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.loading import from_config
from models.losses.contrastive import NO_KEY, Contrastive, Vectors
from models.retrieval.ranking import RankingMeter
from tests.small_configs import with_dropout

TEMPERATURE = 0.1


def vectors(queries: list[list[float]], passages: list[list[float]], **keys: list[int]) -> Vectors:
    named = {name: torch.tensor(values) for name, values in keys.items()}
    return Vectors(torch.tensor(queries), torch.tensor(passages), **named, places=torch.arange(len(queries)))


def test_a_query_is_compared_with_the_passages_of_other_queries_and_hard_negatives() -> None:
    found = vectors(
        [[1.0, 0.0], [0.0, 1.0]],
        [[0.6, 0.8], [0.8, 0.6], [1.0, 0.0]],
        query_keys=[11, 12],
        passage_keys=[1, 2, 3],
        answers=[11, 12, NO_KEY],
    ).losses(0.5)
    scores = torch.tensor([[1.2, 1.6, 2.0], [1.6, 1.2, 0.0]])
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1]), reduction="none"))


def test_the_same_passage_and_another_one_of_the_same_query_are_no_negatives() -> None:
    """Rows 0 and 1 share a passage, rows 1 and 2 a query, and a hard negative is the passage of row 2."""
    scores = torch.tensor([[1.0, 1.0, 0.5, 0.5], [2.0, 2.0, 1.5, 1.5], [2.0, 2.0, 1.5, 1.5]])
    found = Vectors(
        queries=scores,
        passages=torch.eye(4),
        query_keys=torch.tensor([11, 12, 12]),
        passage_keys=torch.tensor([1, 1, 3, 3]),
        answers=torch.tensor([11, 12, 12, NO_KEY]),
        places=torch.arange(3),
    ).losses(1.0)
    expected = [torch.tensor(row).logsumexp(0) - row[0] for row in ([1.0, 0.5, 0.5], [2.0, 1.5], [1.5, 2.0])]
    torch.testing.assert_close(found, torch.stack(expected))


def micro_batch(rows: int, negatives: int, seed: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    passages = rows + negatives
    answers = [100 * seed + row for row in range(rows)]
    return {
        "input_ids": torch.randint(3, 259, (rows, 6), generator=draw),
        "attention_mask": torch.ones(rows, 6, dtype=torch.int64),
        "passage_ids": torch.randint(3, 259, (passages, 8), generator=draw),
        "passage_mask": torch.ones(passages, 8, dtype=torch.int64),
        "query_keys": torch.tensor(answers),
        "passage_keys": torch.tensor([1000 + 100 * seed + place for place in range(passages)]),
        "answers": torch.tensor(answers + [NO_KEY] * negatives),
        "num_rows": rows,
        "most_passages": 0,
    }


def gradients(model: torch.nn.Module) -> Tensor:
    return torch.cat([part.grad.flatten() for part in model.parameters() if part.grad is not None]).double()


@pytest.mark.parametrize("pooling", ["mean", "decoder"])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_micro_batches_have_the_loss_and_the_gradient_of_one_batch(kind: str, pooling: str) -> None:
    """With dropout: each is passed through twice, and draws the same numbers."""
    model = from_config(with_dropout(kind), seed=3).train()
    found, expected = accumulated(model, pooling), at_once(model, pooling)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert float((found[1] - expected[1]).norm() / expected[1].norm()) < 1e-6


def test_the_pass_without_a_graph_leaves_no_casts_that_take_gradients_away() -> None:
    """Both passes are in one context of autocast, which keeps the weights that it has cast."""
    model = from_config(with_dropout("t5"), seed=3).train()
    found, expected = (way(model, "mean", autocast=True)[1] for way in (accumulated, at_once))
    assert found.shape == expected.shape
    assert float((found - expected).norm() / expected.norm()) < 0.02


PARTS = [micro_batch(2, 1, seed=1), micro_batch(3, 0, seed=2), micro_batch(1, 2, seed=3)]


def accumulated(model: PreTrainedModel, pooling: str, autocast: bool = False) -> tuple[list[float], Tensor]:
    """The loss of each micro-batch of a step, and the gradient of the step."""
    model.zero_grad()
    objective, losses = Contrastive(pooling, TEMPERATURE), []
    for place, part in enumerate(PARTS):
        first = {"step": PARTS} if place == 0 else {}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            objective.begin_step(model, {**part, **first}, partial(seed_of, place))
            torch.manual_seed(seed_of(place))
            loss = objective(model, part)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
    return losses, gradients(model)


def at_once(model: PreTrainedModel, pooling: str, autocast: bool = False) -> tuple[list[float], Tensor]:
    """The same of all micro-batches in one graph."""
    model.zero_grad()
    parts = []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for place, part in enumerate(PARTS):
            torch.manual_seed(seed_of(place))
            parts.append(Vectors.of(model, part, pooling))
        losses = Vectors.joined(parts).losses(TEMPERATURE)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    return [float(part.sum()) for part in losses.detach().split([2, 3, 1])], gradients(model)


def seed_of(place: int, later: int = 0) -> int:
    return 50 + place + later


def test_a_batch_without_rows_has_loss_and_gradient_0() -> None:
    model = from_config(with_dropout("t5", 0.0), seed=3).train()
    batch = {**micro_batch(1, 0, seed=1), "num_rows": 0}
    loss = Contrastive("mean", TEMPERATURE)(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0.0
    assert float(gradients(model).abs().max()) == 0.0


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_validation_ranks_all_passages_whatever_the_batches(size: int) -> None:
    """Query 0 finds its passage first, 1 and 2 share a passage and find it second, 3 asks the same as 0."""
    passages = torch.eye(4)[[0, 1, 1, 2, 3]]
    queries = torch.tensor(
        [[0.9, 0.1, 0.3, 0.0], [0.5, 0.4, 0.3, 0.2], [0.5, 0.4, 0.3, 0.2], [0.9, 0.1, 0.3, 0.0], [0.7, 0.7, 0.7, 0.7]]
    )
    query_keys, passage_keys = torch.tensor([5, 6, 7, 5, 8]), torch.tensor([1, 2, 2, 3, 4])
    meter = RankingMeter(1.0)
    for start in range(0, 5, size):
        rows = slice(start, start + size)
        batch = {"num_rows": len(queries[rows]), "query_keys": query_keys[rows], "passage_keys": passage_keys[rows]}
        meter.add_batch(batch, queries[rows], passages[rows])
    figures = meter.figures(torch.device("cpu"), 1)
    # Query 3 does not meet the passage of query 0, so its own is first; what equals the right one counts before it.
    assert figures["mrr@10"] == pytest.approx((1 + 1 / 2 + 1 / 2 + 1 + 1 / 4) / 5)
    assert (figures["recall@1"], figures["recall@10"]) == (0.4, 1.0)
    first = torch.tensor([0.9, 0.1, 0.0]).logsumexp(0) - 0.9  # without that of query 3
    second = queries[1].logsumexp(0) - 0.4
    fourth = torch.tensor([0.3, 0.1, 0.0]).logsumexp(0) - 0.3
    fifth = queries[4].logsumexp(0) - 0.7
    assert figures["val_loss"] == pytest.approx(float(first + 2 * second + fourth + fifth) / 5, rel=1e-6)
