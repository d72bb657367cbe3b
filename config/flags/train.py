"""All flags of `train.py`, in groups. No torch import."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from config.flags.data import DataFlags, LengthFlags, TrainTaskFlags
from config.flags.model import TrainModelFlags
from config.flags.optim import DistillationFlags, OptimFlags
from config.flags.retrieval.contrastive import RetrievalFlags
from config.flags.run import BatchFlags, RunFlags, TrainDeviceFlags


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run is made of."""

    task: TrainTaskFlags = dataclasses.field(default_factory=TrainTaskFlags)
    data: DataFlags = dataclasses.field(default_factory=DataFlags)
    length: LengthFlags = dataclasses.field(default_factory=LengthFlags)
    model: TrainModelFlags = dataclasses.field(default_factory=TrainModelFlags)
    batch: BatchFlags = dataclasses.field(default_factory=BatchFlags)
    optim: OptimFlags = dataclasses.field(default_factory=OptimFlags)
    distillation: DistillationFlags = dataclasses.field(default_factory=DistillationFlags)
    retrieval: RetrievalFlags = dataclasses.field(default_factory=RetrievalFlags)
    run: RunFlags = dataclasses.field(default_factory=RunFlags)
    device: TrainDeviceFlags = dataclasses.field(default_factory=TrainDeviceFlags)

    length_flag: ClassVar[str] = "-max_epoch"  # says how long the run is

    @property
    def epochs(self) -> int:
        """Epochs to train."""
        return self.optim.max_epoch

    @property
    def subject(self) -> str:
        """What is trained, for the summary of a run; empty where its tasks say it."""
        return ""

    @property
    def cloze_weight(self) -> float:
        """The weight of the loss of pairs beside that of the texts; 0 = none."""
        return 0.0

    @property
    def encoder_alone(self) -> bool:
        """Whether the encoder is trained by itself, and the decoder stays as it is."""
        return False

    @property
    def generated_rows(self) -> int:
        """Validation rows of each task that are predicted by generation; 0 = none."""
        return self.run.valid_generate_rows
