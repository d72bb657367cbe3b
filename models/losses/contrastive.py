"""The contrastive loss of retrieval: each query picks its passage among all passages of the optimizer step.

    L = - sum over queries of log(exp(cos(q, p) / T) / sum over passages d of exp(cos(q, d) / T))

The passages of all ranks and all micro-batches of the step stand in the sum below, the hard negatives of all queries
among them (Karpukhin et al. 2020, "Dense Passage Retrieval", section 3.2). The gradient is that of one big batch:

    one micro-batch a step   vectors are gathered with their gradient, so what other ranks' queries ask of a passage
                             comes back to the rank that has it
    several                  the vectors of all are computed without a graph first, and the gradient of the loss in
                             them; then each micro-batch is passed through again, with the same dropout, and takes its
                             share (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
                             Setup": GradCache). The memory is that of one micro-batch, at the cost of one more forward

Nothing here waits for the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.retrieval.pooling import pooled
from models.retrieval.ranking import RankingMeter, compared

NO_KEY = -1  # of a passage that pads what ranks send each other


class _Gathered(torch.autograd.Function):
    """(ranks * rows, width) the rows of all ranks, which have the same number; its backward sums over the ranks."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        """Take the rows of all ranks, in their order."""
        context.own = len(rows)
        return gathered(rows)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """Give what the losses of all ranks ask of these rows."""
        summed = gradient.contiguous()
        torch.distributed.all_reduce(summed)
        first = torch.distributed.get_rank() * context.own
        return summed[first : first + context.own]


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, which have the same number, without gradient."""
    parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


@dataclass
class Vectors:
    """Queries and passages of a micro-batch, or of all of a step, as vectors.

    `query_keys` and `passage_keys` say which texts are the same; `answers` is for each passage the key of the query
    that it answers, or `NO_KEY` for a hard negative. `places` are those of the queries' own passages.
    """

    queries: Tensor  # (queries, width)
    passages: Tensor  # (passages, width)
    query_keys: Tensor
    passage_keys: Tensor
    answers: Tensor
    places: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel, batch: Mapping[str, Any], pooling: str) -> Vectors:
        """Those of a batch of `datamodules.retrieval`."""
        queries = pooled(model, batch["input_ids"], batch["attention_mask"], pooling)
        passages = pooled(model, batch["passage_ids"], batch["passage_mask"], pooling)
        keys = batch["query_keys"], batch["passage_keys"], batch["answers"]
        return cls(queries, passages, *keys, torch.arange(len(queries), device=queries.device))

    @classmethod
    def joined(cls, parts: Sequence[Vectors]) -> Vectors:
        """Those of several micro-batches as of one."""
        starts, start = [], 0
        for part in parts:
            starts.append(part.places + start)
            start += len(part.passages)
        return cls(
            torch.cat([part.queries for part in parts]),
            torch.cat([part.passages for part in parts]),
            torch.cat([part.query_keys for part in parts]),
            torch.cat([part.passage_keys for part in parts]),
            torch.cat([part.answers for part in parts]),
            torch.cat(starts),
        )

    def losses(self, temperature: float, most_passages: int = 0) -> Tensor:
        """(queries,) the loss of each query of this rank, among the passages of all ranks.

        Args:
            most_passages: that any rank has; 0 = this rank is alone.
        """
        passages, keys, answers, places = self.passages, self.passage_keys, self.answers, self.places
        own_keys = keys[places]
        if most_passages:
            fill = most_passages - len(passages)
            both = torch.nn.functional.pad(torch.stack((keys, answers), 1), (0, 0, 0, fill), value=NO_KEY)
            keys, answers = gathered(both).unbind(1)
            padded = torch.nn.functional.pad(passages, (0, 0, 0, fill))
            passages = _Gathered.apply(padded)  # type: ignore[no-untyped-call]
            places = places + torch.distributed.get_rank() * most_passages
        scores = compared(self.queries, passages) / temperature
        own = scores.gather(1, places.unsqueeze(1))
        excluded = (keys == own_keys.unsqueeze(1)) | (answers == self.query_keys.unsqueeze(1)) | (keys == NO_KEY)
        excluded = excluded.scatter(1, places.unsqueeze(1), False)
        return torch.logsumexp(scores.masked_fill(excluded, -torch.inf), 1) - own.squeeze(1)


@dataclass(frozen=True)
class _Share:
    """The share of a micro-batch in the step: the gradient of the step's loss in its vectors, and its own loss."""

    of_queries: Tensor
    of_passages: Tensor
    loss: Tensor


class Contrastive:
    """What a training step of a retrieval model minimizes, and what a validation measures.

    Args:
        pooling: of `models.retrieval.pooling`.
        temperature: T, above 0.
    """

    teacher, encoder_alone = None, False

    def __init__(self, pooling: str, temperature: float) -> None:
        self.pooling, self.temperature = pooling, temperature
        self._shares: deque[_Share] = deque()  # of the micro-batches of the step that are still to come

    def begin_step(self, model: PreTrainedModel, batch: Mapping[str, Any], seed_of: Callable[[int], int]) -> None:
        """Before the first micro-batch of several in a step: find the gradient in the vectors of all of them.

        Args:
            batch: with all micro-batches of the step on this rank as `step`, where it is such a first one.
            seed_of: the seed of each by its place in the step.
        """
        if "step" not in batch:
            return
        parts = []
        with torch.no_grad():
            for place, micro_batch in enumerate(batch["step"]):
                torch.manual_seed(seed_of(place))
                parts.append(Vectors.of(model, micro_batch, self.pooling))
        whole = Vectors.joined(parts)
        leaves = whole.queries.requires_grad_(), whole.passages.requires_grad_()
        with torch.enable_grad():
            losses = whole.losses(self.temperature, batch["most_passages"])
            rows = [micro_batch["num_rows"] for micro_batch in batch["step"]]
            by_part = [of_part[:count] for of_part, count in zip(_split(losses, parts), rows, strict=True)]
            gradients = torch.autograd.grad(torch.cat(by_part).sum(), leaves)
        of_passages = torch.split(gradients[1], [len(part.passages) for part in parts])
        self._shares = deque(
            _Share(queries, passages, loss.detach().sum())
            for queries, passages, loss in zip(_split(gradients[0], parts), of_passages, by_part, strict=True)
        )

    def __call__(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor:
        """Give the loss summed over the queries of a micro-batch, with its gradient; outside of a step that of the
        batch alone."""
        vectors = Vectors.of(model, batch, self.pooling)
        if self._shares and "most_passages" in batch:
            share = self._shares.popleft()
            with_gradient = (vectors.queries * share.of_queries).sum() + (vectors.passages * share.of_passages).sum()
            return with_gradient - with_gradient.detach() + share.loss
        return vectors.losses(self.temperature, batch.get("most_passages", 0))[: batch["num_rows"]].sum()

    def validate(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The vectors of the queries and the passages of a batch, for a `RankingMeter`."""
        vectors = Vectors.of(model, batch, self.pooling)
        return vectors.queries, vectors.passages

    def validation_meter(self) -> RankingMeter:
        """What adds up the batches of a validation."""
        return RankingMeter(self.temperature)


def _split(values: Tensor, parts: Sequence[Vectors]) -> tuple[Tensor, ...]:
    """Values of all queries, by micro-batch."""
    found: tuple[Tensor, ...] = torch.split(values, [len(part.queries) for part in parts])
    return found
