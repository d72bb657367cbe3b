"""Sums of losses and counts that stay on the device until they are read."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from models.tokenizers import vocabulary_size

TOO_SURE = 1.5  # times ln V: no first loss of well-scaled weights


@dataclass(frozen=True)
class Totals:
    """What was measured since the last reset, over all ranks. Tokens are without padding.

    `target_tokens` are what the loss is a mean over: of retrieval they are queries.
    """

    loss_sum: float = 0.0
    target_tokens: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    rows: int = 0
    correct_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Totals) -> Totals:
        """What was measured in both intervals."""
        return Totals(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Totals)))

    @property
    def loss_per_token(self) -> float:
        """Mean cross-entropy of a target token, of retrieval the mean loss of a query (nats)."""
        return self.loss_sum / max(self.target_tokens, 1)

    @property
    def tokens_per_second(self) -> float:
        """Source and target tokens a second, over all ranks."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def token_accuracy(self) -> float:
        """Share of target tokens predicted right under teacher forcing, 0 to 1."""
        return self.correct_tokens / max(self.target_tokens, 1)

    @property
    def padding_share(self) -> float:
        """Share of padding in all source and target positions, 0 to 1."""
        return 1.0 - self.tokens / max(self.padded_tokens, 1)


def mixed_figures(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures of a validation by name, from those of every task.

    Those of the only task, whose name is "", keep their names. Of several, each stands there as `TASK/FIGURE`, and
    `FIGURE` is their mean.
    """
    if "" in figures:
        return dict(figures[""])
    own = {f"{task}/{name}": value for task, values in figures.items() for name, value in values.items()}
    return mean_figures(figures) | own


def mean_figures(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Each figure as the mean over the tasks that have it: NaN where it is undefined for one of them."""
    names = dict.fromkeys(name for values in figures.values() for name in values)
    return {name: fmean(values[name] for values in figures.values() if name in values) for name in names}


def padded_tokens(batch: Mapping[str, Any]) -> int:
    """Source and target tokens of a batch with padding; the targets of retrieval are passages."""
    return sum(batch[name].numel() for name in ("input_ids", "labels", "passage_ids") if name in batch)


def shape_words(batch: Mapping[str, Any]) -> str:
    """How large a batch is."""
    rows, source_length = batch["input_ids"].shape
    if "passage_ids" in batch:
        passages, length = batch["passage_ids"].shape
        return f"{rows:,} queries x {source_length:,} tokens and {passages:,} passages x {length:,} tokens"
    return f"{rows:,} rows x {source_length:,} source and {batch['labels'].shape[1]:,} target tokens"


def peak_memory(device: torch.device) -> float:
    """The most memory in GB that tensors took on a GPU, or this process on the host; does not wait for the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kilobytes


def first_loss_lines(totals: Totals, config: PreTrainedConfig) -> list[str]:
    """What to tell of the first loss of random weights: nothing, unless it is far above that of equal odds, ln V."""
    loss, equal_odds = totals.loss_per_token, math.log(vocabulary_size(config))
    if loss <= TOO_SURE * equal_odds:
        return []
    return [
        f"the first logged loss is {loss:.4g}, where equal odds for every token give {equal_odds:.4g}: the initial"
        " weights of -config_path are too large, or -learning_rate is too high"
    ]


OWN_SUMS = 6  # numbers of a meter's state, besides those of `add_row_sums`


class StepMeter:
    """Adds up micro-batches without waiting for the device; `totals` reads once.

    Args:
        encoder_alone: labels stand at the places of the source, and are no tokens of their own.
    """

    def __init__(self, encoder_alone: bool = False) -> None:
        self.encoder_alone = encoder_alone
        self._bad_step: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Begin a new interval."""
        self.gradient_norm: Tensor | None = None  # of the latest step that measured it
        self._loss: Tensor | None = None
        self._correct: Tensor | None = None
        self._row_sums: Tensor | None = None
        self._target_tokens = 0
        self._tokens = 0
        self._padded_tokens = 0
        self._rows = 0
        self._began = time.perf_counter()

    def add_batch(self, batch: Mapping[str, Any], loss_sum: Tensor, correct: Tensor | None = None) -> None:
        """Count one micro-batch; `loss_sum` and `correct` are scalars on the device."""
        loss = loss_sum.double() if loss_sum.device.type == "cpu" else loss_sum.float()
        self._loss = loss if self._loss is None else self._loss + loss
        if correct is not None:
            self._correct = correct if self._correct is None else self._correct + correct
        self._target_tokens += batch["num_target_tokens"]
        if self.encoder_alone:
            self._tokens += batch["num_source_tokens"]
            self._padded_tokens += batch["input_ids"].numel()
        else:
            self._tokens += batch["num_source_tokens"] + batch.get("num_passage_tokens", batch["num_target_tokens"])
            self._padded_tokens += padded_tokens(batch)
        self._rows += batch["num_rows"]

    def add_row_sums(self, sums: Tensor) -> None:
        """Add sums over the rows of a micro-batch, (sums,) on the device: what the routers of a mixture of experts did,
        or the loss of pairs beside the texts."""
        self._row_sums = sums if self._row_sums is None else self._row_sums + sums

    def row_sums(self, world_size: int) -> list[float]:
        """The sums of `add_row_sums` over all ranks; empty without any. Every rank must call it."""
        if self._row_sums is None:
            return []
        sums = self._row_sums.clone()
        if world_size > 1:
            torch.distributed.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def state(self) -> list[float]:
        """The sums of this process since the last reset, as plain numbers for a checkpoint; waits for the device."""
        loss = 0.0 if self._loss is None else float(self._loss)
        counts = (self._target_tokens, self._tokens, self._padded_tokens, self._rows)
        row_sums = [] if self._row_sums is None else self._row_sums.tolist()
        return [loss, *map(float, counts), *row_sums, time.perf_counter() - self._began]

    def restore(self, state: list[float], device: torch.device) -> None:
        """Go on from what `state` gave."""
        loss, target_tokens, tokens, padded_tokens, rows, *row_sums, seconds = state
        exact = torch.float64 if device.type == "cpu" else torch.float32
        self._loss = torch.tensor(loss, dtype=exact, device=device)
        self._target_tokens, self._tokens = int(target_tokens), int(tokens)
        self._padded_tokens, self._rows = int(padded_tokens), int(rows)
        self._began = time.perf_counter() - seconds
        self._row_sums = torch.tensor(row_sums, device=device) if row_sums else None

    @property
    def has_batches(self) -> bool:
        """Whether anything was counted since the last reset."""
        return self._rows > 0

    def watch(self, step: int) -> None:
        """Remember `step` if the loss so far, or the gradient norm, is not finite; stays on the device."""
        if self._loss is None:
            return
        good = torch.isfinite(self._loss)
        if self._row_sums is not None:
            good = good & torch.isfinite(self._row_sums).all()
        if self.gradient_norm is not None:
            good = good & torch.isfinite(self.gradient_norm)
        if self._bad_step is None:
            self._bad_step = torch.full((), -1, dtype=torch.int64, device=good.device)
        now_bad = (~good) & (self._bad_step < 0)
        self._bad_step = torch.where(now_bad, torch.full_like(self._bad_step, step), self._bad_step)

    def first_bad_step(self, device: torch.device, world_size: int) -> int | None:
        """The first watched step that was not finite on any rank, or None; every rank must call it."""
        bad = self._bad_step if self._bad_step is not None else torch.full((), -1, device=device)
        bad = torch.where(bad < 0, torch.full_like(bad, 2**62), bad)
        if world_size > 1:
            torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MIN)
        return int(bad) if int(bad) < 2**62 else None

    def totals(self, device: torch.device, world_size: int) -> Totals:
        """The sums since the last reset over all ranks; every rank must call it."""
        loss = self._loss if self._loss is not None else torch.zeros((), device=device)
        correct = self._correct if self._correct is not None else torch.zeros((), device=device)
        counts = [self._target_tokens, self._tokens, self._padded_tokens, self._rows]
        values = torch.cat(
            [
                torch.stack([loss.to(device).double(), correct.to(device).double()]),
                torch.tensor(counts, dtype=torch.float64, device=device),
            ]
        )
        if world_size > 1:
            torch.distributed.all_reduce(values)
        loss_sum, correct_sum, *rest = values.tolist()
        target_tokens, tokens, padded_tokens, rows = (round(value) for value in rest)
        return Totals(
            loss_sum=loss_sum,
            target_tokens=target_tokens,
            tokens=tokens,
            padded_tokens=padded_tokens,
            rows=rows,
            correct_tokens=round(correct_sum),
            seconds=time.perf_counter() - self._began,
        )

    def figures(self, device: torch.device, world_size: int) -> dict[str, float]:
        """The figures of a validation, where the batches of one were added up; every rank must call it."""
        totals = self.totals(device, world_size)
        return {"val_loss": totals.loss_per_token, "token_accuracy": totals.token_accuracy}


class TextMeter(StepMeter):
    """Adds up a validation whose targets hold tokens that are none of the text, with a figure for the others alone."""

    def __init__(self) -> None:
        self.text = StepMeter()
        super().__init__()

    def add_batch(
        self, batch: Mapping[str, Any], loss_sum: Tensor, correct: Tensor | None = None, text_loss: Tensor | None = None
    ) -> None:
        """As `StepMeter`; `text_loss` is the part of the loss that the text has."""
        super().add_batch(batch, loss_sum, correct)
        if text_loss is not None:
            self.text.add_batch({**batch, "num_target_tokens": batch["num_text_tokens"]}, text_loss)

    def figures(self, device: torch.device, world_size: int) -> dict[str, float]:
        """See `StepMeter`."""
        found = super().figures(device, world_size)
        return {**found, "val_loss_no_sentinels": self.text.totals(device, world_size).loss_per_token}
