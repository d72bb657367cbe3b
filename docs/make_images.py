"""Draw the figures of the README from a real run: a training curve, and a report.

    python docs/make_images.py -run runs/quickstart -report runs/quickstart/report.json

Writes `training_curve.png` (loss, learning rate, and exact match or the task's metric over the optimizer steps, from
metrics.jsonl) and `report.png` (metrics, and the confusion matrix of a task with labels). Needs matplotlib
(requirements-dev.txt). Its own font has no Hangul: a label that it cannot show is drawn as `label 1`, `label 2`, ...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from checkpoints.run_folder import STEP_LOG  # noqa: E402
from config.parser import flag, information, parse_flags  # noqa: E402
from metrics.registry import METRICS, POINTS  # noqa: E402
from utils.console import run_command  # noqa: E402
from utils.errors import UserError, raise_if_any  # noqa: E402

USAGE = "usage: python docs/make_images.py -run FOLDER -report FILE [-output FOLDER]"
SHOWN_METRICS = ("exact_match", "accuracy", "accuracy_corrected", "macro_f1", "token_accuracy")
BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#4a5568"
MATRIX_LIMIT = 20  # labels


@dataclass(frozen=True)
class ImageFlags:
    """Figures"""

    run: str = flag("", "Folder of a training run, with its metrics.jsonl.", required=True, metavar="FOLDER")
    report: str = flag("", "A report.json of inference.py or a test_report.json.", required=True, metavar="FILE")
    output: str = flag("docs/images", "Folder of the figures.", metavar="FOLDER")


@dataclass(frozen=True)
class ImageConfig:
    """What the figures are drawn from."""

    images: ImageFlags = ImageFlags()


def main(argv: list[str]) -> int:
    if told := information(ImageConfig, USAGE, argv):
        print(told)
        return 0
    config, _, problems = parse_flags(ImageConfig, argv)
    raise_if_any(problems)
    flags = config.images
    entries = read_log(Path(flags.run) / STEP_LOG)
    report = read_report(Path(flags.report))
    try:
        import matplotlib
    except ImportError:
        raise UserError("docs/make_images.py needs matplotlib: pip install -r requirements-dev.txt") from None
    matplotlib.use("Agg")
    folder = Path(flags.output)
    folder.mkdir(parents=True, exist_ok=True)
    figures = figures_text(report)
    for name, figure in (("training_curve.png", draw_training(entries)), ("report.png", draw_report(report))):
        figure.savefig(folder / name, dpi=144, metadata={"Software": None, "Description": figures})
        print(folder / name)
    return 0


def read_log(path: Path) -> list[dict[str, Any]]:
    """Entries of a metrics.jsonl. Raises `UserError` when it cannot be read or has no training step."""
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"-run: {path} cannot be read ({error})") from None
    if not any(entry["phase"] == "train" for entry in entries):
        raise UserError(f"-run: {path} holds no training step")
    return entries


def read_report(path: Path) -> dict[str, Any]:
    """A report of -save_report. Raises `UserError` when it cannot be read or holds no metrics."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"-report: {path} cannot be read ({error})") from None
    if not isinstance(report, dict) or not report.get("metrics"):
        raise UserError(f"-report: {path} holds no metrics (a report of rows with references is needed)")
    return report


def figures_text(report: dict[str, Any]) -> str:
    """The metrics as the README writes them, kept in both images: text and figures have to come from one run."""
    return ", ".join(f"{name} {METRICS[name].text(value)}" for name, value in report["metrics"].items())


def draw_training(entries: Sequence[dict[str, Any]]) -> Any:
    """Loss, learning rate and the metric of the generated validation rows over the optimizer steps."""
    from matplotlib.figure import Figure

    train = [entry for entry in entries if entry["phase"] == "train"]
    valid = [entry for entry in entries if entry["phase"] == "valid"]
    metric = next((name for name in SHOWN_METRICS if valid and name in valid[-1]), "")
    figure = Figure(figsize=(8, 7.2 if metric else 5), layout="constrained")
    panels = figure.subplots(3 if metric else 2, 1, sharex=True)
    loss, rate = panels[0], panels[1]
    loss.plot(steps(train), values(train, "loss"), color=BLUE, linewidth=1.2, label="training")
    if valid:
        loss.plot(steps(valid), values(valid, "val_loss"), color=ORANGE, marker="o", markersize=4, label="validation")
        loss.legend(frameon=False)
    losses = [*values(train, "loss"), *values(valid, "val_loss")]
    loss.set(ylabel="loss per token (nats)", yscale="log" if max(losses) > 10 * min(losses) > 0 else "linear")
    rate.plot(steps(train), values(train, "learning_rate"), color=GREY, linewidth=1.2)
    rate.set(ylabel="learning rate")
    if metric:
        panels[2].plot(steps(valid), values(valid, metric), color=ORANGE, marker="o", markersize=4)
        panels[2].set(ylabel=f"{metric.replace('_', ' ')} (validation)", ylim=(-0.02, 1.02))
    panels[-1].set(xlabel="optimizer step")
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def steps(entries: Sequence[dict[str, Any]]) -> list[int]:
    return [entry["step"] for entry in entries]


def values(entries: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [entry[name] for entry in entries]


def draw_report(report: dict[str, Any]) -> Any:
    """Bars of the metrics; beside them the confusion matrix, where there is one."""
    from matplotlib.figure import Figure

    matrix = report.get("confusion_matrix")
    matrix = matrix if matrix and len(matrix.get("labels", ())) in range(1, MATRIX_LIMIT + 1) else None
    figure = Figure(figsize=(9, 3.6) if matrix else (7, 3.2), layout="constrained")
    panels = figure.subplots(1, 2 if matrix else 1, squeeze=False)[0]
    draw_metrics(panels[0], report["metrics"])
    panels[0].set_title(f"{report['scored_rows']:,} rows with a reference", fontsize=10)
    if matrix:
        draw_matrix(panels[1], matrix)
        panels[1].set_title(f"after correction; {report['invalid_outputs']:,} invalid outputs", fontsize=10)
    return figure


def draw_metrics(panel: Any, metrics: dict[str, float]) -> None:
    """A bar for each metric, on one scale from 0 to 1; the number as the report has it."""
    names = list(metrics)
    in_points = [METRICS[name].scale == POINTS for name in names]
    shares = [metrics[name] / (100 if points else 1) for name, points in zip(names, in_points, strict=True)]
    bars = panel.barh(range(len(names)), shares, color=BLUE, height=0.6)
    numbers = [METRICS[name].text(metrics[name]) for name in names]
    panel.bar_label(bars, numbers, padding=4, fontsize=9)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set(xlim=(0, 1.18), xticks=[0, 0.25, 0.5, 0.75, 1])
    panel.set_xlabel("fraction" + (" (points / 100)" if any(in_points) else ""))
    panel.spines[["top", "right"]].set_visible(False)


def draw_matrix(panel: Any, matrix: dict[str, Any]) -> None:
    """Rows: reference; columns: prediction. The column of invalid outputs is left out when it is empty."""
    rows = matrix["rows"]
    columns = matrix["columns"]
    if not any(row[-1] for row in rows):
        rows, columns = [row[:-1] for row in rows], columns[:-1]
    highest = max(max(row) for row in rows) or 1
    panel.imshow(rows, cmap="Blues", vmin=0, vmax=highest, aspect="auto")
    for number, row in enumerate(rows):
        for column, count in enumerate(row):
            colour = "white" if count > highest * 0.6 else "black"
            panel.text(column, number, f"{count:,}", ha="center", va="center", color=colour, fontsize=9)
    panel.set_xticks(range(len(columns)), drawable(columns), rotation=30 if len(columns) > 4 else 0)
    panel.set_yticks(range(len(rows)), drawable(matrix["labels"]))
    panel.set(xlabel="prediction", ylabel="reference")


def drawable(labels: Sequence[str]) -> list[str]:
    """The labels as the figure's font can show them."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    known = FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap()
    return [
        label if all(ord(character) in known for character in label) else f"label {number}"
        for number, label in enumerate(labels, 1)
    ]


if __name__ == "__main__":
    run_command(main)
