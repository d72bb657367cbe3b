"""The metrics by name: what they are computed from, which way is better, and how their figures are written.

A metric is one `Metric`, registered in the file of its family beside this one (`metrics/__init__.py` names the files).
Tasks, `-monitor`, validation, reports and pages ask here; no other place lists names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from numbers import Real
from typing import Any, NamedTuple

from utils.errors import UserError, closest

# What a metric is computed from.
TEXTS = "texts"  # references and predictions as they stand
LABELS = "labels"  # the labels that both stand for
PROBABILITIES = "probabilities"  # those of every label: -label_decoding score
NO_ANSWER = "probabilities of no answer"  # those of the outputs of windows: -doc_stride
TEACHER_FORCED = "teacher forced"  # the model's pass over all validation rows; nothing is generated
PASSAGES = "passages"  # the ranks of the right ones among all: of vectors, and nothing is generated
PAIRS = "pairs beside texts"  # the contrastive loss of a pretraining whose rows are queries and passages too
DENOISED = "denoised texts"  # those of pretraining, where a part of a target marks places and is no text
REFERENCES = "references"  # the model's pass over references, where -metrics of inference.py asks for it

FRACTION = "fraction"  # from 0 to 1
POINTS = "points"  # from 0 to 100
NATS = "nats"


class Figure(NamedTuple):
    """What a metric gives: NaN, never 0, where it is undefined; and how it was computed, where that is open."""

    value: float
    detail: str = ""


@dataclass(frozen=True)
class Metric:
    """One figure.

    `compute` depends on what the metric `takes`. Of texts it is called with the names that share it and the references,
    and gives a `metrics.text.TextMetric`; of labels it turns a `metrics.labels.LabelTables` into a `Figure`, of another
    kind of output (`Postprocessor.kind`) the `CountedRows` and the postprocessor; the others are computed where the
    model is. `how` is the key in `Scores.details` where several metrics share an explanation. A metric that is not
    `default` is computed where a task or `-monitor` names it.
    """

    name: str
    takes: str
    description: str
    compute: Callable[..., Any] | None = None
    higher_is_better: bool = True
    scale: str = FRACTION
    how: str = ""
    note: str = ""  # beside the figure in a report, where nothing was computed that explains it
    default: bool = True
    # What intervals are drawn from (metrics/uncertainty/confidence.py), of counted rows and postprocessor where
    # `compute` is:
    by_row: Callable[..., Sequence[float]] | None = None  # the figures of the rows, where it is their mean
    counts: Callable[..., Any] | None = None  # a dataclass of whole numbers and Counters, sums over the rows
    of_counts: Callable[[Any], float] | None = None  # the figure, from such sums
    corrected: bool = False  # the figure of another one after label correction: not shown where nothing is corrected
    needs: str = ""  # a module of `INSTALL`, which is not among our requirements
    same_as: str = ""  # a metric that has the same figure wherever both are there: one of them is shown

    def text(self, value: float) -> str:
        """Points with two decimals, all others with four; NaN is a figure that is not defined for these rows."""
        if math.isnan(value):
            return "undefined"
        return f"{value:.2f}" if self.scale == POINTS else f"{value:.4f}"


INSTALL = {"mecab_ko": "sacrebleu[ko]", "kiwipiepy": "kiwipiepy"}  # what `pip install` takes, by module

METRICS: dict[str, Metric] = {}


def register(*metrics: Metric) -> None:
    """Make metrics known; `ValueError` when another one has the name."""
    for metric in metrics:
        if METRICS.setdefault(metric.name, metric) != metric:
            raise ValueError(f"a metric named {metric.name!r} is registered already")


def missing_packages(names: Iterable[str]) -> list[str]:
    """A problem for each of these metrics that needs a module that is not installed."""
    needing = ((name, METRICS[name].needs) for name in names if name in METRICS)
    return [
        f"metric {name!r} needs {module}, which is not installed: pip install '{INSTALL[module]}'"
        for name, module in needing
        if module and find_spec(module) is None
    ]


def takes_of(kind: str) -> tuple[str, ...]:
    """What the metrics of a task with this kind of output may take."""
    return (kind, *((PROBABILITIES,) if kind == LABELS else ()), *((TEXTS,) if kind != TEXTS else ()))


def metric_names(*takes: str) -> tuple[str, ...]:
    """The names of all metrics that are computed from one of these, in this order."""
    return tuple(metric.name for kind in takes for metric in METRICS.values() if metric.takes == kind)


def scored_names() -> tuple[str, ...]:
    """The names of all metrics of outputs."""
    takes = dict.fromkeys((TEXTS, LABELS, PROBABILITIES, *(metric.takes for metric in METRICS.values())))
    return metric_names(*(kind for kind in takes if kind not in (TEACHER_FORCED, DENOISED, PAIRS, REFERENCES)))


def metric_problems(place: str, metrics: Iterable[str], kind: str) -> list[str]:
    """What is wrong with the metrics of a task whose outputs are of that kind; "" where it is not known."""
    problems, names = [], scored_names()
    for metric in metrics:
        needed = METRICS[metric].takes if metric in names else ""
        if not needed:
            problems.append(f"{place}: unknown metric {metric!r}{closest(metric, names)}; known: {', '.join(names)}")
        elif kind and needed not in takes_of(kind):
            needs = "a label_map" if needed in (LABELS, PROBABILITIES) else f"postprocessor: {needed}"
            fitting = ", ".join(metric_names(*takes_of(kind)))
            problems.append(f"{place}: metric {metric!r} needs {needs}; of {kind} there are: {fitting}")
    return problems


def default_metrics(takes: str) -> tuple[str, ...]:
    """The metrics of a task that names none."""
    return tuple(metric.name for metric in METRICS.values() if metric.takes == takes and metric.default)


def figure_texts(figures: Mapping[str, float]) -> dict[str, str]:
    """The figures of a validation as they are shown, by name; of two that are the same one.

    Their means over several tasks may differ, as not all of these have both.
    """
    pairs = ((METRICS[name].same_as, value) for name, value in figures.items())
    repeated = {other for other, value in pairs if figures.get(other) == value}
    return {name: METRICS[name].text(value) for name, value in figures.items() if name not in repeated}


def metric_of(figure: str) -> Metric:
    """The metric of a figure of a validation: `METRIC`, or `TASK/METRIC` where several tasks are mixed."""
    return METRICS[figure.rpartition("/")[2]]


def is_generated(name: str) -> bool:
    """Whether a figure of a validation is of the generated rows, and not of the pass over all rows."""
    return metric_of(name).takes not in (TEACHER_FORCED, PASSAGES, DENOISED, PAIRS)


def number_of(name: str, figure: object) -> float:
    """The figure of a metric; `UserError` for one of the user's that is no number."""
    if not isinstance(figure, Real):
        raise UserError(f"metric {name}: its figure is {figure!r:.100}, and not a number")
    return figure  # type: ignore[return-value]
