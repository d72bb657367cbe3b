"""All flags of `pretrain.py`: its own, and what it takes over from train.py. No torch import."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from config.flags.corpus import CorpusFlags
from config.flags.data import DataFlags, LengthFlags, TrainTaskFlags
from config.flags.model import TrainModelFlags
from config.flags.objective import NO_TARGETS, ObjectiveFlags
from config.flags.optim import DistillationFlags
from config.flags.retrieval.contrastive import RetrievalFlags
from config.flags.train import TrainConfig
from config.parser import flag, free

SOURCE_LENGTH = 512  # that of T5


@dataclasses.dataclass(frozen=True)
class PretrainFlags:
    """Pretraining"""

    valid_rows: int = free(
        500,
        "Rows that are validated on, always the same with the same noise: of -valid_corpus, else cut off the end of"
        " each -corpus, and not trained on; 0 = none.",
        minimum=0,
    )
    valid_every: int = flag(
        1000,
        "Optimizer steps from one validation to the next, which the run counts as an epoch; -max_steps is a multiple.",
        minimum=1,
        resume="batches",
    )


def _names(*groups: type) -> frozenset[str]:
    return frozenset(field.name for group in groups for field in dataclasses.fields(group))


@dataclasses.dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """Everything that a pretraining is made of. Its epochs have `valid_every` optimizer steps each."""

    corpus: CorpusFlags = dataclasses.field(default_factory=CorpusFlags)
    objective: ObjectiveFlags = dataclasses.field(default_factory=ObjectiveFlags)
    pretraining: PretrainFlags = PretrainFlags()

    length_flag: ClassVar[str] = "-max_steps"
    first: ClassVar[tuple[str, ...]] = ("corpus", "objective", "pretraining")
    without: ClassVar[frozenset[str]] = (
        _names(TrainTaskFlags, DataFlags, LengthFlags, TrainModelFlags, DistillationFlags, RetrievalFlags)
        | {"max_epoch", "valid_check_interval", "valid_generate_rows"}
    ) - {
        *("user_code", "cache_dir", "max_seq_length", "max_target_length"),
        *("init_model", "config_path", "tokenizer", "encoder_layers", "decoder_layers", "freeze"),
        *("gradient_checkpointing", "pooling", "contrastive_temperature"),
    }
    otherwise: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "corpus": {"unless": ("resume_checkpoint",)},
        "max_steps": {
            "help": "Optimizer steps of the whole run.",
            "minimum": 1,
            "required": True,
            "unless": ("resume_checkpoint",),
            "change": "the learning rate follows the longer or shorter course from here, without -scheduler_steps",
        },
        "scheduler_steps": {
            "help": "Optimizer steps of the schedule, which then keeps its last rate (linear: 0); 0 = -max_steps.",
            "minimum": 0,
        },
        "max_seq_length": {
            "help": f"Tokens of a source, special tokens included; 0 = {SOURCE_LENGTH}, or the model's own limit where"
            " that is less."
        },
        "max_target_length": {
            "help": "Longest target in tokens, special tokens included; 0 = what -objective makes of a source.",
            "excludes": {"objective=encoder_mlm": NO_TARGETS["objective=encoder_mlm"]},
        },
        "tokenizer": {
            "help": "Tokenizer folder (of train_tokenizer.py) or hub name, or 'bytes' (ByT5's); empty = that of the"
            " model or preset. A model from -config_path gets as many embeddings as it has tokens."
        },
        "monitor": {
            "help": "What 'best' means: val_loss, val_loss_no_sentinels (of the tokens of the text alone), or"
            " token_accuracy; with -objective inverse_cloze val_loss, mrr@10, recall@1 or recall@10; with"
            " -inverse_cloze_weight all of these, and val_contrastive_loss."
        },
        "pooling": {"excludes": {"objective=encoder_mlm": "the decoder is not trained"}},
        "cache_dir": {"help": "Folder of the tokenized corpus; empty = <save_path>/cache."},
    }

    @property
    def epochs(self) -> int:
        """Epochs to train."""
        return -(-self.run.max_steps // self.pretraining.valid_every)

    @property
    def cloze_weight(self) -> float:
        """See `TrainConfig`."""
        return self.objective.inverse_cloze_weight

    @property
    def encoder_alone(self) -> bool:
        """See `TrainConfig`."""
        return self.objective.objective == "encoder_mlm"

    @property
    def generated_rows(self) -> int:
        """Validation rows that are predicted by generation: none."""
        return 0

    @property
    def subject(self) -> str:
        """What is trained, for the summary of a run."""
        weight = f" with inverse cloze of weight {self.cloze_weight}" if self.cloze_weight else ""
        return f"pretraining on {', '.join(self.corpus.corpus)}, objective {self.objective.objective}{weight}"
