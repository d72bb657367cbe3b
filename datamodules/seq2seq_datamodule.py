"""The LightningDataModule: the encoded rows of each task, their batch plans, and the position of the run."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.batching import BatchOptions, BatchPlan, evaluation_plan
from datamodules.class_balance import LabelledRows, row_weights
from datamodules.collate import collate
from datamodules.encoding.store import EncodedSplit
from datamodules.retrieval.passages import Cloze, Passages
from datamodules.sampling import JoinedRows, TrainingRows
from datamodules.splits import Splits

# Names in the fingerprint.
TRAINING_DATA, VALIDATION_DATA = "training data and encoding", "validation data and encoding"
WEIGHTS = "weights of the labels"  # empty where all are 1
TASKS = "tasks and rates"  # empty where there is one
TEACHER = "-teacher"  # its digest; not there where there is none
NEGATIVES = "-negative_column"  # the hard negatives; likewise
PAIRS = "queries and passages of -inverse_cloze_weight"  # likewise


class MicroBatches(Dataset[dict[str, Any]]):
    """The micro-batches of one rank under one plan: item `i` is the collated batch `i`.

    Args:
        weights: (rows,) of every row in the loss; None = all 1.
        passages: the same rows with the passages of a retrieval task; None = of another task.
        special_ids: tokens of targets whose loss is not that of the text; None = they are not told apart.
        separator: as `collate` takes it.
        cloze: the same rows as the pairs of a joint loss; None = the loss is no such.
    """

    def __init__(
        self,
        split: EncodedSplit | TrainingRows,
        pad_token_id: int,
        pad_to_multiple_of: int,
        weights: np.ndarray | None = None,
        passages: Passages | None = None,
        special_ids: np.ndarray | None = None,
        separator: int | None = None,
        cloze: Passages | None = None,
    ) -> None:
        self.split = split
        self.passages = passages
        self.cloze = cloze
        self.special_ids = special_ids
        self.separator = separator
        self.weights = weights
        self.pad_token_id = pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of
        self.plan: BatchPlan | None = None
        self.rank = 0

    def follow(self, plan: BatchPlan, rank: int) -> None:
        """Serve the batches of `rank` under `plan` from now on."""
        self.plan = plan
        self.rank = rank

    def largest(self) -> dict[str, Any]:
        """The batch with the most padded tokens, outside of any step."""
        if self.plan is None:
            raise RuntimeError("follow(plan, rank) comes first")
        return self.of_rows(self.plan.batch(self.rank, self.plan.largest_batch(self.rank)))

    def __len__(self) -> int:
        return self.plan.batches_per_rank if self.plan else 0

    def of_rows(self, rows: np.ndarray) -> dict[str, Any]:
        """A batch of these rows, outside of any step."""
        if self.passages is not None:
            return self.passages.batch(rows, self.pad_token_id, self.pad_to_multiple_of)
        encoded = self.split.pairs(rows)
        padded = collate(encoded, self.pad_token_id, self.pad_to_multiple_of, self.separator)
        batch: dict[str, Any] = {**padded}
        batch["num_rows"] = len(rows)
        batch["num_source_tokens"] = sum(len(source) for source, _ in encoded)
        if self.special_ids is not None:
            targets = padded["labels"].flatten()[padded["target_index"]].numpy()
            of_text = ~np.isin(targets, self.special_ids)
            batch["text_weights"] = torch.from_numpy(of_text.astype(np.float32))  # (target tokens,)
            batch["num_text_tokens"] = int(of_text.sum())
        if self.cloze is not None:
            batch["cloze"] = self.cloze.batch(rows, self.pad_token_id, self.pad_to_multiple_of)
        return batch

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.plan is None:
            raise RuntimeError("follow(plan, rank) comes first")
        rows = self.plan.batch(self.rank, index)
        batch = self.of_rows(rows)
        step = self.plan.step_of(index)
        if self.passages is not None:
            return {**batch, **self._of_step(self.passages, self.plan, step, index)}
        if self.cloze is not None:
            batch["cloze"] |= self._of_step(self.cloze, self.plan, step, index)
        of_step = self.plan.step_rows(step)
        batch["step_rows"] = len(of_step)
        batch["step_target_tokens"] = int(self.plan.step_target_tokens[step])
        if self.weights is not None:
            of_tokens = np.repeat(self.weights[rows], self.split.target_lengths[rows])
            batch["token_weights"] = torch.from_numpy(of_tokens.astype(np.float32))  # (target tokens,)
            batch["step_target_tokens"] = float(self.weights[of_step] @ self.split.target_lengths[of_step])
        return batch

    def _of_step(self, passages: Passages, plan: BatchPlan, step: int, index: int) -> dict[str, Any]:
        """What the loss of retrieval needs of the whole step: how many queries it has, how many passages any rank has
        (0 = there is one rank), and with the first of several micro-batches all of them."""
        first = step * plan.accumulate
        places = range(first, min(first + plan.accumulate, plan.batches_per_rank))
        of_ranks = [
            sum(max(1, passages.count(plan.batch(rank, place))) for place in places) for rank in range(plan.world_size)
        ]
        found: dict[str, Any] = {"step_target_tokens": len(plan.step_rows(step))}
        found["most_passages"] = max(of_ranks) if plan.world_size > 1 else 0
        if index == first and len(places) > 1:
            padding = self.pad_token_id, self.pad_to_multiple_of
            found["step"] = [passages.batch(plan.batch(self.rank, place), *padding) for place in places]
        return found


def leave_stops_to_training(_: int) -> None:
    """Let the process that loads batches live on when its whole group is asked to stop: training saves first.

    A second SIGTERM ends it; torch sends one to a process that does not end with its loader.
    """

    def ignore_once(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, ignore_once)


class PlanLoader(DataLoader[dict[str, Any]]):
    """A loader that takes up the plan of the current epoch, and the position to start from, when it is iterated.

    Its state lives in the data module (one position for all ranks), so Lightning's own per-loader state stays empty.
    """

    def __init__(self, dataset: MicroBatches, begin: Any, **options: Any) -> None:
        self.start = 0
        self.begin = begin
        own: dict[str, Any] = {
            "sampler": _From(self),
            "generator": torch.Generator(),
            "worker_init_fn": leave_stops_to_training,
        }
        super().__init__(dataset, batch_size=None, **own, **options)

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
    """Training and validation batches of the tasks of a run: one, or several that are mixed.

    A training batch takes rows of all of them, one of a validation those of a single task: there is a loader for each
    that has validation rows, in the order of `validated`.

    Args:
        parts: the rows of each task.
        rows: all that training takes; None = every row of each once.
        batch_options: sizes on each device, for validation as well, and accumulation.
        precision: the value of -float_precision that names the arithmetic on this device.
        teacher: digest of the model that says what the rows teach besides their targets; empty = none.
        passages: the training rows of a retrieval task; None = the tasks are others.
        cloze: the pairs of a joint loss; None = the loss is no such.
    """

    def __init__(
        self,
        parts: Sequence[Splits],
        rows: TrainingRows | None = None,
        *,
        pad_token_id: int,
        batch_options: BatchOptions,
        seed: int,
        precision: str = "32",
        num_workers: int = 0,
        pin_memory: bool = False,
        teacher: str = "",
        passages: Passages | None = None,
        cloze: Cloze | None = None,
    ) -> None:
        super().__init__()
        self.parts = parts
        self.train = rows or JoinedRows([part.train for part in parts])
        self.validated = [part for part in parts if part.valid is not None]
        self.validation_rows = [part.valid.learnable() for part in parts if part.valid is not None]
        self.pad_token_id = pad_token_id
        self.batch_options = batch_options
        self.seed = seed
        self.precision = precision
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.teacher = teacher
        self.passages = passages
        self.cloze = cloze
        self.validation_pending = False  # the run stopped in a validation: a resumed one begins with it
        self._resumed: tuple[int, int] | None = None

    def plan(self, epoch: int, world_size: int) -> BatchPlan:
        """The training plan of one epoch."""
        return self.train.plan(self.batch_options, self.seed, epoch, world_size)

    def validation_plan(self, number: int, world_size: int) -> BatchPlan:
        """The plan of the validation rows of a task, by its place in `validated`: every row once, longest first."""
        rows = self.validation_rows[number]
        return evaluation_plan(rows.source_lengths, rows.target_lengths, self.batch_options, world_size)

    # ---- loaders

    def train_dataloader(self) -> PlanLoader:
        """Batches of the current epoch, from the resumed position on."""
        # The loop asks for the length before it iterates, and the length is the same in every epoch.
        batches = self.first_batches()

        def begin() -> int:
            epoch = self._trainer.current_epoch
            batches.follow(self.plan(epoch, self._world_size), self._rank)
            resumed, self._resumed = self._resumed, None
            return resumed[1] if resumed and resumed[0] == epoch else 0

        return self._loader(batches, begin)

    def first_batches(self) -> MicroBatches:
        """The training batches of the first epoch."""
        pairs = self.cloze.train if self.cloze else None
        batches = self._batches(self.train, self._row_weights(), self.passages, cloze=pairs)
        batches.follow(self.plan(0, self._world_size), self._rank)
        return batches

    def batch_of(self, rows: np.ndarray) -> dict[str, Any]:
        """A batch of training rows, to be tried."""
        return self._batches(self.train, passages=self.passages).of_rows(rows)

    def _row_weights(self) -> np.ndarray | None:
        """The weight of every training row in the loss; None = all 1."""
        if not any(part.weights for part in self.parts):
            return None
        labels = [LabelledRows.of(part.train, part.postprocessor) if part.weights else None for part in self.parts]
        return np.concatenate(
            [
                row_weights(rows, part.weights) if rows else np.ones(len(part.train))
                for rows, part in zip(labels, self.parts, strict=True)
            ]
        )

    def val_dataloader(self) -> list[PlanLoader]:
        """Batches of the validation rows of this rank, a loader for each task that has some."""
        loaders = []
        for number, rows in enumerate(self.validation_rows):
            passages = Passages(rows) if self.passages else None
            pairs = self.cloze.valid if self.cloze else None
            batches = self._batches(rows, None, passages, self.train.special_ids, pairs)
            batches.follow(self.validation_plan(number, self._world_size), self._rank)
            loaders.append(self._loader(batches, lambda: 0))
        return loaders

    def _batches(
        self,
        split: EncodedSplit | TrainingRows,
        weights: np.ndarray | None = None,
        passages: Passages | None = None,
        special_ids: np.ndarray | None = None,
        cloze: Passages | None = None,
    ) -> MicroBatches:
        multiple, separator = self.batch_options.pad_to_multiple_of, self.train.separator
        return MicroBatches(split, self.pad_token_id, multiple, weights, passages, special_ids, separator, cloze)

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

    def fingerprint(self, world_size: int) -> dict[str, Any]:
        """What must be equal for a resume to continue the same run, by the name a user knows."""
        options = self.batch_options
        weights = [f"{part.named(text)}={weight}" for part in self.parts for text, weight in part.weights.items()]
        data: dict[str, Any] = {}
        for part in self.parts:
            of_task = f" of {part.name}" if part.name else ""
            data[f"{TRAINING_DATA}{of_task}"] = part.train.fingerprint
            data[f"training rows{of_task}"] = len(part.train)
            data[f"{VALIDATION_DATA}{of_task}"] = part.valid.fingerprint if part.valid else "none"
        return {
            **data,
            TASKS: self.train.describe([part.name for part in self.parts]),
            "-batch_size": options.batch_size,
            "-max_tokens": options.max_tokens,
            "-grad_acc": options.accumulate,
            "padding to a multiple of (8 on GPUs, 1 on the CPU)": options.pad_to_multiple_of,
            "-seed": self.seed,
            "number of devices": world_size,
            "-float_precision": self.precision,
            WEIGHTS: ", ".join(weights),
            **({TEACHER: self.teacher} if self.teacher else {}),
            **({NEGATIVES: self.passages.fingerprint()} if self.passages and self.passages.negatives else {}),
            **({PAIRS: self.cloze.train.split.fingerprint} if self.cloze else {}),
        }

    def state_dict(self) -> dict[str, Any]:
        epoch, batches = self.position()
        return {
            "epoch": epoch,
            "batches": batches,
            "batches_per_epoch": int(self._trainer.num_training_batches),
            "validation_pending": self.validation_pending,
            "fingerprint": self.fingerprint(self._world_size),
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
