"""The LightningDataModule: encoded splits, their batch plans, the label map, and the position of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.batching import BatchOptions, BatchPlan, evaluation_plan, training_plan
from datamodules.class_balance import LabelledRows, row_weights
from datamodules.collate import collate
from datamodules.encoding.store import EncodedSplit
from postprocessors.base import Postprocessor

WEIGHTS = "weights of the labels"  # in the fingerprint; empty where all are 1


class MicroBatches(Dataset[dict[str, Any]]):
    """The micro-batches of one rank under one plan: item `i` is the collated batch `i`.

    Args:
        weights: (rows,) of every row in the loss; None = all 1.
    """

    def __init__(
        self, split: EncodedSplit, pad_token_id: int, pad_to_multiple_of: int, weights: np.ndarray | None = None
    ) -> None:
        self.split = split
        self.weights = weights
        self.pad_token_id = pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of
        self.plan: BatchPlan | None = None
        self.rank = 0

    def follow(self, plan: BatchPlan, rank: int) -> None:
        """Serve the batches of `rank` under `plan` from now on."""
        self.plan = plan
        self.rank = rank

    def __len__(self) -> int:
        return self.plan.batches_per_rank if self.plan else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.plan is None:
            raise RuntimeError("follow(plan, rank) comes first")
        rows = self.plan.batch(self.rank, index)
        encoded = [(self.split.source_ids(int(row)), self.split.target_ids(int(row))) for row in rows]
        batch: dict[str, Any] = {**collate(encoded, self.pad_token_id, self.pad_to_multiple_of)}
        batch["num_rows"] = len(rows)
        batch["num_source_tokens"] = sum(len(source) for source, _ in encoded)
        step = self.plan.step_of(index)
        batch["step_target_tokens"] = int(self.plan.step_target_tokens[step])
        if self.weights is not None:
            of_tokens = np.repeat(self.weights[rows], self.split.target_lengths[rows])
            batch["token_weights"] = torch.from_numpy(of_tokens.astype(np.float32))  # (target tokens,)
            of_step = self.plan.step_rows(step)
            batch["step_target_tokens"] = float(self.weights[of_step] @ self.split.target_lengths[of_step])
        return batch


class PlanLoader(DataLoader[dict[str, Any]]):
    """A loader that takes up the plan of the current epoch, and the position to start from, when it is iterated.

    Its state lives in the data module (one position for all ranks), so Lightning's own per-loader state stays empty.
    """

    def __init__(self, dataset: MicroBatches, begin: Any, **options: Any) -> None:
        self.start = 0
        self.begin = begin
        super().__init__(dataset, batch_size=None, sampler=_From(self), generator=torch.Generator(), **options)

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        self.start = self.begin()
        return super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Empty: see the class."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load: see the class."""


class _From:
    """Indices from the loader's start to the end; its length is the whole epoch's, as the loop counts batches."""

    def __init__(self, loader: PlanLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.loader.start, len(self)))

    def __len__(self) -> int:
        return len(self.loader.dataset)  # type: ignore[arg-type]


class Seq2SeqDataModule(pl.LightningDataModule):
    """Training and validation batches of encoded splits; binds the postprocessor of the task.

    Args:
        train, valid: encoded rows; `valid` may be None.
        class_weights: of the training rows of each label, by its text, in the loss; empty = all 1.
        batch_options: sizes on each device, for validation as well, and accumulation.
    """

    def __init__(
        self,
        train: EncodedSplit,
        valid: EncodedSplit | None,
        *,
        postprocessor: Postprocessor,
        class_weights: Mapping[str, float] = MappingProxyType({}),
        pad_token_id: int,
        batch_options: BatchOptions,
        seed: int,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        self.train = train
        self.valid = valid
        self.postprocessor = postprocessor
        self.class_weights = class_weights
        self.pad_token_id = pad_token_id
        self.batch_options = batch_options
        self.seed = seed
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.validation_pending = False  # the run stopped in a validation: a resumed one begins with it
        self._resumed: tuple[int, int] | None = None

    def correct(self, predictions: Sequence[str], max_distance: int | None = None) -> list[str | None]:
        """Each prediction as the nearest label, None beyond `max_distance` characters; free text as it is."""
        return self.postprocessor.correct(predictions, max_distance)

    def plan(self, epoch: int, world_size: int) -> BatchPlan:
        """The training plan of one epoch."""
        return training_plan(
            self.train.source_lengths, self.train.target_lengths, self.batch_options, self.seed, epoch, world_size
        )

    def validation_plan(self, world_size: int) -> BatchPlan:
        """The validation plan: every row once, longest first."""
        if self.valid is None:
            raise RuntimeError("there is no validation split")
        rows = self.valid.learnable()
        return evaluation_plan(rows.source_lengths, rows.target_lengths, self.batch_options, world_size)

    # ---- loaders

    def train_dataloader(self) -> PlanLoader:
        """Batches of the current epoch, from the resumed position on."""
        labels = LabelledRows.of(self.train, self.postprocessor) if self.class_weights else None
        weights = row_weights(labels, self.class_weights) if labels else None
        batches = MicroBatches(self.train, self.pad_token_id, self.batch_options.pad_to_multiple_of, weights)
        # The loop asks for the length before it iterates, and the length is the same in every epoch.
        batches.follow(self.plan(0, self._world_size), self._rank)

        def begin() -> int:
            epoch = self._trainer.current_epoch
            batches.follow(self.plan(epoch, self._world_size), self._rank)
            resumed, self._resumed = self._resumed, None
            return resumed[1] if resumed and resumed[0] == epoch else 0

        return self._loader(batches, begin)

    def val_dataloader(self) -> PlanLoader | list[Any]:
        """Batches of the validation rows of this rank; none without a validation split."""
        if self.valid is None:
            return []
        batches = MicroBatches(self.valid.learnable(), self.pad_token_id, self.batch_options.pad_to_multiple_of)
        batches.follow(self.validation_plan(self._world_size), self._rank)
        return self._loader(batches, lambda: 0)

    def _loader(self, batches: MicroBatches, begin: Any) -> PlanLoader:
        return PlanLoader(batches, begin, num_workers=self.num_workers, pin_memory=self.pin_memory)

    # ---- position

    def position(self) -> tuple[int, int]:
        """(epoch, micro-batches of it that are done on each rank).

        The end of an epoch is (epoch + 1, 0), or all of its micro-batches while its validation is to come.
        """
        fit_loop = self._trainer.fit_loop
        epoch = max(fit_loop.epoch_progress.current.ready - 1, 0)
        done = fit_loop.epoch_loop.batch_progress.current.ready
        ended = done >= self._trainer.num_training_batches and not self.validation_pending
        return (epoch + 1, 0) if ended else (epoch, done)

    def fingerprint(self, world_size: int, precision: str) -> dict[str, Any]:
        """What must be equal for a resume to continue the same run, by the name a user knows.

        Args:
            precision: the arithmetic that -float_precision came to on this device, in Lightning's word.
        """
        options = self.batch_options
        weights = ", ".join(f"{text}={weight}" for text, weight in self.class_weights.items())
        return {
            "training data and encoding": self.train.fingerprint,
            "training rows": len(self.train),
            "validation data and encoding": self.valid.fingerprint if self.valid else "none",
            "-batch_size": options.batch_size,
            "-max_tokens": options.max_tokens,
            "-grad_acc": options.accumulate,
            "padding to a multiple of (8 on GPUs, 1 on the CPU)": options.pad_to_multiple_of,
            "-seed": self.seed,
            "number of devices": world_size,
            "-float_precision": precision,
            WEIGHTS: weights,
        }

    def state_dict(self) -> dict[str, Any]:
        epoch, batches = self.position()
        return {
            "epoch": epoch,
            "batches": batches,
            "batches_per_epoch": int(self._trainer.num_training_batches),
            "validation_pending": self.validation_pending,
            "fingerprint": self.fingerprint(self._world_size, str(self._trainer.precision)),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = (state_dict["epoch"], state_dict["batches"])
        self.validation_pending = state_dict["validation_pending"]

    @property
    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise RuntimeError("the data module is not attached to a trainer")
        return self.trainer

    @property
    def _world_size(self) -> int:
        return self._trainer.world_size

    @property
    def _rank(self) -> int:
        return self._trainer.global_rank
