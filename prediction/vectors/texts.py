"""What a command about vectors needs before its first text: the model, which texts, and what their vectors are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from config.flags.data import DataFlags, LengthFlags
from config.flags.inference import DecodeFlags, InferenceConfig, InferenceModelFlags, OutputFlags
from config.flags.retrieval.embed import EmbedConfig, EmbedFlags
from config.templates import Template
from datamodules.encoding.store import EncodedSplit
from datamodules.splits import report_lines
from generation.engines.vectors import VectorForm
from metrics.registry import PASSAGES
from models.retrieval.pooling import DECODER, MEAN, check_pooling
from prediction.lazy_sequence import LazySequence
from prediction.setup import Ready, prepare
from prediction.workers.ranks import Shared
from task_utils import Task, override_task
from utils.console import tell
from utils.errors import UserError

NOTHING = "-"  # the target of texts, which have none


@dataclass(frozen=True)
class Texts:
    """The texts of a command, encoded, and what becomes of them."""

    ready: Ready
    task: Task  # of the model, as it was trained
    split: EncodedSplit
    form: VectorForm


def inference_config(config: EmbedConfig) -> InferenceConfig:
    """The prediction whose machinery makes the vectors; its finished parts lie beside -save_output."""
    flags = config.embed
    return InferenceConfig(
        model=InferenceModelFlags(model=(flags.model,), task=flags.task),
        data=DataFlags(test_data=flags.data, cache_dir=flags.cache_dir),
        length=LengthFlags(max_seq_length=flags.max_seq_length),
        output=OutputFlags(save_output=flags.save_output, overwrite=flags.overwrite),
        decode=DecodeFlags(batch_size=flags.batch_size, max_tokens=flags.max_tokens),
        device=config.device,
    )


def prepare_texts(config: EmbedConfig, given: frozenset[str], shared: Shared) -> Texts:
    """Find the model and encode the texts of -data; the weights are not loaded yet.

    Raises:
        UserError: what `prepare` raises; -encode_as for a task without passages; a pooling that the model does not
            have; a row without an id.
    """
    flags = config.embed
    ready = prepare(inference_config(config), given - {"source_column", "input_template"}, shared.folder, shared.first)
    trained = ready.models[0].saved_state().get("flags", {})
    if ready.task.kind != PASSAGES and flags.encode_as != "auto":
        raise UserError(
            f"-encode_as {flags.encode_as}: task {ready.task.name} has no queries and passages; leave it out, or give"
            " -task retrieval"
        )
    pooling = flags.pooling if flags.pooling != "auto" else str(trained.get("pooling", MEAN))
    if pooling == DECODER:
        check_pooling(ready.model_config, pooling, f"-pooling {pooling}")
    form = VectorForm(pooling, flags.normalize, flags.dtype)
    lengths = replace(ready.encoder.lengths, doc_stride=0)
    kind = flags.encode_as if flags.encode_as != "auto" else "query" if config.search.corpus else "passage"
    as_passages = ready.task.kind == PASSAGES and kind == "passage"
    if as_passages and "max_seq_length" not in given:
        lengths = replace(lengths, max_seq_length=int(trained.get("max_target_length", 0)))
    encoder = replace(ready.encoder, lengths=lengths, task=text_task(ready.task, flags, as_passages))
    ready = replace(ready, encoder=encoder)
    split = encoder.encode("-data", flags.data, keep_all=True)
    tell(*report_lines("-data", split.report))
    if flags.id_column:
        check_ids(split, f"-id_column {flags.id_column}")
    return Texts(ready, ready.task, split, form)


def text_task(task: Task, flags: EmbedFlags, as_passages: bool) -> Task:
    """The task with the texts as its sources, and the ids of the rows, where they have some, as references.

    Passages of a retrieval task are its targets: their column, template and longest length are taken.
    """
    if as_passages:
        task = replace(
            task,
            source_column=task.target_column,
            input_template=as_source(task.target_template),
            max_seq_length=task.max_target_length,
            source_language=task.target_language,
        )
    task = replace(
        task,
        target_template=NOTHING,
        target_language="",
        references="{{ target }}" if flags.id_column else "",
        output=None,
        label_map=None,
        metrics=(),
        passage="",
        placeholders=(),
    )
    given = DataFlags(
        source_column=flags.source_column, input_template=flags.input_template, target_column=flags.id_column
    )
    found = override_task(task, given)
    if flags.id_column and found.source_column == found.target_column:  # readers give a column once
        found = replace(found, references="{{ source }}")
    return found


def as_source(target_template: str) -> str:
    """A template of sources that writes what `target_template` does: of a prefix a plain one, which costs no time."""
    read = Template(target_template, "-target_template")
    literals = [part for part in read.parts or () if isinstance(part, str)]
    if read.parts and read.variables == {"target"} and not any("{" in text for text in literals):
        return "".join(part if isinstance(part, str) else "{{ source }}" for part in read.parts)
    return "{% set target = source %}" + target_template


def check_ids(split: EncodedSplit, flag: str) -> None:
    """Raise `UserError` where a row has no id."""
    without = next((row for row in range(len(split)) if not (split.reference(row) or "").strip()), None)
    if without is not None:
        columns = next(iter(split.report.columns.values()), [])
        raise UserError(f"{flag}: row {without:,} (from 0) has none; columns there are: {', '.join(columns[:20])}")


def ids_of(split: EncodedSplit, id_column: str) -> Sequence[str] | None:
    """The ids of the rows in their order, each read when it is asked for; None where they are numbered."""
    if not id_column:
        return None
    return LazySequence(len(split), lambda row: (split.reference(row) or "").strip())
