"""An HTML page of analysed reviews, their words coloured by their effect on the sentiment: one file, no script, and
nothing that is loaded from elsewhere."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from utils.escapes import printable
from utils.files import run_error, write_file

MOST_WORDS = 300  # shown of a review
MOST_KEYWORDS = 20  # shown of a review
MOST_LETTERS = 60  # of a word, a keyword or a label
FULL_COLOUR = 0.1  # loss of probability from which a review's strongest word has the full colour
WEAKEST = 0.02  # share of the strongest effect below which a word has no colour

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --quiet: #57606a; --line: #d0d7de;
  --for: 37 99 235; --against: 217 119 6 }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e6e8eb; --quiet: #9aa4af; --line: #343b44;
  --for: 96 165 250; --against: 251 146 60 } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --quiet: #444; --line: #bbb;
  --for: 37 99 235; --against: 217 119 6 } article { break-inside: avoid } }
* { box-sizing: border-box; print-color-adjust: exact; -webkit-print-color-adjust: exact }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--paper); color: var(--ink); line-height: 1.7;
  font-family: system-ui, "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR", "Noto Sans CJK KR", sans-serif }
h1 { font-size: 1.4rem; line-height: 1.3 }
article { border-top: 1px solid var(--line); padding: .5rem 0 }
h2 { font-size: .85rem; font-weight: normal; color: var(--quiet); margin: .5rem 0 0 }
h3 { font-size: 1rem; margin: .5rem 0 0 }
p { margin: .25rem 0; overflow-wrap: anywhere; word-break: keep-all }
small, .quiet { color: var(--quiet); font-size: .85rem; font-weight: normal }
span[style] { color: var(--ink); border-radius: .2rem; padding: 0 .15rem; -webkit-box-decoration-break: clone;
  box-decoration-break: clone }
.for { background: rgb(var(--for) / calc(var(--effect) * .6)) }
.against { background: rgb(var(--against) / calc(var(--effect) * .6)) }
.first { font-weight: bold; text-decoration: underline; text-underline-offset: .2em }
"""


class Examples:
    """The analyses that go by, of which those with the strongest words are kept: at most `most`, in order of strength.

    The strength of a review is the largest loss of probability without one of its words.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.with_keywords = self.reviews = 0
        self._kept: list[tuple[float, int, dict[str, Any]]] = []

    def seen(self, analyses: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The analyses themselves, while they are looked at."""
        for analysis in analyses:
            self.reviews += 1
            if analysis["keywords"]:
                self.with_keywords += 1
                losses = [word["loss"] for keyword in analysis["keywords"] for word in keyword["words"]]
                entry = (max(losses, default=0.0), -analysis["id"], analysis)  # of equal ones the first
                if len(self._kept) < self.most:
                    heapq.heappush(self._kept, entry)
                else:
                    heapq.heappushpop(self._kept, entry)
            yield analysis

    def save(self, path: Path, overwrite: bool) -> None:
        """Write the page; it appears whole or not at all."""
        content = self.page().encode("utf-8", "replace")
        with run_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda file: file.write(content), replace=overwrite)

    def page(self) -> str:
        """The page, which has at most some 60 kB for each review."""
        kept = [analysis for *_, analysis in sorted(self._kept, key=lambda entry: entry[:2], reverse=True)]
        shown = f"{len(kept):,} of {self.with_keywords:,} reviews with a keyword ({self.reviews:,} in all)"
        articles = "".join(map(_article, kept))
        return f"""<!doctype html>
<html lang="ko">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>리뷰 분석 · Review analysis</title>
<style>{STYLE}</style>
</head>
<body>
<h1>리뷰 분석 · Review analysis</h1>
<p class="quiet">{shown}, those first whose sentiment depends most on one word.
The probability of the sentiment falls without a word <span class="for" style="--effect:1">that speaks for it</span>
and rises without one <span class="against" style="--effect:1">that speaks against it</span>; the word without which it
falls most is <span class="first">underlined</span>.</p>
<p class="quiet">단어를 뺐을 때 감성의 확률이 내려가면
<span class="for" style="--effect:1">근거가 되는 단어</span>, 올라가면
<span class="against" style="--effect:1">반대되는 단어</span>입니다. 가장 많이 내려가는
단어에 <span class="first">밑줄</span>을 그었습니다.</p>
{articles}</body>
</html>
"""


def _article(analysis: Mapping[str, Any]) -> str:
    shown = analysis["keywords"][:MOST_KEYWORDS]
    right = analysis["reference"] or {}
    sections = "".join(_keyword(keyword, right) for keyword in shown)
    rest = _rest(analysis["keywords"], shown, "keyword")
    return f"<article>\n<h2>{analysis['id']:,}</h2>\n{sections}{rest}</article>\n"


def _keyword(found: Mapping[str, Any], right: Mapping[str, str | None]) -> str:
    words = found["words"][:MOST_WORDS]
    strongest = max((abs(word["loss"]) for word in found["words"]), default=0.0)
    strongest = max(strongest, FULL_COLOUR)
    losses = [word["loss"] for word in words]
    first = losses.index(max(losses)) if max(losses, default=0.0) > 0 else -1
    spans = " ".join(_word(word, strongest, number == first) for number, word in enumerate(words))
    shares = " · ".join(f"{_text(label)} {share:.3f}" for label, share in found["sentiment_probabilities"].items())
    wanted = right.get(found["keyword"])
    reference = f" <small>(reference: {_text(wanted)})</small>" if wanted is not None else ""
    return (
        f"<h3>{_text(found['keyword'])} <small>{found['probability']:.3f}</small> → {_text(found['sentiment'])}"
        f"{reference}</h3>\n<p>{spans}</p>\n{_rest(found['words'], words, 'word')}<p><small>{shares}</small></p>\n"
    )


def _word(word: Mapping[str, Any], strongest: float, first: bool) -> str:
    effect, text = abs(word["loss"]) / strongest, _text(word["word"])
    names = ["for" if word["loss"] > 0 else "against"] * (effect >= WEAKEST) + ["first"] * first
    if not names:
        return text
    return f'<span class="{" ".join(names)}" style="--effect:{effect:.2f}" title="{word["loss"]:+.4f}">{text}</span>'


def _rest(items: list[Any], shown: list[Any], unit: str) -> str:
    more = len(items) - len(shown)
    return f'<p class="quiet">… {more:,} {unit}{"s" * (more > 1)} more</p>\n' if more else ""


def _text(text: str) -> str:
    """A text of the data as text of the page, in a box of its own, so that no direction of writing leaves it."""
    shown = text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}…"
    return f"<bdi>{escape(printable(shown))}</bdi>"
