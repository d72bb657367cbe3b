"""Checks of a retrieval task: its flags of `train.py`, and its batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from config.checks import column_problems, used_flags
from config.flags.retrieval.contrastive import FIXED_ROWS, RetrievalFlags
from config.flags.run import SHARDED_STRATEGIES
from config.flags.train import TrainConfig
from config.parser import shown
from datamodules.mixture import Mixture
from metrics.registry import PASSAGES
from task_utils import Task
from utils.errors import UserError
from utils.tables import counted

NO_TARGET = "a passage is found, and not written: the loss is not over the tokens of a target"
NOT_TRIED = "was not tried with a retrieval task"
NO_TEST = "validation rows are ranked during the training; embed.py scores other rows afterwards"
WITH_TARGETS = ("label_smoothing", "z_loss", "rdrop_alpha", "teacher", "class_weights", "doc_stride")


def is_retrieval(tasks: Sequence[Task]) -> bool:
    """Whether a task among these is one of passages."""
    return any(task.kind == PASSAGES for task in tasks)


def retrieval_problems(config: TrainConfig, mixture: Mixture) -> Iterator[str]:
    """What does not go with a retrieval task, or without one."""
    used = used_flags(config)
    if not is_retrieval(mixture.tasks):
        for name in sorted(used.keys() & RetrievalFlags.__dataclass_fields__.keys()) if mixture.tasks else ():
            yield f"{shown(name, used[name])}: only with a task of passages, such as -task retrieval"
        return
    if len(mixture.members) > 1:
        yield "-train_task: a retrieval task is trained alone; give it as -task"
    reasons = {
        **dict.fromkeys(WITH_TARGETS, NO_TARGET),
        "max_tokens": FIXED_ROWS,
        "compile": NOT_TRIED,
        "test_data_proportions": NO_TEST,
    }
    yield from (f"{shown(name, used[name])}: {reason}" for name, reason in reasons.items() if name in used)
    yield from column_problems("negative_column", *config.retrieval.negative_column)
    for column in {str(task.target_column) for task in mixture.tasks} & {*config.retrieval.negative_column}:
        yield f"-negative_column {column}: the passages that answer the queries stand there; give another column"
    if not config.batch.batch_size:
        yield f"-batch_size 0: {FIXED_ROWS}"
    if config.device.strategy in SHARDED_STRATEGIES:
        yield f"-strategy {config.device.strategy}: {NOT_TRIED}; give ddp"
    if config.model.virtual_tokens or config.model.tuning_method == "adalora":
        yield f"-tuning_method {config.model.tuning_method}: {NOT_TRIED}; give lora"
    for member in mixture.members:
        if member.data.test_data:
            yield f"{shown('test_data', member.data.test_data)}: {NO_TEST}"
        if member.task.hub_dataset and not member.data.train_data:
            yield f"-train_data is required with a retrieval task; {member.task.hub_dataset} is read for others only"


def compared_words(rows: int, negatives: int) -> str:
    """What to tell of the passages that a query meets, which must be more than its own.

    Args:
        rows: of an optimizer step, over all ranks.
        negatives: columns of hard negatives.

    Raises:
        UserError: the loss is 0 whatever the model does.
    """
    if rows == 1 and not negatives:
        raise UserError(
            "-batch_size 1: an optimizer step of one row compares its query with no other passage, and trains nothing;"
            " give a larger -batch_size or -grad_acc, or hard negatives by train.py -negative_column"
        )
    return f"each query is compared with the passages of an optimizer step: those of {counted(rows, 'row')}"
