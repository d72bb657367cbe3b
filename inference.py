"""Predict with a trained encoder-decoder: flags -> load -> predict -> write -> score -> report.

One prediction for each input row, in input order, on one or several GPUs or CPU processes; a command that was stopped
goes on where it was. `-h` lists the flags.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console import tell
from errors import RunError, Terminated, raise_if_any, run_command
from flag_parsing import help_text, parse_flags, to_dict, wants_help
from flags import DecodeFlags, InferenceConfig
from inference_validation import check_inference
from label_checks import check_labels
from models.parts_names import is_structured
from task_utils import LabelMap, Task, Template, evaluation_labels, get_task
from validation import override_task

if TYPE_CHECKING:  # the heavy imports wait until the flags are known to be right
    from calibration import LabelCalibration
    from datamodules.encoded_split import EncodedSplit
    from models.devices import Devices
    from models.generation import DecodingOptions
    from models.label_prediction import LabelDecoding
    from models.predictions import Prediction

USAGE = "usage: python inference.py -model CKPT_OR_FOLDER -test_data FILE [-save_output FILE] [flags]"
SEARCH = ("beam_size", "length_penalty", "max_predict_length", "min_predict_length", "no_repeat_ngram_size")
ARITHMETIC = ("batch_size", "float_precision", "engine", "compute_type")
DECIDING = (*SEARCH, "repetition_penalty", "num_return", "early_stopping", *ARITHMETIC)  # what predictions depend on
OF_SAMPLING = ("temperature", "top_k", "top_p", "seed")


def main(argv: list[str]) -> int:
    if wants_help(argv):
        print(help_text(InferenceConfig, USAGE))
        return 0
    config, given, problems = parse_flags(InferenceConfig, argv)
    check_inference(config, given, problems)
    raise_if_any(problems)
    return run(config, given)


def run(config: InferenceConfig, given: frozenset[str]) -> int:
    from models.environment import quiet_libraries

    quiet_libraries()
    from datamodules.splits import Encoder, prediction_split
    from label_preparation import label_decoding
    from models.devices import resolve_devices, use_threads
    from models.inference_model import inference_models, shared_limits
    from models.label_prediction import ScoreEngine
    from models.prediction import Engine, predict
    from models.torch_engine import TorchEngine

    data, decode = config.data, config.decode
    models = inference_models(config.model.model, config.model.tokenizer, data.source_language, data.target_language)
    state = models[0].saved_state()
    task = resolve_prediction_task(config, state)
    labels = evaluation_labels(task.label_map, Template(task.target_template, "-target_template"))
    check_labels(config.label.label_decoding, labels)
    config = with_trained_settings(config, given, state)
    data = config.data
    model_config, tokenizer = models[0].config_and_tokenizer()
    devices = resolve_devices(
        config.device.gpus, config.device.cpu_processes, config.device.float_precision, model_config.model_type
    )
    use_threads(devices)
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(data.cache_dir or temporary)
        source_limit, target_limit = shared_limits(models)
        encoder = Encoder(data, config.length, task, tokenizer, source_limit, cache, target_limit)
        split, lines = prediction_split(encoder)
        tell(*lines, f"task {task.name}; labels: {labels.describe() if labels else 'free text'}")
        structured = is_structured(config.output.save_output)
        options = decoding_options(decode)
        decoding = label_decoding(config, labels, models[0], encoder, split, devices, tell)
        engine: Engine = TorchEngine(models, options, structured)
        if decode.engine == "ctranslate2":
            from models.engines import convert

            engine = convert(models[0], options, decode.compute_type, structured, split, devices.device(0))
        elif decoding and decoding.mode == "score":
            engine = ScoreEngine(models[0], decoding, devices)
        elif decoding:
            engine = TorchEngine(models, options, structured, decoding.texts, decoding.separator)
        began = time.monotonic()
        with parts_of(config, split, devices, decoding) as parts:
            with telling_what_is_kept(split, decode.batch_size, parts, bool(config.output.save_output)):
                predictions = predict(engine, split, decode.batch_size, devices, parts)
            seconds = time.monotonic() - began
            tell(f"{len(split):,} rows predicted in {seconds:.1f} s, {len(split) / max(seconds, 1e-9):,.1f} rows/s")
            finish(config, task, labels, split, predictions, decoding.calibration if decoding else None)
    return 0


def decoding_options(decode: DecodeFlags) -> DecodingOptions:
    """The options that the flags ask for."""
    from models.generation import DecodingOptions
    from models.sampling import SamplingOptions

    sampling = SamplingOptions(decode.temperature, decode.top_k, decode.top_p, decode.seed)
    return DecodingOptions(
        beam_size=decode.beam_size,
        length_penalty=decode.length_penalty,
        max_length=decode.max_predict_length,
        no_repeat_ngram_size=decode.no_repeat_ngram_size,
        min_length=decode.min_predict_length,
        repetition_penalty=decode.repetition_penalty,
        num_return=decode.num_return,
        early_stopping=decode.early_stopping,
        sampling=sampling if decode.do_sample else None,
    )


@contextmanager
def parts_of(
    config: InferenceConfig, split: EncodedSplit, devices: Devices, decoding: LabelDecoding | None
) -> Iterator[Path]:
    """The folder of finished parts: beside -save_output until all is written, else a temporary one."""
    from models.parts_folder import content_of, open_parts, remove_parts

    if not config.output.save_output:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    output, flags = Path(config.output.save_output), to_dict(config)
    names = (*DECIDING, *OF_SAMPLING) if config.decode.do_sample else DECIDING
    identity = {
        "rows": len(split),
        "input (texts and encoding)": split.fingerprint,
        "-model": [content_of(name) for name in config.model.model],
        "-tokenizer": content_of(config.model.tokenizer) if config.model.tokenizer else "",
        **{f"-{name}": flags[name] for name in names},
        "-label_decoding": decoding.describe() if decoding else "generate",
        "device": devices.accelerator,
    }
    with open_parts(output, identity, config.output.overwrite) as folder:
        yield folder
    remove_parts(output)


@contextmanager
def telling_what_is_kept(split: EncodedSplit, batch_size: int, parts: Path, kept: bool) -> Iterator[None]:
    """Say at a stop how much is finished and how it is completed."""
    from models.prediction import finished_rows

    def words() -> str:
        rows = finished_rows(split, batch_size, parts)
        return f"{rows:,} of {len(split):,} rows are finished, in {parts}; the same command goes on from there"

    try:
        yield
    except (KeyboardInterrupt, Terminated):
        tell(words() if kept else "nothing is kept without -save_output")
        raise
    except RunError as error:
        raise RunError(f"{error}; {words()}" if kept else str(error)) from error


def resolve_prediction_task(config: InferenceConfig, state: Mapping[str, Any]) -> Task:
    """The task of -task, else the checkpoint's, else seq2seq; the other flags override its parts."""
    if config.model.task:
        task = get_task(config.model.task)
    elif state.get("task"):
        task = Task.from_dict(state["task"])
    else:
        task = get_task("seq2seq")
    return override_task(task, config.data)


def with_trained_settings(config: InferenceConfig, given: frozenset[str], state: Mapping[str, Any]) -> InferenceConfig:
    """The config with the training's settings of the data in place of those that were not given."""
    saved = state.get("flags", {})

    def taken(*names: str) -> dict[str, Any]:
        return {name: saved[name] for name in names if name not in given and name in saved}

    data = replace(config.data, **taken("tsv_escapes"))
    return replace(config, data=data, length=replace(config.length, **taken("max_seq_length")))


def finish(
    config: InferenceConfig,
    task: Task,
    labels: LabelMap | None,
    split: EncodedSplit,
    predictions: Sequence[Prediction],
    calibration: LabelCalibration | None = None,
) -> None:
    """Write the predictions and references that were asked for; then score them, print, and write the report.

    Scoring comes last: whatever happens there, hours of prediction are not lost.
    """
    from datamodules.readers import input_records
    from label_report import calibration_settings, with_probabilities
    from metrics import correct, score
    from models.durable import write_json
    from models.prediction_output import output_rows, plain_lines, write_lines, write_rows
    from reporting import report_dict, report_text

    output, data = config.output, config.data
    scored = config.label.label_decoding == "score"
    max_distance = output.label_max_distance if output.label_max_distance >= 0 else None
    texts: Sequence[str] = [prediction.text for prediction in predictions]
    references = [split.reference(row) for row in range(len(split))]
    if output.save_output:
        answers = texts
        if labels and output.label_correction == "nearest":
            corrected = correct(texts, labels, "nearest", max_distance)
            answers = [text if label is None else label for text, label in zip(texts, corrected, strict=True)]
        records = input_records(data.test_data or data.valid_data) if output.keep_fields else None
        rows = output_rows(predictions, split, answers, records)
        shown = labels.texts if labels and scored else ()
        write_rows(Path(output.save_output), rows, data.tsv_escapes, shown, config.decode.num_return > 1)
        tell(f"predictions: {output.save_output}")
    if output.save_label:
        write_lines(Path(output.save_label), plain_lines((text or "" for text in references), data.tsv_escapes))
        tell(f"references: {output.save_label}")
    scores = score(references, texts, labels, output.label_correction, max_distance, names=task.metrics)
    settings = to_dict(config)
    if labels and scored and calibration:
        scores = with_probabilities(scores, references, predictions, labels)
        settings["label_calibration"] = calibration_settings(calibration, labels)
    tell(report_text(scores).rstrip("\n"))
    if output.save_report:
        write_json(Path(output.save_report), report_dict(scores, settings))
        tell(f"report: {output.save_report}")


if __name__ == "__main__":
    run_command(main)
