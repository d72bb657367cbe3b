"""The page of a search over flags: its gain, its course, what each flag's values gave, and all trials, best first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from reports import svg
from reports.charts import Chart, Curves, Line, line
from reports.page import data_text, page, section, table
from reports.prediction import REPORT_STYLE

TITLE = "Report of a search"
POINTS = "Each point is a trial with its best validation."
STYLE = ".trials td:nth-child(5) { min-width: 18rem }\n"  # the flags
MOST_WORDS = 8  # below one axis
COMPLETE = "complete"  # the state of a trial that ran to its end

Report = Mapping[str, Any]  # what search_report.json holds
Trial = Mapping[str, Any]  # one of its trials


def search_page(report: Report, lines: Sequence[str], gain: Sequence[Sequence[str]], verdict: str) -> str:
    """The page of what `search_report.json` holds.

    Args:
        lines: what the trials came to.
        gain: the cells of a table of the refits, its headers first.
        verdict: what is to be thought of the gain.
    """
    told = "".join(f'<p class="quiet">{data_text(text, 2000)}</p>\n' for text in lines)
    rows = [
        (
            data_text(trial["name"]),
            data_text(trial["state"]),
            f"{trial['figures'][-1]:.6g}" if trial["figures"] else "",
            str(len(trial["figures"])),
            data_text(" ".join(f"-{name} {value}" for name, value in trial["flags"].items()), 2000),
            data_text(trial["reason"], 300),
        )
        for trial in _ranked(report)
    ]
    reached = any(trial["figures"] and trial["flags"] for trial in report["trials"])
    headers = ("trial", "state", str(report["monitor"]), "validations", "flags", "why it ended")
    body = (
        f"<h1>{TITLE}</h1>\n{told}"
        + section("Gain", table(gain[0], gain[1:], "numbers") if gain else "", note=verdict[:1].upper() + verdict[1:])
        + section("Course", _charts(_courses(report)))
        + section("Values of the flags", _charts(_flags(report)), note=POINTS if reached else "")
        + _importance(report)
        + section("Trials", table(headers, rows, "trials"))
    )
    return page(TITLE, body, REPORT_STYLE + STYLE)


def search_charts(report: Report) -> list[tuple[str, Chart]]:
    """All charts of the page by name, for pictures."""
    return [
        (chart.name, chart)
        for chart in (*_courses(report), *_flags(report))
        if any(line.points for line in chart.lines)
    ]


def _charts(charts: Sequence[Curves]) -> str:
    drawn = "".join(map(svg.curves, charts))
    return f'<div class="charts">\n{drawn}</div>\n' if drawn else ""


def _ranked(report: Report) -> list[Trial]:
    """The trials: those with a figure first, the best in front."""
    sign = -1 if report["higher_is_better"] else 1
    trials = report["trials"]
    return sorted(trials, key=lambda trial: (not trial["figures"], sign * (trial["figures"] or [0.0])[-1]))


def _number(trial: Trial) -> int:
    return int(trial["name"].rpartition("/")[2])


def _by_end(reached: Sequence[tuple[Trial, float]]) -> tuple[Line, ...]:
    """The figures of trials over some value of theirs, in a colour each for those that ran to their end or not."""
    lines = []
    for label, ended in (("ran to the end", True), ("stopped early or failed", False)):
        points = ((x, trial["figures"][-1]) for trial, x in reached if (trial["state"] == COMPLETE) == ended)
        lines.append(replace(line(label, points, dots=True), joined=False))
    return tuple(lines)


def _courses(report: Report) -> list[Curves]:
    """The figures over the trials with the best so far, and the courses of the best trials."""
    monitor = str(report["monitor"])
    pick = max if report["higher_is_better"] else min
    reached = [(trial, _number(trial)) for trial in report["trials"] if trial["figures"]]
    complete = [(number, trial["figures"][-1]) for trial, number in reached if trial["state"] == COMPLETE]
    best = accumulate((figure for _, figure in complete), pick)
    so_far = line("best so far", zip((number for number, _ in complete), best, strict=True))
    courses = [
        line(trial["name"].rpartition("/")[2], enumerate(trial["figures"], 1), dots=True)
        for trial in _ranked(report)[: svg.SERIES]
        if trial["figures"]
    ]
    return [
        Curves("search", f"{monitor} over the trials", "trial", (*_by_end(reached), so_far)),
        Curves("trials", f"best {monitor} so far within the best trials", "validations", tuple(courses)),
    ]


def _flags(report: Report) -> list[Curves]:
    """What the trials reached over the values of each flag; one of many words has no chart."""
    charts = []
    trials = [trial for trial in report["trials"] if trial["figures"]]
    for flag in dict.fromkeys(name for trial in trials for name in trial["flags"]):
        texts = [(trial, trial["flags"][flag]) for trial in trials if flag in trial["flags"]]
        numbers = [(trial, number) for trial, text in texts if (number := _as_number(text)) is not None]
        words: tuple[str, ...] = ()
        if len(numbers) < len(texts):
            words = tuple(dict.fromkeys(text for _, text in texts))
            numbers = [(trial, float(words.index(text))) for trial, text in texts]
        if len(words) <= MOST_WORDS:
            points = _by_end(sorted(numbers, key=lambda entry: entry[1]))
            title = f"{report['monitor']} by -{flag}"
            charts.append(Curves(f"flag_{flag}", title, flag, points, from_zero=False, words=words))
    return charts


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _importance(report: Report) -> str:
    """How much each flag decided, a bar each."""
    shares = report.get("importance") or {}
    count = sum(trial["state"] == COMPLETE for trial in report["trials"])
    rows = [
        (f"-{data_text(name)}", f'<i style="--part:{share:.3f}"></i>{share:.0%}')
        for name, share in sorted(shares.items(), key=lambda entry: -entry[1])
    ]
    note = (
        f"Shares of what tells the best tenth of the {count:,} trials that ran to their end from the others, as optuna"
        " estimates them (PED-ANOVA); a rough guide below 50 trials."
    )
    return section("Importance of the flags", table((), rows, "bar"), note=note) if rows else ""
