"""The charts of a page as PNGs, for papers and slides: drawn by matplotlib from the same numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reports.charts import Bars, Chart, Curves, Histogram, Matrix, Reliability
from reports.page import IMAGES_FLAG
from utils.files import run_error, write_file
from utils.libraries import require_package

COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea")  # those of the page
FONTS = (  # files of fonts with Hangul, without their endings: the first that is installed is taken
    "NotoSansKR-Regular",
    "NotoSansKR-VF",
    "NotoSansKR[wght]",
    "NanumGothic",
    "NotoSansCJKkr-Regular",
    "NotoSansCJK-Regular",
    "AppleSDGothicNeo",
    "AppleGothic",
    "malgun",
    "UnDotum",
)
PLAIN_FONT = "DejaVu Sans"  # comes with matplotlib
NO_FONT = (
    f"{IMAGES_FLAG}: no font with Hangul is installed, so that labels are drawn as label 1, label 2, ...; install one,"
    " for example: apt-get install fonts-nanum"
)
DOTS_PER_INCH = 144
MOST_LETTERS = 24  # of a label


def save_images(folder: Path, charts: Iterable[tuple[str, Chart]], overwrite: bool) -> list[str]:
    """Write a PNG of each named chart; gives what to tell.

    Raises:
        UserError: matplotlib is missing.
        RunError: the disk refuses a file, or another one is there and not to be replaced.
    """
    matplotlib = require_package("matplotlib", IMAGES_FLAG)
    hangul = hangul_font()
    font, labels = hangul or PLAIN_FONT, Labels(hangul or PLAIN_FONT)
    with run_error(folder), matplotlib.rc_context({"font.family": [font], "axes.unicode_minus": False}):
        folder.mkdir(parents=True, exist_ok=True)
        for name, chart in charts:
            drawn = io.BytesIO()
            draw(chart, labels).savefig(drawn, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
            path = folder / f"{re.sub(r'[^A-Za-z0-9_.+-]+', '_', name)}.png"
            content = drawn.getvalue()
            write_file(path, partial(_write, content), replace=overwrite)
    return [NO_FONT] if labels.foreign and not hangul else []


def _write(content: bytes, file: Any) -> None:
    file.write(content)


def hangul_font() -> str:
    """The name of an installed font with Hangul; empty without one.

    By files: the list of names that matplotlib keeps lacks what was installed after it was made.
    """
    from matplotlib.font_manager import FontProperties, findSystemFonts, fontManager

    there = {Path(path).stem: path for path in findSystemFonts()}
    path = next((there[name] for name in FONTS if name in there), "")
    if not path:
        return ""
    fontManager.addfont(path)
    return str(FontProperties(fname=path).get_name())


class Labels:
    """Texts of the data as a font can show them; `foreign` says that one could not be."""

    def __init__(self, font: str) -> None:
        from matplotlib.font_manager import findfont
        from matplotlib.ft2font import FT2Font

        self.known = FT2Font(findfont(font)).get_charmap()
        self.foreign = False

    def __call__(self, texts: Sequence[str]) -> list[str]:
        return [self._shown(text, number) for number, text in enumerate(texts, 1)]

    def _shown(self, text: str, number: int) -> str:
        if any(ord(letter) not in self.known for letter in text):
            self.foreign = True
            return f"label {number}"
        return text[:MOST_LETTERS].replace("$", r"\$")


def draw(chart: Chart, labels: Labels) -> Any:
    """A matplotlib figure of a chart."""
    from matplotlib.figure import Figure

    sides = {
        Matrix: (1.8 + 0.55 * _columns(chart), 1.6 + 0.42 * _lines(chart)),
        Bars: (6.4, 1.2 + 0.26 * _lines(chart)),
    }
    figure = Figure(figsize=sides.get(type(chart), (5.6, 3.6)), layout="constrained")
    panel = figure.subplots()
    panel.set_title(chart.title, fontsize=10)
    if isinstance(chart, Curves):
        _curves(panel, chart, labels)
    elif isinstance(chart, Histogram):
        _histogram(panel, chart)
    elif isinstance(chart, Reliability):
        _reliability(panel, chart)
    elif isinstance(chart, Matrix):
        _matrix(panel, chart, labels)
    else:
        _bars(panel, chart, labels)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def _columns(chart: Chart) -> int:
    return len(chart.columns) if isinstance(chart, Matrix) else 0


def _lines(chart: Chart) -> int:
    return len(chart.rows) if isinstance(chart, Matrix | Bars) else 0


def _curves(panel: Any, chart: Curves, labels: Labels) -> None:
    names = labels([line.label for line in chart.lines])
    for number, line in enumerate(chart.lines):
        if line.points:
            xs, ys = zip(*line.points, strict=True)
            marker = "o" if line.dots or len(xs) == 1 else ""
            colour = COLOURS[number % len(COLOURS)]
            width = 1.4 if line.joined else 0
            panel.plot(xs, ys, color=colour, marker=marker, markersize=3.5, linewidth=width, label=names[number])
    scales = {True: "log", False: "linear"}
    panel.set(xlabel=chart.x, xscale=scales[chart.logarithmic_x], yscale=scales[chart.logarithmic])
    if chart.words:
        panel.set_xticks(range(len(chart.words)), labels(chart.words))
    panel.grid(alpha=0.3)
    if len(chart.lines) > 1:
        panel.legend(frameon=False, fontsize=9)


def _histogram(panel: Any, chart: Histogram) -> None:
    each = chart.width * 0.86 / len(chart.counts)
    for number, (label, counts) in enumerate(chart.counts):
        total = sum(counts)
        places = [bar * chart.width + chart.width * 0.07 + each * number for bar in range(len(counts))]
        shares = [100 * count / total for count in counts]
        panel.bar(places, shares, each * 0.94, align="edge", color=COLOURS[number], label=f"{label} ({total:,})")
    if chart.cut_off and chart.cut_off <= len(chart.counts[0][1]) * chart.width:
        panel.axvline(chart.cut_off, color="black", linestyle="--", linewidth=1, label=f"cut at {chart.cut_off:,}")
    panel.set(xlabel=chart.x, ylabel="%")
    panel.legend(frameon=False, fontsize=9)


def _reliability(panel: Any, chart: Reliability) -> None:
    probabilities, shares, rows = zip(*chart.bins, strict=True)
    panel.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    panel.plot(probabilities, shares, color=COLOURS[0], linewidth=1.4)
    panel.scatter(probabilities, shares, [12 + 120 * count / max(rows) for count in rows], COLOURS[0], alpha=0.6)
    panel.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="probability of the predicted label", ylabel="share that is right")
    panel.grid(alpha=0.3)


def _matrix(panel: Any, chart: Matrix, labels: Labels) -> None:
    shares = [[count / (sum(row) or 1) for count in row] for row in chart.rows]
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for line, row in enumerate(chart.rows):
        for column, count in enumerate(row):
            colour = "white" if shares[line][column] > 0.6 else "black"
            panel.text(column, line, f"{count:,}", ha="center", va="center", color=colour, fontsize=8)
    panel.set_xticks(range(len(chart.columns)), labels(chart.columns), rotation=30 if len(chart.columns) > 4 else 0)
    panel.set_yticks(range(len(chart.labels)), labels(chart.labels))
    panel.set(xlabel="prediction", ylabel="reference")


def _bars(panel: Any, chart: Bars, labels: Labels) -> None:
    names = labels([label for label, _, _ in chart.rows])
    drawn = panel.barh(range(len(names)), [values[0] or 0.0 for _, values, _ in chart.rows], 0.65, color=COLOURS[0])
    panel.bar_label(drawn, [f"{values[0] or 0:.3f}" for _, values, _ in chart.rows], padding=3, fontsize=8)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set(xlim=(0, 1.12), xlabel=chart.columns[0])
    panel.invert_yaxis()
