"""The page of a prediction: the report of `-save_report FILE.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from reports import scores, svg
from reports.charts import Chart
from reports.checkpoints import checkpoint_charts, checkpoint_section
from reports.outputs import Look
from reports.page import data_text, page, section

STYLE = """
body { max-width: 88rem; line-height: 1.6; padding: 1rem clamp(1rem, 4vw, 3rem) 3rem }
h1 { font-size: 1.6rem; margin: .5rem 0 .25rem }
h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; break-after: avoid }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem 2rem;
  max-width: 84rem }
.charts figure { max-width: 34rem }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0 3rem }
.pair section { min-width: 0 }
h2.part { font-size: 1.35rem; margin-top: 3rem; border-top: 2px solid var(--line); padding-top: 1rem }
@media print { body { max-width: none; padding: 0; font-size: 10pt } .charts, .pair { gap: 1rem } }
"""
REPORT_STYLE = scores.STYLE + svg.STYLE + STYLE


def score_sections(report: Mapping[str, Any], look: Look) -> str:
    """What a report shows of scores, before its settings."""
    charts = "".join(map(svg.histogram, look.lengths))
    sure = svg.reliability(look.reliability) if look.reliability and look.reliability.bins else ""
    title = " and ".join(["Calibration"] * bool(sure) + ["Lengths" if not sure else "lengths"] * bool(charts))
    tables = scores.confusion(report) + scores.class_table(scores.class_bars(report))
    return (
        checkpoint_section(report)
        + scores.figures(report)
        + scores.guarantees(report)
        + (f'<div class="pair">\n{tables}</div>\n' if tables else "")
        + section(title, f'<div class="charts">\n{sure}{charts}</div>\n' if sure or charts else "")
        + scores.groups(report)
        + scores.worst(look)
    )


def score_charts(report: Mapping[str, Any], look: Look) -> list[Chart]:
    """The charts of these sections, for pictures."""
    tables = (scores.matrix_of(report), scores.class_bars(report), look.reliability)
    return [chart for chart in (*checkpoint_charts(report), *tables, *look.lengths) if chart is not None]


def prediction_page(report: Mapping[str, Any], look: Look, title: str, about: Sequence[str] = ()) -> str:
    """The page of a report, as `metrics.report.report_dict` gives it.

    Args:
        about: what was predicted with what, a text each.
    """
    settings = {name: value for name, value in report["settings"].items() if name != "metric_details"}
    told = " · ".join(data_text(text, 200) for text in about)
    body = (
        f'<h1>{escape(title)}</h1>\n<p class="quiet">{told}</p>\n'
        + score_sections(report, look)
        + scores.settings(settings)
        + scores.versions()
    )
    return page(title, body, REPORT_STYLE)
