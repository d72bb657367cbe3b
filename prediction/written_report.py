"""The file of `-save_report`: JSON, or a page with charts and the worst rows. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from config.flags.inference import OutputFlags
from datamodules.encoding.store import EncodedSplit
from datamodules.encoding.tokens import make_encoder
from datamodules.splits import evenly_spaced
from metrics.score import Scores
from prediction.lazy_sequence import LazySequence
from reports.charts import Histogram, Reliability, histogram
from reports.images import save_images
from reports.outputs import Look, worst_rows
from reports.page import PAGE_ENDING, images_folder, save_page
from reports.prediction import prediction_page, score_charts
from utils.console import tell
from utils.files import run_error, write_json

MOST_ENCODED = 2000  # predictions whose tokens are counted, evenly spaced


def save_report(output: OutputFlags, report: dict[str, Any], look: Callable[[], Look], about: Sequence[str]) -> None:
    """Write the report in the form of its ending.

    Args:
        look: gives what a page shows of the rows; called for a page alone.
        about: what was predicted with what, for the page.
    """
    path = Path(output.save_report)
    if path.suffix.lower() == PAGE_ENDING:
        seen, title = look(), "Report of predictions"
        save_page(path, prediction_page(report, seen, title, about), output.overwrite)
        if output.report_images:
            charts = [(chart.name, chart) for chart in score_charts(report, seen)]
            tell(*save_images(images_folder(path), charts, output.overwrite))
    else:
        with run_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, report, output.overwrite)
    tell(f"report written to {path}")


def look_at_predictions(
    scores: Scores, split: EncodedSplit, predictions: Sequence[Any], tokenizer: Any, cut_offs: tuple[int, int]
) -> Look:
    """What a page shows of rows that were predicted.

    Args:
        predictions: a `generation.engines.base.Prediction` of each row.
        cut_offs: the longest source and prediction in tokens; 0 = none.
    """
    references = LazySequence(len(split), split.reference)
    texts = LazySequence(len(split), lambda row: predictions[row].text)
    single = bool(scores.reliability)  # probabilities of labels of which a row has one
    sure = (max(found.label_probabilities) if single else found.score for found in predictions)
    look = worst_rows(scores, references, texts, sure, split.source_text)
    rows = evenly_spaced(len(split), MOST_ENCODED) if len(split) else ()
    chosen = pa.array([texts[int(row)] for row in rows], pa.large_string())
    written = make_encoder(tokenizer).encode(chosen, 0, as_target=True).full_lengths
    wanted = split.target_lengths[split.target_lengths > 0]
    sampled = ", evenly spaced" if len(rows) < len(split) else ""
    outputs = {"references": wanted, f"predictions{sampled}": written}
    lengths = (
        histogram("source_lengths", "Sources", "tokens", {"sources": split.source_lengths}, cut_offs[0]),
        histogram("output_lengths", "References and predictions", "tokens", outputs, cut_offs[1]),
    )
    return _with_charts(look, scores, lengths)


def look_at_texts(
    scores: Scores,
    references: Sequence[str | None],
    predictions: Sequence[str],
    source_of: Callable[[int], str | None],
) -> Look:
    """What a page shows of rows that are scored alone: lengths are in letters."""
    look = worst_rows(scores, references, predictions, [None] * len(predictions), source_of)
    lengths = {
        "references": [len(text) for text in references if text is not None],
        "predictions": [len(text) for text in predictions],
    }
    return _with_charts(look, scores, (histogram("output_lengths", "References and predictions", "letters", lengths),))


def _with_charts(look: Look, scores: Scores, lengths: Sequence[Histogram | None]) -> Look:
    shown = tuple(chart for chart in lengths if chart)
    sure = Reliability("calibration", "Probabilities and how often they are right", scores.reliability)
    return replace(look, lengths=shown, reliability=sure if scores.reliability else None)
