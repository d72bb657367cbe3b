"""Charts as inline SVG in the colours of the page, so that they are right in light, in dark and on paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from reports.charts import Curves, Histogram, Reliability
from utils.escapes import printable

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 36  # margins of the plot
SERIES = 4  # colours
INSET = 10  # of the numbers below an x axis that does not begin at zero, from both its ends
MOST_LETTERS = 10  # of a word below the x axis

STYLE = """
:root { --s0: #2563eb; --s1: #d97706; --s2: #059669; --s3: #9333ea }
@media (prefers-color-scheme: dark) { :root { --s0: #60a5fa; --s1: #fb923c; --s2: #34d399; --s3: #c084fc } }
@media print { :root { --s0: #2563eb; --s1: #d97706; --s2: #059669; --s3: #9333ea } }
svg { display: block; width: 100%; height: auto; font-size: 11px; fill: var(--quiet) }
svg .grid { stroke: var(--line); stroke-width: 1; fill: none }
svg .axis { stroke: var(--quiet); stroke-width: 1; fill: none }
svg .cut { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 4 3 }
svg .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round }
svg .faint { stroke: var(--quiet); stroke-dasharray: 2 3; fill: none }
figure { margin: 0; min-width: 0; break-inside: avoid }
figcaption { font-weight: 600; font-size: .95rem; line-height: 1.4; margin-bottom: .35rem }
.key { display: flex; flex-wrap: wrap; gap: 0 1rem; font-weight: normal; font-size: .82rem; color: var(--quiet) }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: .15em; margin-right: .35em }
.key i.dash { height: 0; width: 1.2em; border-top: 2px dashed var(--ink); border-radius: 0; vertical-align: middle }
"""

Scale = Callable[[float], float]


def figure(title: str, key: Sequence[tuple[str, str]], drawing: str) -> str:
    """A drawing under its title and a key of (style of the mark, words)."""
    marks = "".join(f"<span>{mark}{escape(words)}</span>" for mark, words in key)
    words = f'<span class="key">{marks}</span>' if key else ""
    return f"<figure><figcaption>{escape(title)}{words}</figcaption>\n{drawing}</figure>\n"


def curves(chart: Curves) -> str:
    """Lines with a key that says the last value of each; nothing where no line has a point."""
    lines = [line for line in chart.lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    y_ticks = log_ticks(min(ys), max(ys)) if chart.logarithmic else ticks(min(ys), max(ys), 5)
    to_y = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP, chart.logarithmic)
    x_ticks, to_x = _x_axis(chart, xs)
    parts = [_frame(x_ticks, y_ticks, to_x, to_y, chart.x, words=chart.words)]
    key = []
    for number, line in enumerate(lines):
        colour = f"var(--s{number % SERIES})"
        points = [(to_x(x), to_y(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        if len(points) > 1 and line.joined:
            parts.append(f'<polyline class="curve" stroke="{colour}" points="{path}"/>')
        if line.dots or len(points) == 1:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.8" fill="{colour}"><title>{_named(chart, at)}:'
                f" {_number(value)}</title></circle>"
                for (x, y), (at, value) in zip(points, line.points, strict=True)
            ]
        label = line.label if len(lines) > 1 or not line.joined else "last"
        key.append((_mark(colour), f"{label} {_number(line.points[-1][1])}" if line.joined else label))
    return figure(chart.title, key, _svg(chart.title, parts))


def _x_axis(chart: Curves, xs: Sequence[float]) -> tuple[list[float], Scale]:
    """The marks of the x axis, and where a value lies on it."""
    start, end = LEFT, WIDTH - RIGHT
    if chart.words:
        return [float(place) for place in range(len(chart.words))], _scale(-0.5, len(chart.words) - 0.5, start, end)
    if not chart.from_zero:
        marks = log_ticks(min(xs), max(xs)) if chart.logarithmic_x else ticks(min(xs), max(xs), 5)
        return marks, _scale(marks[0], marks[-1], start + INSET, end - INSET, chart.logarithmic_x)
    marks = [mark for mark in ticks(0.0, max(*xs, 1.0), 5) if mark <= max(xs)]
    return marks, _scale(0.0, max(*xs, 1.0), start, end)


def _named(chart: Curves, x: float) -> str:
    return escape(printable(chart.words[int(x)])) if chart.words else _number(x)


def histogram(chart: Histogram) -> str:
    """Bars, of several names side by side as shares of their own total; a dashed line where texts are cut."""
    bars = len(chart.counts[0][1])
    shares = [(label, _shares(counts), counts) for label, counts in chart.counts]
    y_ticks = ticks(0.0, max(max(values) for _, values, _ in shares), 4)
    to_x = _scale(0, bars * chart.width, LEFT, WIDTH - RIGHT)
    to_y = _scale(0, y_ticks[-1], HEIGHT - BOTTOM, TOP)
    x_ticks = [tick for tick in ticks(0, bars * chart.width, 6) if tick <= bars * chart.width and tick == int(tick)]
    parts = [_frame(x_ticks, y_ticks, to_x, to_y, chart.x, "%")]
    step = (to_x(chart.width) - to_x(0)) * 0.86 / len(shares)
    key = []
    for number, (label, values, counts) in enumerate(shares):
        colour = f"var(--s{number % SERIES})"
        key.append((_mark(colour), f"{label} ({sum(counts):,})"))
        for bar, (value, count) in enumerate(zip(values, counts, strict=True)):
            if count:
                more = chart.clipped and bar == bars - 1
                first, last = bar * chart.width + 1, (bar + 1) * chart.width
                named = f"{first:,}" + (" and more" if more else f"-{last:,}" if last > first else "")
                left = to_x(bar * chart.width) + number * step + step * 0.08
                parts.append(
                    f'<rect x="{left:.1f}" y="{to_y(value):.1f}" width="{step * 0.92:.1f}"'
                    f' height="{to_y(0) - to_y(value):.1f}" fill="{colour}"><title>{named}: {count:,}</title></rect>'
                )
    if chart.cut_off:
        key.append(('<i class="dash"></i>', f"cut at {chart.cut_off:,}" + _beyond(chart)))
        if chart.cut_off <= bars * chart.width:
            at = to_x(chart.cut_off)
            parts.append(f'<line class="cut" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    return figure(chart.title, key, _svg(chart.title, parts))


def reliability(chart: Reliability) -> str:
    """The share that is right over the probability that was given, beside the line on which both are the same."""
    grid = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    to_x, to_y = _scale(0, 1, LEFT, WIDTH - RIGHT), _scale(0, 1, HEIGHT - BOTTOM, TOP)
    parts = [_frame(grid, grid, to_x, to_y, "probability of the predicted label")]
    parts.append(f'<line class="faint" x1="{to_x(0)}" y1="{to_y(0)}" x2="{to_x(1)}" y2="{to_y(1)}"/>')
    path = " ".join(f"{to_x(probability):.1f},{to_y(share):.1f}" for probability, share, _ in chart.bins)
    parts.append(f'<polyline class="curve" stroke="var(--s0)" points="{path}"/>')
    most = max(rows for _, _, rows in chart.bins)
    for probability, share, rows in chart.bins:
        radius = 2.5 + 6 * math.sqrt(rows / most)
        parts.append(
            f'<circle cx="{to_x(probability):.1f}" cy="{to_y(share):.1f}" r="{radius:.1f}" fill="var(--s0)"'
            f' fill-opacity="0.55"><title>{probability:.3f}: {share:.3f} right of {rows:,}</title></circle>'
        )
    total = sum(rows for _, _, rows in chart.bins)
    key = [(_mark("var(--s0)"), f"share that is right; the larger, the more of {total:,} rows")]
    return figure(chart.title, key, _svg(chart.title, parts))


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that enclose low..high, about as many as wanted."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose low..high; over many, every second, third ... of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, (last - first) // 5)
    return [10.0**power for power in range(first, last + every, every)]


def _beyond(chart: Histogram) -> str:
    return "" if chart.cut_off <= len(chart.counts[0][1]) * chart.width else ", beyond the axis"


def _shares(counts: Sequence[int]) -> list[float]:
    return [100 * count / sum(counts) for count in counts]


def _scale(low: float, high: float, start: float, end: float, logarithmic: bool = False) -> Scale:
    """Where a value lies in the drawing."""
    if logarithmic:
        first, last = math.log10(low), math.log10(high)
        return lambda value: start + (math.log10(value) - first) / (last - first) * (end - start)
    return lambda value: start + (value - low) / ((high - low) or 1.0) * (end - start)


def _frame(
    xs: Sequence[float],
    ys: Sequence[float],
    to_x: Scale,
    to_y: Scale,
    x: str,
    unit: str = "",
    words: Sequence[str] = (),
) -> str:
    """Grid, numbers, or words in place of those of the x axis, and the name of that."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in ys:
        at = to_y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_number(value)}{unit}</text>')
    for value, shown in zip(xs, map(_short, words) if words else map(_number, xs), strict=True):
        parts.append(f'<text x="{to_x(value):.1f}" y="{bottom + 15}" text-anchor="middle">{shown}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x)}</text>')
    return "".join(parts)


def _short(word: str) -> str:
    return escape(printable(word if len(word) <= MOST_LETTERS else f"{word[: MOST_LETTERS - 1]}…"))


def _number(value: float) -> str:
    """A number in few letters: 12k, 0.25, 3e-05."""
    size = abs(value)
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            return f"{value / (unit if unit != 1e4 else 1e3):.4g}{name}"
    return f"{value:.3g}" if size < 100 else f"{value:.4g}"


def _mark(colour: str) -> str:
    return f'<i style="background:{colour}"></i>'


def _svg(title: str, parts: Sequence[str]) -> str:
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return "\n".join((opening, *parts, "</svg>\n"))
