"""What a prediction needs before its first row: models, task, labels, devices, how to encode and what decodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.model_source import OF_ROWS, InferenceModel, check_same_texts, inference_models, shared_limits
from checkpoints.saved_run import trained_task, trained_tasks
from config.flags.inference import (
    ROWS_ON_GPUS,
    TOKENS_ON_GPUS,
    DecodeFlags,
    InferenceConfig,
    LabelFlags,
    OutputFlags,
)
from config.parser import flag_groups
from datamodules.encoding.languages import check_languages
from datamodules.encoding.store import EncodedSplit
from datamodules.splits import RowEncoder
from generation.decoder import GREEDY, LONGEST_TEXT
from generation.engines.conversion import check_convertible
from generation.engines.ctranslate2 import PARITY_ROWS, check_compute_type, convert
from generation.engines.labels import LabelDecoding, ScoreEngine
from generation.engines.pytorch import TorchEngine
from generation.passage_spans import PassageRule
from metrics.registry import PASSAGES
from models.architectures import architecture, longest_output, notes, overflowing
from models.kernels.compiled import check_compiler
from models.languages import language_codes
from models.special_tokens import encoded_target
from postprocessors.base import FreeText, Postprocessor
from prediction.checks import check_labels, named_metrics, perplexity_problems, with_metrics
from prediction.label_calibration import label_decoding
from prediction.parts_folder import is_structured
from prediction.windows import by_probability
from prediction.workers.claims import Presence
from prediction.workers.work import Engine
from task_utils import Task, fixed_languages, get_task, override_task, task_name, task_names
from utils.console import tell
from utils.devices import Devices, launched_devices, resolve_devices, use_arithmetic, use_threads
from utils.errors import UserError, closest, raise_if_any
from utils.mapping_files import FILE_SUFFIXES

SLACK = 8  # tokens that an output may be longer than the longest text that a model should write


@dataclass(frozen=True)
class Ready:
    """A command line resolved: `config` has the training's settings in place of those that were not given."""

    config: InferenceConfig
    models: tuple[InferenceModel, ...]
    task: Task
    postprocessor: Postprocessor
    devices: Devices
    encoder: RowEncoder
    model_config: Any  # of the first
    target_limit: int  # tokens of a target that all models have positions for; 0 = no limit
    first: Presence | None = None  # sign of life of this process, the first of several; None = it is alone

    def predicting(self, label: LabelFlags, **columns: Any) -> Ready:
        """The same with other flags of labels, which were checked, and other columns."""
        data = replace(self.config.data, **columns)
        config = replace(self.config, label=label, data=data)
        return replace(self, config=config, encoder=replace(self.encoder, data=data))


def prepare(config: InferenceConfig, given: frozenset[str], temporary: Path, first: Presence | None = None) -> Ready:
    """Resolve the flags against the model, without loading its weights.

    Args:
        temporary: folder of the encoded rows where no -cache_dir is given.
        first: the sign of life of this process, the first of several that a launcher started; None = it is alone.

    Raises:
        UserError: a model that cannot be read, a task that it does not fit, devices that are not there, a model or an
            arithmetic that -engine ctranslate2 does not have, outputs longer than the model can write.
    """
    data = config.data
    models = inference_models(
        config.model.model, config.model.tokenizer, config.model.base_model, bool(config.model.adapter)
    )
    tell(
        *(
            f"-model {name}: {model.name}"
            for name, model in zip(config.model.model, models, strict=True)
            if name != model.name
        ),
        *(line for model in models for line in model.notes()),
    )
    state, place, name = models[0].saved_state(), f"-model {models[0].name}", task_name(config.model.task)
    if trained_task(state, name, place) or not name:  # the checkpoint's
        check_same_texts(models, [key for key in OF_ROWS if key not in given], name)
    task = with_metrics(resolve_prediction_task(config, state, place), config.output.metrics)
    source, target = fixed_languages(task, data)
    models = tuple(replace(model, source_language=source, target_language=target) for model in models)
    postprocessor = task.postprocessor
    check_labels(config.label, postprocessor)
    config = with_trained_settings(config, given, state)
    if not task.passage and "doc_stride" not in given:  # it was for another task of the training
        config = replace(config, length=replace(config.length, doc_stride=0))
    if config.length.doc_stride and "length_penalty" not in given:
        config = replace(config, decode=by_probability(config.decode))
    raise_if_any(perplexity_problems(named_metrics(config.output.metrics), config.length.doc_stride))
    data = config.data
    model_config, tokenizer = models[0].config_and_tokenizer()
    check_languages(task, data, tokenizer)
    check_search(config, model_config.model_type)
    check_virtual_tokens(config.decode, models)
    devices = resolve_devices(
        config.device.gpus,
        config.device.cpu_processes,
        config.device.float_precision,
        overflowing(model_config.model_type),
    )
    if first:
        devices = launched_devices(devices, config.device.gpus > 0 or config.device.cpu_processes > 0)
    if config.decode.engine == "ctranslate2":
        if task.target_language and language_codes(tokenizer):
            raise UserError(
                f"-engine ctranslate2 begins every output with the same language, and the rows of -target_language"
                f" {task.target_language} have their own; use -engine torch"
            )
        check_compute_type(config.decode.compute_type, devices.accelerator)
        check_convertible(model_config.model_type, f"-model {models[0].name}")
    if config.decode.compile:
        check_compiler(devices.accelerator, model_config.model_type)
    use_arithmetic(devices)
    use_threads(devices)
    source_limit, target_limit = shared_limits(models)
    check_min_length(config.decode, target_limit)
    decode = with_batches(config.decode, given, devices.accelerator)
    config = replace(config, decode=with_length(decode, postprocessor, tokenizer, target_limit))
    cache = Path(data.cache_dir or temporary)
    requests = config.output.openai_batch
    encoder = RowEncoder(data, config.length, task, tokenizer, source_limit, cache, target_limit, requests)
    return Ready(config, models, task, postprocessor, devices, encoder, model_config, target_limit, first)


def check_search(config: InferenceConfig, model_type: str) -> None:
    """Raise `UserError` for what only our own search does, where `generate` decodes the model."""
    decode, mode = config.decode, config.label.label_decoding
    asked = {
        f"-label_decoding {mode}": mode != "generate",
        "-do_sample": decode.do_sample,
        "-compile": decode.compile,
        "several -model": len(config.model.model) > 1,
    }
    raise_if_any(
        f"{flag}: not for a {model_type} model, which generate of transformers decodes; docs/architectures.md lists the"
        " models that our own search decodes"
        for flag, given in asked.items()
        if given and not architecture(model_type).own_search
    )


def check_virtual_tokens(decode: DecodeFlags, models: Sequence[InferenceModel]) -> None:
    """Raise `UserError` where virtual tokens of an adapter would be in front of sources that others encode."""
    flag = "-engine ctranslate2" if decode.engine == "ctranslate2" else "-compile" if decode.compile else ""
    raise_if_any(
        f"{flag}: not for {model.name}, an adapter with virtual tokens in front of the sources; leave it out"
        for model in models
        if flag and model.virtual_tokens
    )


def check_min_length(decode: DecodeFlags, target_limit: int) -> None:
    """Refuse a -min_predict_length that is more than the models have positions for."""
    longest = longest_output(target_limit)
    if longest and decode.min_predict_length > longest:
        raise UserError(
            f"-min_predict_length {decode.min_predict_length}: the model has positions for outputs of {longest} tokens;"
            " give that or less"
        )


def with_batches(decode: DecodeFlags, given: frozenset[str], accelerator: str) -> DecodeFlags:
    """The flags with batches that keep a GPU busy, where none are given."""
    if accelerator == "cpu" or given & {"batch_size", "max_tokens"}:
        return decode
    return replace(decode, batch_size=ROWS_ON_GPUS, max_tokens=TOKENS_ON_GPUS)


def with_length(decode: DecodeFlags, postprocessor: Postprocessor, tokenizer: Any, target_limit: int) -> DecodeFlags:
    """The flags with the longest prediction in tokens, where none is given, within the positions of the models."""
    if decode.max_predict_length:
        return decode
    longest = LONGEST_TEXT
    if postprocessor.longest_texts:
        longest = max(len(encoded_target(tokenizer, text)) for text in postprocessor.longest_texts) + SLACK
    limit = longest_output(target_limit) or longest
    return replace(decode, max_predict_length=max(min(longest, limit), decode.min_predict_length))


def resolve_prediction_task(config: InferenceConfig, state: Mapping[str, Any], place: str = "-model") -> Task:
    """The task of -task, else the checkpoint's, else seq2seq; the other flags override its parts.

    The name of a task of the checkpoint's own means that task, with the templates and labels of the training.

    Raises:
        UserError: no such task; a checkpoint of several tasks and no -task, `place` opens the message.
    """
    name = task_name(config.model.task)
    trained, tasks = trained_task(state, name, place), [str(task["name"]) for task in trained_tasks(state)]
    if not trained and len(tasks) > 1 and name not in task_names() and not name.endswith(FILE_SUFFIXES):
        raise UserError(
            f"-task {name}: no such task{closest(name, tasks)}; {place} was trained on {', '.join(tasks)}; or a"
            " built-in task, or a .yaml file that describes one"
        )
    return override_task(Task.from_dict(trained) if trained else get_task(name or "seq2seq"), config.data)


def with_trained_settings(config: InferenceConfig, given: frozenset[str], state: Mapping[str, Any]) -> InferenceConfig:
    """The config with the training's settings of the data in place of those that were not given."""
    saved = state.get("flags", {})
    taken = {
        group: {spec.name: saved[spec.name] for spec in specs if spec.trained and spec.name in saved.keys() - given}
        for group, specs in flag_groups(type(config)).items()
    }
    return replace(config, **{group: replace(getattr(config, group), **values) for group, values in taken.items()})


def answer_of(postprocessor: Postprocessor, output: OutputFlags) -> Callable[[str], str]:
    """What is written for a predicted text: with -label_correction nearest the one that it is corrected to."""
    if isinstance(postprocessor, FreeText) or output.label_correction != "nearest":
        return lambda text: text
    limit = largest_distance(output)

    @lru_cache(maxsize=2**16)
    def answer(text: str) -> str:
        (corrected,) = postprocessor.correct([text], limit)
        return text if corrected is None else corrected

    return answer


def largest_distance(output: OutputFlags) -> int | None:
    """Edit distance up to which a text is corrected; None = any."""
    return output.label_max_distance if output.label_max_distance >= 0 else None


def first_sources(split: EncodedSplit) -> list[np.ndarray]:
    """Token ids of the first rows, on which engines are compared."""
    return [split.source_ids(row) for row in range(min(PARITY_ROWS, len(split)))]


def find_label_decoding(ready: Ready, split: EncodedSplit) -> LabelDecoding | None:
    """How labels are predicted; None for plain generation."""
    config = ready.config
    return label_decoding(config, ready.postprocessor, ready.models[0], ready.encoder, split, ready.devices, tell)


def decoding_line(decode: DecodeFlags, devices: Devices, decoding: LabelDecoding | None) -> str:
    """Where and how it is decoded, in one line: the search, what the flags change, and the longest output."""
    parts = [devices.describe() if decode.engine == "torch" else f"{devices.count} x {devices.accelerator}"]
    if decoding is None and decode.width == 1 and not decode.do_sample:
        parts.append("greedy")
    parts += [
        f"-{name} {str(value).lower()}"
        for name, value in asdict(decode).items()
        if name != "max_predict_length" and value != getattr(GREEDY, name)
    ]
    parts.append(f"up to {decode.max_predict_length} tokens" if decoding is None else f"labels by {decoding.mode}")
    return f"predicting on {', '.join(parts)}; batches of {decode.batch_size} rows"


def make_engine(ready: Ready, decoding: LabelDecoding | None, examples: Sequence[np.ndarray]) -> Engine:
    """What decodes, not loaded yet. CTranslate2 is compared with our own engine on `examples`.

    Tells what decodes; and what the flags do not say: outputs that end before -max_predict_length, and a search that is
    not our own.

    Raises:
        UserError: a task of passages.
    """
    if ready.task.kind == PASSAGES:
        raise UserError(f"task {ready.task.name}: its model gives vectors of texts, and writes none; use embed.py")
    decode, models, devices = ready.config.decode, ready.models, ready.devices
    tell(decoding_line(decode, devices, decoding))
    longest = longest_output(ready.target_limit)
    if decoding is None and longest and decode.max_predict_length > longest:
        tell(f"-max_predict_length {decode.max_predict_length}: outputs end at {longest} tokens, the model's limit")
    if decode.engine == "torch":
        tell(*notes(ready.model_config, training=False))
    with_scores = is_structured(ready.config.output.save_output) or ready.config.length.doc_stride > 0
    if decode.engine == "ctranslate2":
        return convert(models[0], decode, with_scores, examples, devices.device(0))
    if decoding is None:
        return TorchEngine(models, decode, with_scores, passage=passage_rule(ready))
    if decoding.mode == "score":
        return ScoreEngine(models[0], decoding, devices)
    return TorchEngine(models, decode, with_scores, decoding.labels)


def passage_rule(ready: Ready) -> PassageRule | None:
    """What keeps answers to the passage; None where nothing does.

    Raises:
        UserError: what `PassageRule.of` raises; outputs that end before the text for no answer does.
    """
    if ready.config.label.label_decoding != "constrained":
        return None
    rule, most = PassageRule.of(ready.task), ready.config.decode.max_predict_length
    tokens = len(encoded_target(ready.encoder.tokenizer, rule.unanswerable)) if rule.unanswerable else 0
    if tokens > most:
        raise UserError(
            f"-max_predict_length {most}: the text for no answer, {rule.unanswerable!r}, has {tokens} tokens with its"
            " end; give at least that"
        )
    return rule
