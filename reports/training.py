"""The page of a training run, from the files that lie in its folder: whenever it is made, it is the same."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metrics.registry import METRICS
from reports import scores, svg
from reports.charts import Chart, Curves, Histogram, Line, line
from reports.outputs import Look
from reports.page import data_text, page, section
from reports.prediction import REPORT_STYLE, score_charts, score_sections
from utils.console import duration
from utils.tables import counted

OF_TRAINING = {
    "learning_rate": "Learning rate",
    "gradient_norm": "Gradient norm",
    "tokens_per_second": "Tokens a second",
}
STEP = "optimizer step"
MOST_FIGURES = 24  # of the validations
MOST_LINES = svg.SERIES  # of a chart
NO_FIGURES = ("step", "epoch", "phase")

Course = dict[str, tuple["array[float]", "array[float]"]]  # figure -> its steps and values


@dataclass
class RunRecord:
    """What a run left: its flags with what they came to, its logs, and the report of its test rows."""

    config: Mapping[str, Any] = field(default_factory=dict)
    train: Course = field(default_factory=dict)
    valid: Course = field(default_factory=dict)
    epochs: Sequence[Mapping[str, Any]] = ()
    test: Mapping[str, Any] | None = None

    def add(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Take in lines of metrics.jsonl, of which numbers alone are kept."""
        for entry in entries:
            course = self.valid if entry.get("phase") == "valid" else self.train
            for name, value in entry.items():
                if name not in NO_FIGURES and isinstance(value, int | float):
                    steps, values = course.setdefault(name, (array("d"), array("d")))
                    steps.append(entry["step"])
                    values.append(value)


def training_page(record: RunRecord) -> str:
    """The page: how the run ended, its curves, lengths, the scores of the test rows, settings and versions."""
    config = {name: value for name, value in record.config.items() if name != "resolved"}
    resolved = record.config.get("resolved", {})
    about = (*_task_names(resolved), config.get("init_model") or config.get("config_path"), config.get("save_path"))
    told = " · ".join(data_text(str(text), 200) for text in about if text)
    curves = "".join(map(svg.curves, run_curves(record)))
    lengths = "".join(svg.histogram(chart) for chart in map(Histogram.from_dict, resolved.get("lengths", ())))
    body = (
        f'<h1>Report of a training</h1>\n<p class="quiet">{told}</p>\n'
        + _summary(record, config, resolved)
        + section("Course", f'<div class="charts">\n{curves}</div>\n' if curves else "")
        + section("Lengths of the training rows", f'<div class="charts">\n{lengths}</div>\n' if lengths else "")
        + _test(record.test)
        + scores.settings({**config, **{name: resolved[name] for name in resolved if name not in _APART}})
        + scores.versions()
    )
    return page("Report of a training", body, REPORT_STYLE)


_APART = ("task", "tasks", "lengths", "versions", "learning_rate", "lr_scheduler", "warmup_steps")


def run_charts(record: RunRecord) -> list[tuple[str, Chart]]:
    """All charts of the page by name, for pictures."""
    lengths = map(Histogram.from_dict, record.config.get("resolved", {}).get("lengths", ()))
    charts: list[Chart] = [*run_curves(record), *lengths]
    found = [(chart.name, chart) for chart in charts]
    for name, content in _test_reports(record.test).items():
        start = f"test-{name}-" if name else "test-"
        found += [(start + chart.name, chart) for chart in score_charts(content, _look(content))]
    return found


def run_curves(record: RunRecord) -> list[Curves]:
    """Losses, the metrics of the validations, and what the training logs besides."""
    losses = [line("training", _points(record.train, "loss"))]
    losses += [
        line(name.replace("val_loss", "validation"), _points(record.valid, name), dots=True)
        for name in _with_tasks(record.valid, "val_loss")
    ]
    found = [_curves("loss", "Loss, nats a token", losses)]
    plain = [name for name in record.valid if "/" not in name and name != "val_loss"]
    names = dict.fromkeys(plain or [name.rpartition("/")[2] for name in record.valid])
    same = {METRICS[name].same_as for name in names if name in METRICS}
    for name in [name for name in names if name not in ("val_loss", *same)][:MOST_FIGURES]:
        lines = [
            line(of_task.removesuffix(f"/{name}"), _points(record.valid, of_task), dots=True)
            for of_task in _with_tasks(record.valid, name)
        ]
        found.append(_curves(name, f"{name} (validation)", lines))
    for name, title in OF_TRAINING.items():
        found.append(
            Curves(name, title, STEP, (line(title, _points(record.train, name)),), linear=name == "learning_rate")
        )
    return [chart for chart in found if any(curve.points for curve in chart.lines)]


def _curves(name: str, title: str, lines: Sequence[Line]) -> Curves:
    """The first lines of a chart; the title says how many are left out."""
    more = len(lines) - MOST_LINES
    return Curves(
        name, f"{title}; {more} more in metrics.jsonl" if more > 0 else title, STEP, tuple(lines[:MOST_LINES])
    )


def _with_tasks(course: Course, name: str) -> list[str]:
    """A figure and that of each task by their names in the log, the plain one first."""
    found = [known for known in course if known == name or known.endswith(f"/{name}")]
    return sorted(found, key=lambda known: known != name)


def _points(course: Course, name: str) -> Iterable[tuple[float, float]]:
    steps, values = course.get(name, ((), ()))
    return zip(steps, values, strict=True)


def _task_names(resolved: Mapping[str, Any]) -> list[str]:
    tasks = resolved.get("tasks") or [resolved.get("task") or {}]
    return [f"task {task['name']}" for task in tasks if task.get("name")]


def _summary(record: RunRecord, config: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    """Tiles: the best value of the monitored figure, how far the training went, and on what."""
    tiles: list[tuple[str, str, str]] = []
    monitor = str(config.get("monitor", "val_loss"))
    steps, values = record.valid.get(monitor, ((), ()))
    known = [(value, step) for step, value in zip(steps, values, strict=True) if value == value]
    if known:
        metric = METRICS.get(monitor.rpartition("/")[2])
        pick = max if metric and metric.higher_is_better else min
        best, step = pick(known, key=lambda pair: pair[0])
        tiles.append((f"best {monitor}", metric.text(best) if metric else f"{best:.4f}", f"at step {step:,.0f}"))
    losses = record.train.get("loss")
    if losses:
        tiles.append(("last training loss", f"{losses[1][-1]:.4f}", "nats a token"))
        planned = f"of {resolved['steps']:,} planned" if "steps" in resolved else ""
        tiles.append(("optimizer steps", f"{losses[0][-1]:,.0f}", planned))
    if record.epochs:
        seconds = sum(float(epoch.get("seconds", 0.0)) for epoch in record.epochs)
        rows = sum(int(epoch.get("rows", 0)) for epoch in record.epochs)
        tiles.append(("epochs", f"{len(record.epochs):,}", f"{counted(rows, 'row')} in {duration(seconds)}"))
    if "parameters" in resolved:
        trained = f"{resolved['trained_parameters']:,} trained; {resolved['model_type']}"
        tiles.append(("parameters", f"{resolved['parameters']:,}", trained))
        tiles.append(
            ("devices", f"{resolved['devices']} x {resolved['accelerator']}", f"precision {resolved['precision']}")
        )
    return section("Summary", scores.tiles_of(tiles))


def _test(report: Mapping[str, Any] | None) -> str:
    """The scores of the test rows, of each task apart."""
    parts = []
    for name, content in _test_reports(report).items():
        title = f"Test rows of {name}" if name else "Test rows"
        parts.append(f'<h2 class="part">{data_text(title)}</h2>\n{score_sections(content, _look(content))}')
    return "".join(parts)


def _test_reports(report: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The report of each task; of the only one under ""."""
    return (report.get("tasks") or {"": report}) if report else {}


def _look(content: Mapping[str, Any]) -> Look:
    return Look.from_dict(content.get("outputs", {}))
