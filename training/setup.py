"""Everything that a training run is made of before its first step: devices, rows, tokenizer, model."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.model_source import ModelSource, model_source
from checkpoints.run_folder import CACHE_FOLDER
from checkpoints.saved_run import SavedRun
from config.flags.model import FULL, WHOLE
from config.flags.optim import OPTIMIZERS, dropout_rates
from config.flags.run import automatic
from config.flags.train import TrainConfig
from config.parser import shown
from datamodules.batching import BatchOptions
from datamodules.encoding.languages import check_languages
from datamodules.mixture import Mixture
from datamodules.retrieval.checks import compared_words, is_retrieval
from datamodules.retrieval.passages import Cloze, Passages, encoded_negatives
from datamodules.sampling import JoinedRows, Sampling, TrainingRows
from datamodules.seq2seq_datamodule import Seq2SeqDataModule
from datamodules.splits import RowEncoder, Splits, evenly_spaced, task_splits
from models.adapters.quantised import check_quantisable
from models.architectures import architecture, notes, overflowing, source_limit, target_limit
from models.freezing import freeze_decoder
from models.kernels.compiled import PADDED_TO, check_compiler
from models.kernels.fused import check_fused_attention
from models.losses.objective import Teacher
from models.regularisation import check_dropout
from models.retrieval.pooling import MEAN, check_pooling, check_trained, freeze_unused
from training.distillation import find_teacher, load_teacher
from training.resuming import (
    changed_words,
    check_optimizer,
    check_same,
    flag_differences,
    plan_differences,
    saved_threads,
)
from training.strategies.registry import STRATEGIES
from utils.console import say
from utils.devices import Devices, check_launcher, limit_memory, resolve_devices, use_arithmetic, use_threads
from utils.differences import Difference
from utils.errors import UserError
from utils.escapes import printable
from utils.launch import is_first_process, local_rank
from utils.tables import counted, visible

LONGEST_EXAMPLE = 2000  # cells of a terminal


@dataclass(frozen=True)
class TrainingData:
    """The rows of a run."""

    parts: Sequence[Splits]  # of each task
    rows: TrainingRows  # all that training takes
    passages: Passages | None = None  # the training rows of a retrieval task
    cloze: Cloze | None = None  # the pairs of a joint loss


@dataclass(frozen=True)
class Prepared:
    """What `fit` needs."""

    config: TrainConfig
    mixture: Mixture
    devices: Devices
    data: TrainingData
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    resumed: SavedRun | None
    teacher: Teacher | None = None
    differences: Sequence[Difference] = ()  # between it and this run; -resume_force allows them

    def data_module(self) -> Seq2SeqDataModule:
        """A data module over the encoded rows."""
        batch, on_gpu = self.config.batch, self.devices.accelerator == "cuda"
        options = BatchOptions(
            batch_size=0 if batch.max_tokens else batch.batch_size,
            max_tokens=max(batch.max_tokens, 0),
            accumulate=batch.grad_acc,
            pad_to_multiple_of=PADDED_TO if self.config.device.compile else 8 if on_gpu else 1,
        )
        return Seq2SeqDataModule(
            self.data.parts,
            self.data.rows,
            pad_token_id=self.tokenizer.pad_token_id,
            batch_options=options,
            seed=self.config.run.seed,
            precision=self.devices.arithmetic,
            num_workers=batch.num_workers,
            pin_memory=on_gpu,
            teacher=self.teacher.digest if self.teacher else "",
            passages=self.data.passages,
            cloze=self.data.cloze,
        )


def row_encoders(config: TrainConfig, mixture: Mixture, source: ModelSource, cache: Path) -> list[RowEncoder]:
    """What encodes the rows of every task for the model."""
    for task in mixture.tasks:
        check_languages(task, config.data, source.tokenizer)
    limits = source_limit(source.config, config.model.virtual_tokens), target_limit(source.config)
    windowed = [task for task in mixture.tasks if task.passage] or mixture.tasks  # -doc_stride is for these alone
    encoders = []
    for member in mixture.members:
        length = config.length if member.task in windowed else replace(config.length, doc_stride=0)
        encoders.append(RowEncoder(member.data, length, member.task, source.tokenizer, limits[0], cache, limits[1]))
    return encoders


def passages_of(config: TrainConfig, encoder: RowEncoder, rows: Splits, world_size: int) -> Passages:
    """The training rows of a retrieval task with their hard negatives.

    Raises:
        UserError: a column without any; batches in which nothing is compared.
    """
    columns = config.retrieval.negative_column
    negatives, lines = encoded_negatives(encoder, columns)
    batch = config.batch
    compared = min(batch.batch_size * batch.grad_acc * world_size, len(rows.train))
    say(*lines, compared_words(compared, len(columns)))
    return Passages(rows.train, negatives)


def example_lines(config: TrainConfig, mixture: Mixture, resumed: SavedRun | None) -> list[str]:
    """Some training rows of each task, evenly spaced, as the model sees them: both sides decoded from their tokens.

    Raises:
        UserError: a tokenizer, data or a checkpoint that cannot be read.
    """
    source = model_source(config, mixture.tasks, resumed.model if resumed else None)
    with tempfile.TemporaryDirectory() as cache:
        parts = task_splits(row_encoders(config, mixture, source, Path(cache)), config.task)
        lines = [line for part in parts for line in part.lines]
        for part in parts:
            for row in evenly_spaced(len(part.train), config.task.show_examples).tolist():
                lines.append(f"{printable(part.name)}: training {part.train.unit} {row + 1:,}".removeprefix(": "))
                for side, ids in (("source", part.train.source_ids(row)), ("target", part.train.target_ids(row))):
                    shown = ids[: 4 * LONGEST_EXAMPLE].tolist()  # decoding all of a very long text takes minutes
                    text = source.tokenizer.decode(shown, clean_up_tokenization_spaces=False)
                    lines.append(f"  {side} of {counted(len(ids), 'token')}: {visible(text, LONGEST_EXAMPLE)}")
    return lines


def limit_lines(config: TrainConfig, model_config: PreTrainedConfig) -> list[str]:
    """What to tell of a length of the flags that the model has no positions for."""
    source, target = source_limit(model_config, config.model.virtual_tokens), target_limit(model_config)
    lengths = config.length
    return [
        *limit_line("max_seq_length", lengths.max_seq_length, source),
        *limit_line("max_target_length", lengths.max_target_length, target),
    ]


def limit_line(name: str, wanted: int, limit: int) -> list[str]:
    """What to tell of one such length; a limit of 0 is none."""
    if not 0 < limit < wanted:
        return []
    return [
        f"-{name} {wanted}: the model has positions for {limit} tokens, which is taken as the limit; give that or less"
    ]


def check_padded(parts: Sequence[Splits], config: PreTrainedConfig) -> None:
    """Raise `UserError` where the model has no positions for the lengths that -compile pads to."""
    rows = [split for part in parts for split in (part.train, part.valid) if split is not None]
    for flag, limit, lengths in (
        ("-max_seq_length", source_limit(config), [split.source_lengths for split in rows]),
        ("-max_target_length", target_limit(config), [split.target_lengths for split in rows]),
    ):
        longest = max((int(of_split.max(initial=0)) for of_split in lengths), default=0)
        if limit and -(-longest // PADDED_TO) * PADDED_TO > limit:
            raise UserError(
                f"-compile pads rows of {longest} tokens to a multiple of {PADDED_TO}, and the model has positions for"
                f" {limit}: give {flag} {limit // PADDED_TO * PADDED_TO}, or leave -compile out"
            )


def built_model(
    config: TrainConfig, source: ModelSource, devices: Devices, resumed: SavedRun | None
) -> PreTrainedModel:
    """The model, where it is to be.

    What a checkpoint holds goes right to the device, and never into the memory of the host, unless -load_in makes it
    small first; seeds draw on the CPU, in the first process alone where it gives its weights to the others (DDP does,
    before the first step). Where each process is to hold a part, the first one reads or draws the whole for all of
    them, and none where they come from a checkpoint, if the strategy writes them into the parts.
    """
    seed, device = config.run.seed, torch.device(devices.device(local_rank()))
    strategy = STRATEGIES[config.device.strategy]
    given = devices.world_size > 1 and not is_first_process()
    if strategy.gives_weights:
        return source.build(seed, given or resumed is not None)
    if strategy.sharded:  # it takes the model apart in the memory of the host
        return source.build(seed, False)
    drawn = bool(config.model.config_path) and config.model.tuning_method == FULL
    if resumed and config.model.load_in == WHOLE:
        with device:
            return source.build(seed, False)
    if given and drawn and architecture(source.config.model_type).plain_logits:
        with device:
            return source.build(seed, True)
    return source.build(seed, False)


def check_gradients(config: TrainConfig, devices: Devices) -> None:
    """Raise `UserError` where the optimizer was not tried with gradients in fp16, and they are."""
    name = config.optim.optim
    if devices.precision == "16-mixed" and not OPTIMIZERS[name].fp16:
        raise UserError(
            f"-optim {name}: was not tried with the fp16 of -float_precision {config.device.float_precision}: give bf16"
            " or 32, or an -optim of " + ", ".join(known for known, row in OPTIMIZERS.items() if row.fp16)
        )


def check_memory_limit(config: TrainConfig, devices: Devices) -> None:
    """Raise `UserError` where the size of batches is to be found on a CPU without a limit, or without Linux."""
    name = automatic(config.batch)
    if name and devices.accelerator == "cpu" and not config.device.memory_limit:
        raise UserError(
            f"{shown(name, getattr(config.batch, name))}: on the CPU give -memory_limit too, since the system does not"
            " say how much memory is left for the run"
        )
    if name and devices.accelerator == "cpu" and sys.platform != "linux":
        raise UserError(
            f"{shown(name, getattr(config.batch, name))}: on a CPU only Linux says what a batch takes; give a number"
        )


def check_model(config: TrainConfig, mixture: Mixture, model_config: PreTrainedConfig, devices: Devices) -> None:
    """Raise `UserError` where the model does not go with the flags, the tasks or the devices."""
    flags, pooling = config.device, config.retrieval.pooling
    check_quantisable(model_config, config.model.load_in)
    if flags.attention == "fused":
        check_fused_attention(model_config, devices.accelerator)
    check_dropout(model_config, dropout_rates(config.optim))
    if is_retrieval(mixture.tasks):
        check_pooling(model_config, pooling, f"task {mixture.tasks[0].name}")
    if config.encoder_alone:
        check_pooling(model_config, MEAN, "-objective encoder_mlm")
    if config.cloze_weight:
        check_pooling(model_config, pooling, f"-inverse_cloze_weight {config.cloze_weight}")
    STRATEGIES[flags.strategy].check(model_config, devices)
    if flags.compile:
        check_compiler(devices.accelerator, model_config.model_type)


def freeze_untrained(model: PreTrainedModel, config: TrainConfig, data: TrainingData) -> None:
    """Stop training the parameters that the loss does not reach.

    Raises:
        UserError: nothing is left to train of what the loss is for.
    """
    if config.encoder_alone:
        freeze_decoder(model)
    if data.passages is not None:
        freeze_unused(model, config.retrieval.pooling)
    if data.cloze is not None:
        check_trained(model, config.retrieval.pooling)


def task_data(config: TrainConfig, mixture: Mixture, source: ModelSource, cache: Path, world_size: int) -> TrainingData:
    """The encoded rows of the tasks, and how an epoch draws them; says what became of the files."""
    encoders = row_encoders(config, mixture, source, cache)
    parts = task_splits(encoders, config.task)
    say(*(line for part in parts for line in part.lines))
    counts, names = [len(part.train) for part in parts], [part.name for part in parts]
    sampling = Sampling.of(names, counts, mixture.rates(counts))
    say(*sampling.lines(names))
    retrieval = is_retrieval(mixture.tasks)
    passages = passages_of(config, encoders[0], parts[0], world_size) if retrieval else None
    return TrainingData(parts, JoinedRows([part.train for part in parts], sampling), passages)


def prepare(
    config: TrainConfig,
    mixture: Mixture,
    resumed: SavedRun | None,
    encoded: Callable[[Any, Mixture, ModelSource, Path, int], TrainingData] = task_data,
) -> Prepared:
    """Devices, encoded rows, tokenizer and model.

    Args:
        encoded: gives the rows for a number of processes; their tokens may be kept in a folder.

    Raises:
        UserError: of devices, data or model; or a resumed run that is another one, without -resume_force.
    """
    source = model_source(config, mixture.tasks, resumed.model if resumed else None)
    found = find_teacher(config.distillation, source)
    flags = config.device
    unsafe = overflowing(source.config.model_type)
    devices = resolve_devices(
        flags.gpus, flags.cpu_processes, flags.float_precision, unsafe, flags.num_nodes, flags.deterministic
    )
    check_launcher(devices)
    check_gradients(config, devices)
    check_memory_limit(config, devices)
    check_model(config, mixture, source.config, devices)
    use_arithmetic(devices)
    limit_memory(devices.device(local_rank()), flags.memory_limit)
    use_threads(devices, saved_threads(resumed, config, devices))
    say(*notes(source.config, training=True), *limit_lines(config, source.config))
    say(*(changed_words(resumed, config, devices) if resumed else []))
    cache = Path(config.data.cache_dir or Path(config.run.save_path) / CACHE_FOLDER)
    data = encoded(config, mixture, source, cache, devices.world_size)
    if flags.compile:
        check_padded(data.parts, source.config)
    model = built_model(config, source, devices, resumed)
    freeze_untrained(model, config, data)
    teacher = load_teacher(found, config.distillation, data.parts) if found else None
    prepared = Prepared(config, mixture, devices, data, source.tokenizer, model, resumed, teacher)
    if resumed is None:
        return prepared
    differences = flag_differences(resumed, config, mixture.tasks)
    names = {difference.name for difference in differences}
    fingerprint = prepared.data_module().fingerprint(devices.world_size)
    differences += [found for found in plan_differences(resumed, fingerprint) if found.name not in names]
    check_same(differences, config)
    check_optimizer(resumed, differences, prepared.model, config)
    return replace(prepared, differences=differences)
