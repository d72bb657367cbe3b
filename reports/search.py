"""The page of a search over flags: its gain, the course of the search, and every trial, the best first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from reports import svg
from reports.charts import Curves, line
from reports.page import data_text, page, section, table
from reports.prediction import REPORT_STYLE

TITLE = "Report of a search"


def search_page(report: Mapping[str, Any], lines: Sequence[str]) -> str:
    """The page of what `search_report.json` holds.

    Args:
        lines: what the command told at its end.
    """
    ranked = _ranked(report)
    told = "".join(f'<p class="quiet">{data_text(text.strip(), 2000)}</p>\n' for text in lines if text.strip())
    curves = "".join(map(svg.curves, _curves(report, ranked)))
    rows = [
        (
            data_text(trial["name"]),
            data_text(trial["state"]),
            f"{trial['figures'][-1]:.6g}" if trial["figures"] else "",
            str(len(trial["figures"])),
            data_text(" ".join(f"-{name} {value}" for name, value in trial["flags"].items()), 2000),
            data_text(trial["reason"], 300),
        )
        for trial in ranked
    ]
    headers = ("trial", "state", str(report["monitor"]), "validations", "flags", "why it ended")
    body = (
        f"<h1>{TITLE}</h1>\n{told}"
        + section("Course", f'<div class="charts">\n{curves}</div>\n' if curves else "")
        + section("Trials", table(headers, rows))
    )
    return page(TITLE, body, REPORT_STYLE)


def _ranked(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trials: those with a figure first, the best in front."""
    sign = -1 if report["higher_is_better"] else 1
    trials = report["trials"]
    return sorted(trials, key=lambda trial: (not trial["figures"], sign * (trial["figures"] or [0.0])[-1]))


def _curves(report: Mapping[str, Any], ranked: Sequence[Mapping[str, Any]]) -> list[Curves]:
    """The best figure so far over the trials, and the courses of the best trials."""
    monitor = str(report["monitor"])
    pick = max if report["higher_is_better"] else min
    reached = [(number, trial["figures"][-1]) for number, trial in enumerate(report["trials"], 1) if trial["figures"]]
    best = accumulate((figure for _, figure in reached), pick)
    so_far = zip((number for number, _ in reached), best, strict=True)
    courses = [
        line(trial["name"].rpartition("/")[2], enumerate(trial["figures"], 1), dots=True)
        for trial in ranked[: svg.SERIES]
        if trial["figures"]
    ]
    return [
        Curves("search", f"best {monitor} so far", "trials", (line(monitor, so_far, dots=True),)),
        Curves("trials", f"best {monitor} so far within the best trials", "validations", tuple(courses)),
    ]
