"""Everything that a training run is made of before its first step: devices, rows, tokenizer, model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.model_source import ModelSource, model_source
from checkpoints.run_folder import CACHE_FOLDER
from checkpoints.saved_run import SavedRun
from config.flags import TrainConfig
from datamodules.batching import BatchOptions
from datamodules.encoding.languages import check_languages
from datamodules.seq2seq_datamodule import Seq2SeqDataModule
from datamodules.splits import RowEncoder, Splits, evenly_spaced, training_splits
from models.architectures import overflowing, source_limit, target_limit
from postprocessors.base import Postprocessor
from task_utils import Task
from training.resuming import (
    changed_words,
    check_optimizer,
    check_same,
    flag_differences,
    plan_differences,
    saved_threads,
)
from utils.console import say
from utils.devices import Devices, check_launcher, resolve_devices, use_threads
from utils.differences import Difference
from utils.tables import counted, visible

LONGEST_EXAMPLE = 2000  # cells of a terminal


@dataclass(frozen=True)
class Prepared:
    """What `fit` needs."""

    config: TrainConfig
    task: Task
    postprocessor: Postprocessor
    devices: Devices
    splits: Splits
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    resumed: SavedRun | None
    differences: Sequence[Difference] = ()  # between it and this run; -resume_force allows them

    def data_module(self) -> Seq2SeqDataModule:
        """A data module over the encoded rows."""
        batch, on_gpu = self.config.batch, self.devices.accelerator == "cuda"
        options = BatchOptions(
            batch_size=0 if batch.max_tokens else batch.batch_size,
            max_tokens=batch.max_tokens,
            accumulate=batch.grad_acc,
            pad_to_multiple_of=8 if on_gpu else 1,
        )
        return Seq2SeqDataModule(
            self.splits.train,
            self.splits.valid,
            postprocessor=self.postprocessor,
            class_weights=self.splits.weights,
            pad_token_id=self.tokenizer.pad_token_id,
            batch_options=options,
            seed=self.config.run.seed,
            num_workers=batch.num_workers,
            pin_memory=on_gpu,
        )


def row_encoder(config: TrainConfig, task: Task, source: ModelSource, cache: Path) -> RowEncoder:
    """What encodes the rows of a run for its model."""
    check_languages(task, config.data, source.tokenizer)
    limits = source_limit(source.config), target_limit(source.config)
    return RowEncoder(config.data, config.length, task, source.tokenizer, limits[0], cache, limits[1])


def example_lines(config: TrainConfig, task: Task, resumed: SavedRun | None) -> list[str]:
    """Some training rows, evenly spaced, as the model sees them: both sides decoded from their tokens.

    Raises:
        UserError: a tokenizer, data or a checkpoint that cannot be read.
    """
    source = model_source(config, task, resumed.model if resumed else None)
    with tempfile.TemporaryDirectory() as cache:
        splits = training_splits(row_encoder(config, task, source, Path(cache)), config.task)
        lines = [*splits.lines]
        for row in evenly_spaced(len(splits.train), config.task.show_examples).tolist():
            lines.append(f"training {splits.train.unit} {row + 1:,}")
            for side, ids in (("source", splits.train.source_ids(row)), ("target", splits.train.target_ids(row))):
                shown = ids[: 4 * LONGEST_EXAMPLE].tolist()  # decoding all of a very long text takes minutes
                text = source.tokenizer.decode(shown, clean_up_tokenization_spaces=False)
                lines.append(f"  {side} of {counted(len(ids), 'token')}: {visible(text, LONGEST_EXAMPLE)}")
    return lines


def prepare(config: TrainConfig, task: Task, resumed: SavedRun | None) -> Prepared:
    """Devices, encoded rows, tokenizer and model.

    Raises:
        UserError: of devices, data or model; or a resumed run that is another one, without -resume_force.
    """
    source = model_source(config, task, resumed.model if resumed else None)
    flags = config.device
    unsafe = overflowing(source.config.model_type)
    devices = resolve_devices(flags.gpus, flags.cpu_processes, flags.float_precision, unsafe, flags.num_nodes)
    check_launcher(devices)
    use_threads(devices, saved_threads(resumed, config, devices))
    say(*(changed_words(resumed, config, devices) if resumed else []))
    cache = Path(config.data.cache_dir or Path(config.run.save_path) / CACHE_FOLDER)
    splits = training_splits(row_encoder(config, task, source, cache), config.task)
    say(*splits.lines)
    model = source.build(config.run.seed)
    prepared = Prepared(config, task, task.postprocessor, devices, splits, source.tokenizer, model, resumed)
    if resumed is None:
        return prepared
    differences = flag_differences(resumed, config, task)
    names = {difference.name for difference in differences}
    fingerprint = prepared.data_module().fingerprint(devices.world_size, devices.precision)
    differences += [found for found in plan_differences(resumed, fingerprint) if found.name not in names]
    check_same(differences, config)
    check_optimizer(resumed, differences, prepared.model, config.optim)
    return replace(prepared, differences=differences)
