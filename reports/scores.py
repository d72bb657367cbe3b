"""The parts of a page that show scores: figures, classes, the confusion matrix, groups, rows, and settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any

from metrics.labels import INVALID, confused_pairs
from metrics.registry import METRICS
from reports.charts import Bars, Matrix
from reports.outputs import MOST_ANSWER, MOST_SOURCE, Look
from reports.page import data_text, section, table
from utils.tables import counted

MOST_CLASSES = 100  # rows of the table of classes
MOST_LABELS = 20  # of a confusion matrix; of more, the pairs that were taken for each other
LETTERS_ACROSS = 8  # of a label above a column; longer ones stand upright
MOST_PAIRS = 20
MOST_SIZES = 8  # of sets of labels
CHOOSING = ("score", "constrained")  # -label_decoding that gives labels alone, and nothing to correct
MOST_VALUE = 300  # letters of a setting
PACKAGES = ("torch", "transformers", "pytorch-lightning", "peft", "ctranslate2", "sacrebleu", "rouge-score")

STYLE = """
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .75rem; margin: .75rem 0 }
.tile { background: var(--soft); border-radius: .5rem; padding: .6rem .8rem; break-inside: avoid; min-width: 0 }
.tile b { display: block; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums }
.tile span { color: var(--quiet); font-size: .85rem; overflow-wrap: anywhere }
.tile small { display: block; line-height: 1.4; font-size: .78rem; overflow-wrap: anywhere }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .88rem; line-height: 1.45 }
th { text-align: left; font-weight: 600; color: var(--quiet); white-space: nowrap; vertical-align: bottom }
th, td { padding: .28rem .6rem; border-bottom: 1px solid var(--line) }
tr { break-inside: avoid }
.numbers td + td, .numbers th + th { text-align: right; font-variant-numeric: tabular-nums }
.numbers th.bar, .numbers td.bar { text-align: left }
td.bar { white-space: nowrap }
.classes td:first-child { min-width: 8rem }
.bar i { display: inline-block; height: .7em; width: 6rem; border-radius: .15em; margin-right: .6em;
  background: linear-gradient(rgb(var(--for)) 0 0) 0 / calc(var(--part) * 100%) 100% no-repeat var(--soft) }
.matrix { font-size: .85rem }
.matrix td { text-align: right; border: 1px solid var(--paper); min-width: 3rem; font-variant-numeric: tabular-nums;
  background: rgb(var(--for) / calc(var(--part, 0) * .6)) }
.matrix td.miss { background: rgb(var(--against) / calc(var(--part, 0) * .75)) }
.matrix th { font-weight: normal; border: 0; text-align: right }
.matrix.tall thead th { writing-mode: vertical-rl; text-orientation: sideways; transform: rotate(180deg);
  text-align: left; padding: .6rem .28rem }
.matrix.tall td { min-width: 2.2rem; padding: .28rem .4rem }
.rows { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr)); gap: 0 3rem }
.row { min-width: 0; border-top: 1px solid var(--line); padding: .5rem 0; break-inside: avoid }
.row dl { display: grid; grid-template-columns: 6rem minmax(0, 1fr); gap: .1rem .75rem; margin: 0; font-size: .9rem;
  line-height: 1.5 }
.row dt { color: var(--quiet) } .row dd { margin: 0; overflow-wrap: anywhere; word-break: keep-all }
.settings { columns: 18rem; column-gap: 2rem; font-size: .82rem; line-height: 1.5; margin: 0; padding: 0;
  list-style: none }
.settings li { break-inside: avoid; overflow-wrap: anywhere; padding-left: 1rem; text-indent: -1rem }
.settings b { font-weight: normal; color: var(--quiet) }
"""


def figures(report: Mapping[str, Any]) -> str:
    """A tile for each metric, with its interval where there is one and how it was computed."""
    settings = report.get("settings", {})
    details, chosen = settings.get("metric_details", {}), settings.get("label_decoding") in CHOOSING
    confidence = report.get("confidence") or {}
    intervals = confidence.get("intervals", {})
    tiles = []
    for name, value in (report.get("metrics") or {}).items():
        metric = METRICS.get(name)
        notes: list[str] = []
        if metric and metric.corrected and chosen:  # the same as without correction
            continue
        if intervals.get(name) and None not in intervals[name]:
            low, high = (_figure(name, end) for end in intervals[name])
            notes.append(f"{low} to {high} at {confidence['level'] * 100:g} %")
        if metric:
            notes.append(details.get(metric.how or name, "" if chosen else metric.note))
            notes += ["smaller is better"] * (not metric.higher_is_better)
        small = "".join(f"<small>{escape(note)}</small>" for note in notes if note)
        title = escape(name).replace("_", "_<wbr>")
        tiles.append(f'<div class="tile"><span>{title}</span><b>{_figure(name, value)}</b>{small}</div>\n')
    told = [f"{counted(report['rows'], 'prediction')}, {report['scored_rows']:,} with a reference"]
    if report.get("invalid_outputs"):
        told.append(f"{counted(report['invalid_outputs'], 'output')} of no value")
    return section("Scores", f'<div class="tiles">\n{"".join(tiles)}</div>\n' if tiles else "", note="; ".join(told))


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "undefined"
    return METRICS[name].text(value) if name in METRICS else f"{value:.4f}"


def class_bars(report: Mapping[str, Any]) -> Bars | None:
    """Precision, recall and F1 of each class; of very many, the most frequent that occur."""
    rows = [row for row in report.get("per_class") or () if row["f1"] is not None]
    if not rows:
        return None
    kept = rows if len(rows) <= MOST_CLASSES else sorted(rows, key=lambda row: -row["support"])[:MOST_CLASSES]
    columns = ("f1", "precision", "recall")
    shown = tuple((row["label"], tuple(row[name] for name in columns), row["support"]) for row in kept)
    return Bars("classes", "By class", ("F1", "precision", "recall"), shown, len(report["per_class"]) - len(kept))


def class_table(bars: Bars | None) -> str:
    """A line for each class, its F1 as a bar."""
    if bars is None:
        return ""
    rows = "".join(
        f'<tr><td>{data_text(label)}</td><td class="bar"><i style="--part:{values[0] or 0:.3f}"></i>{_share(values[0])}'
        f"</td>{''.join(f'<td>{_share(value)}</td>' for value in values[1:])}<td>{support:,}</td></tr>\n"
        for label, values, support in bars.rows
    )
    heads = "".join(
        f'<th scope="col"{" class=bar" if head == "F1" else ""}>{head}</th>'
        for head in ("label", *bars.columns, "rows")
    )
    more = f'<p class="quiet">and {bars.left_out:,} more</p>\n' if bars.left_out else ""
    return section(
        bars.title,
        f'<div class="wide"><table class="classes numbers">\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>'
        f"</table></div>\n{more}",
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def matrix_of(report: Mapping[str, Any]) -> Matrix | None:
    """The confusion matrix where it has a cell for each pair of few labels; an empty last column is left out."""
    found = report.get("confusion_matrix")
    if not found or not 0 < len(found.get("labels", ())) <= MOST_LABELS:
        return None
    rows, columns = found["rows"], found["columns"]
    if columns[-1] == INVALID and not any(row[-1] for row in rows):
        rows, columns = [row[:-1] for row in rows], columns[:-1]
    return Matrix(
        "confusion_matrix", "Confusion matrix", tuple(found["labels"]), tuple(columns), tuple(map(tuple, rows))
    )


def confusion(report: Mapping[str, Any]) -> str:
    """The matrix, coloured by shares of its rows; of many labels the pairs that were taken for each other."""
    found, matrix = report.get("confusion_matrix"), matrix_of(report)
    if matrix:
        note = "Rows: reference. Columns: prediction. Coloured by share of the row."
        return section(matrix.title, _matrix(matrix), note=note)
    pairs = [pair for pair in confused_pairs(found) if pair["reference"] != pair["prediction"]] if found else []
    most = max((pair["count"] for pair in pairs), default=1)
    rows = "".join(
        f'<tr><td>{data_text(pair["reference"])}</td><td>{data_text(pair["prediction"])}</td><td class="bar">'
        f'<i style="--part:{pair["count"] / most:.3f}"></i>{pair["count"]:,}</td></tr>\n'
        for pair in pairs[:MOST_PAIRS]
    )
    more = f'<p class="quiet">and {len(pairs) - MOST_PAIRS:,} more pairs</p>\n' if len(pairs) > MOST_PAIRS else ""
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("reference", "prediction", "rows"))
    body = f'<table class="pairs">\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table>'
    return section("Labels taken for each other", f'<div class="wide">{body}</div>\n{more}' if rows else "")


def _matrix(matrix: Matrix) -> str:
    heads = "".join(f'<th scope="col">{data_text(label, 24)}</th>' for label in matrix.columns)
    lines = []
    for label, counts in zip(matrix.labels, matrix.rows, strict=True):
        total = sum(counts) or 1
        cells = "".join(
            f'<td{"" if name == label else " class=miss"} style="--part:{count / total:.3f}">{count:,}</td>'
            for name, count in zip(matrix.columns, counts, strict=True)
        )
        lines.append(f'<tr><th scope="row">{data_text(label, 24)}</th>{cells}</tr>\n')
    head = f"<thead><tr><th></th>{heads}</tr></thead>"
    tall = " tall" if any(len(label) > LETTERS_ACROSS for label in matrix.columns) else ""
    return f'<div class="wide"><table class="matrix{tall}">\n{head}\n<tbody>\n{"".join(lines)}</tbody></table></div>\n'


def guarantees(report: Mapping[str, Any]) -> str:
    """What label sets and abstention came to, beside what was asked for."""
    tiles = []
    if sets := report.get("label_sets"):
        sizes = ", ".join(f"{count:,} of {size}" for size, count in list(sets["sizes"].items())[:MOST_SIZES])
        tiles.append(("sets that hold the label", _share(sets["coverage"]), f"asked for: {sets['level']:g} or more"))
        tiles.append(("labels in a set", _share(sets["mean_size"]), sizes))
    if answers := report.get("abstain"):
        tiles.append(("answered rows", _share(answers["answered_share"]), f"{answers['answered']:,} rows"))
        asked = f"asked for: {answers['rate']:g} or less" if "rate" in answers else ""
        tiles.append(("wrong answers", _share(answers["error_rate"]), asked))
    return section("Sets of labels and abstention", tiles_of(tiles))


def tiles_of(tiles: Iterable[tuple[str, str, str]]) -> str:
    """Tiles of (name, figure, small words)."""
    shown = "".join(
        f'<div class="tile"><span>{escape(name).replace("_", "_<wbr>")}</span><b>{escape(figure)}</b>'
        f"<small>{escape(note)}</small></div>\n"
        for name, figure, note in tiles
    )
    return f'<div class="tiles">\n{shown}</div>\n' if shown else ""


def groups(report: Mapping[str, Any]) -> str:
    """The figures of groups of rows."""
    found: Mapping[str, Any] = report.get("groups") or {}
    names = list(dict.fromkeys(name for group in found.values() for name in group["metrics"]))
    rows = [
        (
            data_text(group),
            f"{scores['rows']:,}",
            *(_figure(name, scores["metrics"][name]) if name in scores["metrics"] else "-" for name in names),
        )
        for group, scores in found.items()
    ]
    return section("By group", table(("group", "rows", *names), rows, "numbers"))


def worst(look: Look) -> str:
    """The worst rows, their texts cut."""
    articles = "".join(
        f'<div class="row"><dl><dt>row</dt><dd>{example.row:,}'
        + (f' <span class="quiet">{example.sure:.4f}</span>' if example.sure is not None else "")
        + "</dd>"
        + (f"<dt>source</dt><dd>{data_text(example.source, MOST_SOURCE)}</dd>" if example.source is not None else "")
        + f"<dt>reference</dt><dd>{data_text(example.reference, MOST_ANSWER)}</dd>"
        f"<dt>prediction</dt><dd>{data_text(example.prediction, MOST_ANSWER)}</dd></dl></div>\n"
        for example in look.examples
    )
    note = f"{len(look.examples):,} of {counted(look.wrong, 'wrong row')}, {look.order}. Rows count from 0."
    return section("Worst examples", f'<div class="rows">\n{articles}</div>\n', note=note) if articles else ""


def settings(values: Mapping[str, Any]) -> str:
    """The flags that have a value, by name; nothing is read from the environment."""
    flat = [(name, value) for name, value in values.items() if value not in ("", None, [], (), {})]
    items = "".join(f"<li><b>{escape(name)}</b> {_value(value)}</li>\n" for name, value in sorted(flat))
    return section("Settings", f'<ul class="settings">\n{items}</ul>\n' if items else "")


def _value(value: Any) -> str:
    return data_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), MOST_VALUE)


def versions(packages: Iterable[str] = PACKAGES) -> str:
    """Python and the packages that are there, in one line."""
    found: list[Sequence[str]] = [("Python", python_version())]
    for package in packages:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    words = " · ".join(f"{name} {number}" for name, number in found)
    return section("Versions", f'<p class="quiet">{escape(words)}</p>\n')
