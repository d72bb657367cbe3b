"""The teacher that a student learns from: found, compared with the student, and loaded."""

from __future__ import annotations

from collections.abc import Sequence

from checkpoints.adapter_base import weights_digest
from checkpoints.model_paths import model_path
from checkpoints.model_source import InferenceModel, ModelSource
from config.flags.optim import DistillationFlags
from datamodules.splits import Splits
from models.adapters.virtual_tokens import count_of
from models.architectures import source_limit, target_limit
from models.forward import check_logits
from models.losses.objective import Teacher
from models.tokenizers import vocabulary_size
from utils.errors import UserError


def find_teacher(flags: DistillationFlags, student: ModelSource) -> InferenceModel | None:
    """The model of -teacher, without its weights; None where there is none.

    Raises:
        UserError: it cannot be read, or its vocabulary is not the student's.
    """
    if not flags.teacher:
        return None
    teacher = InferenceModel(model_path("-teacher", flags.teacher), flag="-teacher")
    config, tokenizer = teacher.config_and_tokenizer()
    sizes = vocabulary_size(config), vocabulary_size(student.config)
    place = f"-teacher {teacher.name}"
    if sizes[0] != sizes[1]:
        raise UserError(
            f"{place}: its vocabulary has {sizes[0]:,} tokens, the student's {sizes[1]:,}; they must be the same"
        )
    own, other = student.tokenizer.get_vocab(), tokenizer.get_vocab()
    for token, _ in sorted(own.items() ^ other.items())[:1]:
        raise UserError(
            f"{place}: its tokenizer is not the student's: {token!r} has the id {other.get(token)}, not"
            f" {own.get(token)}; start the student from a model with the teacher's tokenizer"
        )
    return teacher


def load_teacher(found: InferenceModel, flags: DistillationFlags, parts: Sequence[Splits]) -> Teacher:
    """The teacher in evaluation mode on the CPU.

    Raises:
        UserError: its weights cannot be loaded, or it has no positions for the longest training rows.
    """
    model, _ = found()
    place = f"-teacher {found.name}"
    check_logits(model, place)
    source = source_limit(model.config, count_of(model.get_encoder()))
    for side, flag, limit, lengths in (
        ("source", "-max_seq_length", source, [part.train.source_lengths for part in parts]),
        ("target", "-max_target_length", target_limit(model.config), [part.train.target_lengths for part in parts]),
    ):
        longest = max(int(of_part.max(initial=0)) for of_part in lengths)
        if limit and longest > limit:
            raise UserError(
                f"{place}: has positions for {limit} {side} tokens, and the longest training row has {longest}: give"
                f" {flag} {limit}"
            )
    model.requires_grad_(False)
    return Teacher(model, flags.distill_temperature, flags.distill_weight, weights_digest(model))
