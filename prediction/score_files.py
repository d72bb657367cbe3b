"""Scores predictions in files without a model: read -> compare the numbers of rows -> score -> report. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.checks import check_combinations, collect
from config.flags.data import LengthFlags
from config.flags.inference import InferenceConfig
from config.parser import flag_groups, to_dict
from datamodules.readers.encodings import BYTE_ORDER_MARK
from datamodules.readers.paths import check_data_paths
from datamodules.splits import RowEncoder, report_lines
from metrics.registry import missing_packages
from metrics.report import Outputs, report_dict, report_text
from metrics.score import Scores, score
from metrics.uncertainty.conformal import AnswerScores
from metrics.uncertainty.probabilities import PERPLEXITY
from postprocessors.answers import expected
from postprocessors.base import said
from prediction.checks import check_outputs, named_metrics, with_metrics
from prediction.confidence import confidence_of
from prediction.groups import Groups, group_dict, groups_of
from prediction.lazy_sequence import LazySequence
from prediction.written_report import look_at_texts, save_report
from task_utils import Task, get_task, override_task
from utils.console import tell
from utils.errors import UserError, raise_if_any
from utils.escapes import unescape_cell
from utils.json_files import parse_json
from utils.tables import counted

DATA_ENDINGS = (".tsv", ".csv", ".json", ".jsonl", ".parquet")
OF_PREDICTING = ("length", "decode", "label", "device")  # groups of flags


@dataclass(frozen=True)
class References:
    """The reference of every row, None where there is none, and its source, None where the file holds none."""

    texts: Sequence[str | None]
    source_of: Callable[[int], str | None]
    headers: Mapping[str, str] | None = None  # as in `EncodeReport`; None for plain lines
    directions: Groups | None = None  # of translation


def check_scoring(config: InferenceConfig, given: frozenset[str], problems: list[str]) -> None:
    """Every problem of an `inference.py -score_only` command line, appended to `problems`."""
    files = config.scoring
    problems += [f"-{name} is required" for name in ("predictions", "references") if not getattr(files, name)]
    groups = flag_groups(type(config))
    idle = [f"-{spec.name}" for group in OF_PREDICTING for spec in groups[group] if spec.name in given]
    if idle:
        problems.append(f"{', '.join(idle)}: not with -score_only: nothing is predicted")
    check_combinations(config, problems)
    problems += [f"-predictions {path}: no such file" for path in files.predictions if not os.path.isfile(path)]
    if len(files.predictions) > 2:
        problems.append(f"-predictions: {len(files.predictions)} files; give one, or two to compare")
    elif len(files.predictions) == 2 and not config.output.confidence:
        problems.append("-predictions: two files are compared at a level: give -confidence, for example 0.95")
    plain = [path for path in files.references if is_plain(path)]
    if plain and len(files.references) > 1:
        problems.append(f"-references {plain[0]}: a file of plain lines stands alone")
    problems += check_data_paths("-references", [path for path in files.references if path not in plain])
    check_outputs(config, problems)
    collect(problems, lambda: scored_task(config))


def scored_task(config: InferenceConfig) -> Task:
    """The task whose outputs are scored.

    Raises:
        UserError: no such task, flags that do not go with it, or a metric that does not or lacks a package.
    """
    if PERPLEXITY in named_metrics(config.output.metrics):
        raise UserError(f"-metrics {PERPLEXITY}: not with -score_only: it is computed by the model, which is not there")
    task = with_metrics(override_task(get_task(config.model.task or "seq2seq"), config.data), config.output.metrics)
    raise_if_any(missing_packages(task.metrics))
    return task


def score_files(config: InferenceConfig, temporary: Path) -> None:
    """Score the predictions, print the report, and write it.

    Args:
        temporary: folder of the references while they are read.

    Raises:
        UserError: a file of another form, or as many rows as the other does not have.
    """
    output, task = config.output, scored_task(config)
    paths, given = config.scoring.predictions, " ".join(config.scoring.references)
    found = [read_predictions(path, config.data.tsv_escapes) for path in paths]
    references = read_references(config, task, temporary)
    raise_if_any(
        f"-predictions {path} has {counted(len(texts), 'row')}, but -references {given} has"
        f" {counted(len(references.texts), 'row')}; give the references of the rows that were predicted"
        for path, (texts, _) in zip(paths, found, strict=True)
        if len(texts) != len(references.texts)
    )
    (predictions, answered), *others = found
    processor, limit = task.postprocessor, output.label_max_distance if output.label_max_distance >= 0 else None
    options: dict[str, Any] = {"correction": output.label_correction, "max_distance": limit, "names": task.metrics}

    def scored_as(wanted: Sequence[str | None], found: Sequence[str]) -> Scores:
        return score(wanted, found, processor, **options)

    groups = references.directions
    if output.group_by:
        if references.headers is None:
            raise UserError(f"-group_by: plain lines have no columns; give -references the data file, not {given}")
        escapes, headers = config.data.tsv_escapes, references.headers
        groups = groups_of(output.group_by, config.scoring.references, task.layout, headers, escapes)
    try:
        scores = scored_as(references.texts, predictions)
        by_group = groups.scores(references.texts, predictions, scored_as) if groups else {}
    except ValueError as error:
        raise UserError(f"-references {given}: {error}") from error
    pairs = zip(references.texts, predictions, strict=True)
    rows = ((None if wanted is None else expected(processor, wanted, text), text, False) for wanted, text in pairs)
    tell(f"task {task.name}; {said(processor)}")
    tell(*report_text(scores, Outputs.of(rows, references.source_of)).splitlines())
    content = report_dict(scores, to_dict(config))
    if answered is not None:
        answers = AnswerScores.of(answered, predictions, references.texts)
        tell("", answers.line())
        content["abstain"] = answers.to_dict()
    if groups:
        tell(*groups.lines(by_group))
        content["groups"] = group_dict(by_group)
    if output.confidence:
        compared = [texts for texts, _ in others]
        confidence = confidence_of(output.confidence, scores, references.texts, predictions, processor, *compared)
        tell(*confidence.lines())
        content["confidence"] = confidence.to_dict()
    if output.save_report:
        about = (f"task {task.name}", *paths, f"against {given}")
        save_report(
            output, content, lambda: look_at_texts(scores, references.texts, predictions, references.source_of), about
        )


def read_predictions(path: str, escapes: bool) -> tuple[list[str], list[bool] | None]:
    """The predictions of an output of `inference.py`, by its ending: .jsonl, .tsv, or plain lines; and whether each row
    is answered, None where the file does not say.

    The prediction of a row which -abstain left unanswered is its likeliest label, as in the scores of the prediction
    itself; plain lines do not tell such a row.

    Args:
        escapes: whether plain lines hold escapes.

    Raises:
        UserError: with file:line, what is no line of such a file.
    """
    rows = list(_predictions(path, escapes))
    says = any(left is not None for _, left in rows)
    return [text for text, _ in rows], [not left for _, left in rows] if says else None


def _predictions(path: str, escapes: bool) -> Iterator[tuple[str, bool | None]]:
    """Each prediction, and whether its row was left unanswered, None where the file does not say."""
    ending = Path(path).suffix.lower()
    if ending == ".jsonl":
        for place, line in _lines(path, "-predictions"):
            try:
                record = parse_json(line)
                left = record["abstained"] is True if "abstained" in record else None
                text = likeliest(record["label_probabilities"]) if left else record["prediction"]
            except (ValueError, TypeError, KeyError, AttributeError):
                text = None
            if not isinstance(text, str):
                raise UserError(f"{place}: no JSON object with a text 'prediction', as -save_output writes it")
            yield text, left
    elif ending == ".tsv":
        lines = _lines(path, "-predictions")
        _, heading = next(lines, ("", ""))
        names = heading.split("\t")
        if "prediction" not in names:
            raise UserError(
                f"-predictions {path}: a .tsv as -save_output writes it has a column 'prediction'; there are:"
                f" {', '.join(names)[:200]}; give plain lines as .txt"
            )
        for place, line in lines:
            cells = line.split("\t")
            if len(cells) != len(names):
                raise UserError(f"{place}: {counted(len(cells), 'cell')}, but the header has {len(names)}")
            row = dict(zip(names, cells, strict=True))
            left = row["abstained"] == "true" if "abstained" in row else None
            if not left:
                yield unescape_cell(row["prediction"])[0], left
                continue
            try:
                yield likeliest(parse_json(unescape_cell(row["label_probabilities"])[0])), left
            except (ValueError, TypeError, KeyError, AttributeError):
                raise UserError(f"{place}: abstained, but without 'label_probabilities' to score") from None
    else:
        for _, line in _lines(path, "-predictions"):
            yield unescape_cell(line)[0] if escapes else line, None


def likeliest(probabilities: dict[str, float]) -> str:
    """The label of the highest probability, of equal ones the first."""
    return max(probabilities, key=probabilities.__getitem__)


def _lines(path: str, flag: str) -> Iterator[tuple[str, str]]:
    """Every line with its place for messages."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            place = f"{flag} {path}:{number}"
            try:
                line = (raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw).decode("utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{place}: invalid UTF-8") from None
            yield place, line.removesuffix("\n").removesuffix("\r")


def is_plain(path: str) -> bool:
    """Whether a file of references holds plain lines: no ending of a data file, and no tab in its first line."""
    if path.lower().endswith(DATA_ENDINGS) or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return b"\t" not in file.readline(1 << 20)


def read_references(config: InferenceConfig, task: Task, temporary: Path) -> References:
    """The references of plain lines, or of a data file as the task reads it for a prediction.

    Raises:
        UserError: a line that is no label of the task, and all that reading raises.
    """
    paths, data = config.scoring.references, config.data
    if not is_plain(paths[0]):
        from transformers import ByT5Tokenizer  # knows every text and needs no files

        encoder = RowEncoder(data, LengthFlags(), task, ByT5Tokenizer(), 0, temporary)
        split = encoder.encode("-references", paths, keep_all=True)
        tell(*report_lines("-references", split.report))
        texts, directions = LazySequence(len(split), split.reference), Groups.of_directions(split)
        return References(texts, split.source_text, split.report.headers, directions)
    lines: list[str | None] = []
    processor = task.postprocessor
    for place, line in _lines(paths[0], "-references"):
        text = unescape_cell(line)[0] if data.tsv_escapes else line
        if text and task.label_map is not None and processor.value(text) is None:
            raise UserError(f"{place}: {text[:100]!r} is no label of the task; labels: {processor.describe()}")
        if text and (problem := processor.reference_problem(text)):
            raise UserError(f"{place}: {problem}: {text[:100]!r}")
        lines.append(text or None)
    tell(f"-references {paths[0]}: {counted(len(lines), 'plain line')}")
    return References(lines, lambda _: None)
