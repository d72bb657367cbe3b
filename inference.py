"""Predict with a trained encoder-decoder: flags -> load -> predict -> write -> score -> report.

One prediction for each input row, in input order, on one or several GPUs or CPU processes. `-h` lists the flags.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console import tell
from errors import raise_if_any, run_command
from flag_parsing import help_text, parse_flags, to_dict, wants_help
from flags import InferenceConfig
from label_checks import check_labels
from task_utils import LabelMap, Task, Template, evaluation_labels, get_task
from validation import check_inference, override_task

if TYPE_CHECKING:
    from calibration import LabelCalibration
    from models.predictions import Prediction

USAGE = "usage: python inference.py -model CKPT_OR_FOLDER -test_data FILE [-save_output FILE] [flags]"


def main(argv: list[str]) -> int:
    if wants_help(argv):
        print(help_text(InferenceConfig, USAGE))
        return 0
    config, given, problems = parse_flags(InferenceConfig, argv)
    check_inference(config, problems)
    raise_if_any(problems)
    return run(config, given)


def run(config: InferenceConfig, given: frozenset[str]) -> int:
    from models.environment import quiet_libraries

    quiet_libraries()
    from datamodules.splits import Encoder, prediction_split
    from label_preparation import label_decoding
    from models.devices import resolve_devices, use_threads
    from models.generation import DecodingOptions
    from models.inference_model import InferenceModel
    from models.loading import source_limit, target_limit
    from models.prediction import predict

    data, decode = config.data, config.decode
    model = InferenceModel(config.model.model, config.model.tokenizer, data.source_language, data.target_language)
    model.check()
    state = model.saved_state()
    task = resolve_prediction_task(config, state)
    labels = evaluation_labels(task.label_map, Template(task.target_template, "-target_template"))
    check_labels(config.label.label_decoding, labels)
    config = with_trained_settings(config, given, state)
    data = config.data
    model_config, tokenizer = model.config_and_tokenizer()
    devices = resolve_devices(
        config.device.gpus, config.device.cpu_processes, config.device.float_precision, model_config.model_type
    )
    use_threads(devices)
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(data.cache_dir or temporary)
        limits = source_limit(model_config), target_limit(model_config)
        encoder = Encoder(data, config.length, task, tokenizer, limits[0], cache, limits[1])
        split, lines = prediction_split(encoder)
        tell(*lines, f"task {task.name}; labels: {labels.describe() if labels else 'free text'}")
        options = DecodingOptions(
            decode.beam_size, decode.length_penalty, decode.max_predict_length, decode.no_repeat_ngram_size
        )
        decoding = label_decoding(config, labels, model, encoder, split, devices, tell)
        began = time.monotonic()
        predictions = predict(model, split, decode.batch_size, options, devices, decoding)
        seconds = time.monotonic() - began
        references = [split.reference(row) for row in range(len(split))]
    count = len(predictions)
    tell(f"{count:,} rows predicted in {seconds:.1f} s, {count / max(seconds, 1e-9):,.1f} rows/s")
    finish(config, task, labels, references, predictions, decoding.calibration if decoding else None)
    return 0


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
    references: Sequence[str | None],
    predictions: Sequence[Prediction],
    calibration: LabelCalibration | None = None,
) -> None:
    """Write the predictions and references that were asked for; then score them, print, and write the report.

    Scoring comes last: whatever happens there, hours of prediction are not lost.
    """
    from label_report import calibration_settings, with_probabilities
    from metrics import score
    from models.durable import write_json
    from reporting import report_dict, report_text

    texts = [prediction.text for prediction in predictions]
    output = config.output
    max_distance = output.label_max_distance if output.label_max_distance >= 0 else None
    if output.save_output:
        answers = list(texts)
        if labels and output.label_correction == "nearest":
            corrected = labels.correct(texts, max_distance)
            answers = [text if label is None else label for text, label in zip(texts, corrected, strict=True)]
        write_lines(Path(output.save_output), answers, config.data.tsv_escapes)
        tell(f"predictions: {output.save_output}")
    if output.save_label:
        write_lines(Path(output.save_label), [text or "" for text in references], config.data.tsv_escapes)
        tell(f"references: {output.save_label}")
    scores = score(references, texts, labels, output.label_correction, max_distance, names=task.metrics)
    settings = to_dict(config)
    if labels and config.label.label_decoding == "score" and calibration:
        scores = with_probabilities(scores, references, predictions, labels)
        settings["label_calibration"] = calibration_settings(calibration, labels)
    tell(report_text(scores).rstrip("\n"))
    if output.save_report:
        write_json(Path(output.save_report), report_dict(scores, settings))
        tell(f"report: {output.save_report}")


def write_lines(path: Path, texts: Sequence[str], escapes: bool) -> None:
    """One text a line, UTF-8; the file appears whole or not at all."""
    from datamodules.escapes import escape_cell, flatten_cell
    from models.durable import write_file

    one_line = escape_cell if escapes else flatten_cell
    content = "".join(f"{one_line(text)}\n" for text in texts).encode("utf-8", errors="replace")
    write_file(path, lambda file: file.write(content))


if __name__ == "__main__":
    run_command(main)
